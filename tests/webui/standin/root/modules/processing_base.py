"""Fields and conditionings that txt2img and img2img share."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from modules import extra_networks, prompt_parser, sd_samplers, shared
from modules.shared import opts

from tests.webui.standin import launching


def get_fixed_seed(seed) -> int:
    """A seed; -1, None and "" become a random one."""
    if seed in ("", None):
        seed = -1
    return int(random.randrange(4294967294)) if int(seed) == -1 else int(seed)


@dataclass(repr=False)
class StableDiffusionProcessing:
    """One job. Fields keep the host's names; `p.sample` is a plain method, so an instance attribute shadows it."""

    sd_model: Any = None
    outpath_samples: str | None = None
    outpath_grids: str | None = None
    prompt: Any = ""
    negative_prompt: Any = ""
    styles: list[str] | None = None
    seed: Any = -1
    subseed: Any = -1
    subseed_strength: float = 0
    seed_resize_from_h: int = -1
    seed_resize_from_w: int = -1
    sampler_name: str | None = None
    scheduler: str | None = None
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 50
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    restore_faces: bool | None = None
    tiling: bool | None = None
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    extra_generation_params: dict[str, Any] | None = None
    overlay_images: list[Any] | None = None
    eta: float | None = None
    denoising_strength: float | None = None
    s_min_uncond: float | None = None
    override_settings: dict[str, Any] | None = None
    override_settings_restore_afterwards: bool = True
    refiner_checkpoint: str | None = None
    refiner_switch_at: float | None = None
    disable_extra_networks: bool = False
    comments: dict[str, int] | None = None

    scripts_value: Any = field(default=None, init=False)
    script_args_value: Any = field(default=None, init=False)
    scripts_setup_complete: bool = field(default=False, init=False)
    sampler: Any = field(default=None, init=False)
    paste_to: Any = field(default=None, init=False)
    is_hr_pass: bool = field(default=False, init=False)
    c: Any = field(default=None, init=False)
    uc: Any = field(default=None, init=False)
    rng: Any = field(default=None, init=False)
    color_corrections: Any = field(default=None, init=False)
    all_prompts: Any = field(default=None, init=False)
    all_negative_prompts: Any = field(default=None, init=False)
    all_seeds: Any = field(default=None, init=False)
    all_subseeds: Any = field(default=None, init=False)
    iteration: int = field(default=0, init=False)
    main_prompt: Any = field(default=None, init=False)
    main_negative_prompt: Any = field(default=None, init=False)
    prompts: Any = field(default=None, init=False)
    negative_prompts: Any = field(default=None, init=False)
    seeds: Any = field(default=None, init=False)
    subseeds: Any = field(default=None, init=False)
    extra_network_data: Any = field(default=None, init=False)
    user: str | None = field(default=None, init=False)
    sd_model_name: str | None = field(default=None, init=False)
    sd_model_hash: str | None = field(default=None, init=False)
    is_api: bool = field(default=False, init=False)
    refiner_checkpoint_info: Any = field(default=None, init=False)
    modified_noise: Any = field(default=None, init=False)

    def __post_init__(self):
        self.comments = {}
        if launching.is_forge():
            self.extra_result_images = []  # arrays that are shown behind the results
        self.styles = self.styles or []
        self.extra_generation_params = self.extra_generation_params or {}
        self.override_settings = self.override_settings or {}
        self.sampler_noise_scheduler_override = None

    @property
    def sd_model(self):  # noqa: F811 (live, as in the host)
        """The loaded model, whichever it is now."""
        return shared.sd_model

    @sd_model.setter
    def sd_model(self, value):
        pass

    @property
    def scripts(self):
        """The tab's script runner."""
        return self.scripts_value

    @scripts.setter
    def scripts(self, value):
        self.scripts_value = value
        self._setup_scripts()

    @property
    def script_args(self):
        """Values of all scripts' components."""
        return self.script_args_value

    @script_args.setter
    def script_args(self, value):
        self.script_args_value = value
        self._setup_scripts()

    def _setup_scripts(self) -> None:
        if self.scripts_value and self.script_args_value and not self.scripts_setup_complete:
            self.scripts_setup_complete = True
            self.scripts_value.setup_scrips(self, is_ui=not self.is_api)

    def comment(self, text: str) -> None:
        """A remark under the picture; the API does not show it."""
        self.comments[text] = 1

    def init(self, all_prompts, all_seeds, all_subseeds) -> None:
        """Prepare what all batches need."""

    def sample(self, conditioning, unconditional_conditioning, seeds, subseeds, subseed_strength, prompts):
        """One batch's latents, or decoded pictures."""
        raise NotImplementedError

    def close(self) -> None:
        """The job is over."""
        self.sampler = self.c = self.uc = None

    def setup_prompts(self) -> None:
        """One prompt per picture."""
        count = self.batch_size * self.n_iter
        self.all_prompts = self.prompt if isinstance(self.prompt, list) else count * [self.prompt]
        negative = self.negative_prompt
        self.all_negative_prompts = negative if isinstance(negative, list) else len(self.all_prompts) * [negative]
        self.main_prompt = self.all_prompts[0]
        self.main_negative_prompt = self.all_negative_prompts[0]

    def slice_batch(self, n: int) -> None:
        """Prompts and seeds of one batch."""
        part = slice(n * self.batch_size, (n + 1) * self.batch_size)
        self.prompts, self.negative_prompts = self.all_prompts[part], self.all_negative_prompts[part]
        self.seeds, self.subseeds = self.all_seeds[part], self.all_subseeds[part]

    def conds(self, prompts, negative_prompts, steps: int, width: int, height: int, cfg_scale: float):
        """`(cond, uncond)` of a pass; Forge has no uncond at CFG 1."""
        uncond = None
        if not (launching.is_forge() and cfg_scale == 1):
            negatives = prompt_parser.SdConditioning(negative_prompts, True, width, height)
            uncond = prompt_parser.get_learned_conditioning(shared.sd_model, negatives, steps)
        positives = prompt_parser.SdConditioning(prompts, False, width, height)
        return prompt_parser.get_multicond_learned_conditioning(shared.sd_model, positives, steps), uncond

    def total_steps(self, sampler_name, steps: int) -> int:
        """Expected UNet steps of a pass."""
        config = sd_samplers.find_sampler_config(sampler_name)
        return config.total_steps(steps) if config else steps

    def setup_conds(self) -> None:
        """Conditionings of the batch."""
        self.firstpass_steps = self.total_steps(self.sampler_name, self.steps)
        self.step_multiplier = self.firstpass_steps // self.steps
        self.c, self.uc = self.conds(self.prompts, self.negative_prompts, self.firstpass_steps, self.width,
                                     self.height, self.cfg_scale)

    def get_conds(self):
        """Conditionings of the pass that runs."""
        return self.c, self.uc

    def parse_extra_network_prompts(self) -> None:
        """Take `<lora:...>` out of the prompts."""
        self.prompts, self.extra_network_data = extra_networks.parse_prompts(self.prompts)

    def save_samples(self) -> bool:
        """Whether pictures are written to disk."""
        return opts.samples_save and not self.do_not_save_samples

    def fill_fields_from_opts(self) -> None:
        """Fields that the settings fill when nobody set them."""
        if self.s_min_uncond is None:
            self.s_min_uncond = opts.s_min_uncond

    def txt2img_image_conditioning(self, x, width=None, height=None):
        """What an inpainting checkpoint gets beside the latent: everything masked, grey behind it."""
        from modules.vae_io import images_tensor_to_samples

        if unet_in_channels() < 9:
            return x.new_zeros(x.shape[0], 5 if unet_in_channels() == 4 else 4, *([1, 1] if unet_in_channels() == 4
                                                                                  else x.shape[-2:]))
        grey = torch.full((x.shape[0], 3, height or self.height, width or self.width), 0.5, device=x.device)
        return torch.nn.functional.pad(images_tensor_to_samples(grey), (0, 0, 0, 0, 1, 0), value=1.0).to(x.dtype)

    def img2img_image_conditioning(self, source_image, latent_image, image_mask=None, round_image_mask: bool = True):
        """What inpainting and InstructPix2Pix checkpoints get beside the latent; pixels in -1..1."""
        model = shared.sd_model
        if model.cond_stage_key == "edit":
            return model.encode_first_stage(source_image).mode()
        if unet_in_channels() < 9:
            return latent_image.new_zeros(latent_image.shape[0], 5, 1, 1)
        mask = source_image.new_ones(1, 1, *source_image.shape[-2:])
        if image_mask is not None:
            from modules.vae_io import to_pixels

            mask = to_pixels(image_mask)[None, :1].to(source_image)
            mask = torch.round(mask) if round_image_mask else mask
        kept = torch.lerp(source_image, source_image * (1.0 - mask), opts.inpainting_mask_weight)
        behind = model.get_first_stage_encoding(model.encode_first_stage(kept))
        small = torch.nn.functional.interpolate(mask, size=latent_image.shape[-2:])
        return torch.cat([small.expand(behind.shape[0], -1, -1, -1), behind], dim=1)


def unet_in_channels() -> int:
    """4, or 8 for InstructPix2Pix, or 9 for inpainting checkpoints."""
    return shared.sd_model.shape.in_channels
