"""txt2img, with hires fix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from modules import devices, extra_networks, images, rng, sd_models, sd_samplers, shared
from modules.processing_base import StableDiffusionProcessing
from modules.shared import state
from modules.vae_io import decode_latent_batch, images_tensor_to_samples, to_image, to_pixels

from tests.webui.standin import launching


@dataclass(repr=False)
class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    """A picture from noise."""

    enable_hr: bool = False
    denoising_strength: float = 0.75
    firstphase_width: int = 0
    firstphase_height: int = 0
    hr_scale: float = 2.0
    hr_upscaler: str | None = None
    hr_second_pass_steps: int = 0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: str = ""
    hr_negative_prompt: str = ""
    hr_cfg: float = 1.0  # Forge only; A1111 uses cfg_scale in both passes
    hr_additional_modules: list[Any] | None = None  # Forge only

    hr_checkpoint_info: Any = field(default=None, init=False)
    hr_upscale_to_x: int = field(default=0, init=False)
    hr_upscale_to_y: int = field(default=0, init=False)
    latent_scale_mode: Any = field(default=None, init=False)
    hr_c: Any = field(default=None, init=False)
    hr_uc: Any = field(default=None, init=False)
    hr_prompts: Any = field(default=None, init=False)
    hr_negative_prompts: Any = field(default=None, init=False)
    hr_extra_network_data: Any = field(default=None, init=False)

    def init(self, all_prompts, all_seeds, all_subseeds) -> None:
        """Check and note what hires fix needs."""
        if not self.enable_hr:
            return
        notes = self.extra_generation_params
        notes["Denoising strength"] = self.denoising_strength
        if self.hr_checkpoint_name and self.hr_checkpoint_name != "Use same checkpoint":
            self.hr_checkpoint_info = sd_models.get_closet_checkpoint_match(self.hr_checkpoint_name)
            if self.hr_checkpoint_info is None:
                raise Exception(f"Could not find checkpoint with name {self.hr_checkpoint_name}")  # noqa: TRY002
            notes["Hires checkpoint"] = self.hr_checkpoint_info.short_title
        if launching.is_forge() and self.hr_additional_modules is None:
            raise TypeError("argument of type 'NoneType' is not iterable")  # as Forge fails without the field
        modes = shared.latent_upscale_modes
        self.latent_scale_mode = modes.get(self.hr_upscaler or shared.latent_upscale_default_mode)
        if self.hr_resize_x == 0 and self.hr_resize_y == 0:
            notes["Hires upscale"] = self.hr_scale
            self.hr_upscale_to_x, self.hr_upscale_to_y = int(self.width * self.hr_scale), int(self.height
                                                                                              * self.hr_scale)
        else:
            notes["Hires resize"] = f"{self.hr_resize_x}x{self.hr_resize_y}"
            self.hr_upscale_to_x = self.hr_resize_x or self.hr_resize_y * self.width // self.height
            self.hr_upscale_to_y = self.hr_resize_y or self.hr_resize_x * self.height // self.width
        if launching.is_forge():
            notes["Hires CFG Scale"] = self.hr_cfg
        if self.hr_second_pass_steps:
            notes["Hires steps"] = self.hr_second_pass_steps
        if self.hr_upscaler is not None:
            notes["Hires upscaler"] = self.hr_upscaler

    def sample(self, conditioning, unconditional_conditioning, seeds, subseeds, subseed_strength, prompts):
        """The base pass, then with hires fix the checkpoint's switch and the hires pass."""
        self.sampler = sd_samplers.create_sampler(self.sampler_name, self.sd_model)
        x = self.rng.next()
        if launching.is_forge():
            self.sd_model.reset_objects()
        self._before_sampling(x, x, conditioning, unconditional_conditioning)
        x = self._modified(x)
        samples = self.sampler.sample(self, x, conditioning, unconditional_conditioning,
                                      image_conditioning=self.txt2img_image_conditioning(x))
        if not self.enable_hr:
            return samples
        decoded = None
        if self.latent_scale_mode is None:
            decoded = torch.stack(decode_latent_batch(self.sd_model, samples, devices.cpu, check_for_nans=True))
        with sd_models.SkipWritingToConfig():
            sd_models.reload_model_weights(info=self.hr_checkpoint_info)
        return self.sample_hr_pass(samples, decoded, seeds, subseeds, subseed_strength, prompts)

    def _before_sampling(self, x, noise, c, uc) -> None:
        if self.scripts is not None:
            self.scripts.process_before_every_sampling(self, x=x, noise=noise, c=c, uc=uc)

    def _modified(self, noise):
        """Forge: a script may have put other noise in place."""
        if launching.is_forge() and self.modified_noise is not None:
            noise, self.modified_noise = self.modified_noise, None
        return noise

    def _upscaled(self, samples, decoded):
        if decoded is None:
            size = (self.hr_upscale_to_y // 8, self.hr_upscale_to_x // 8)
            samples = torch.nn.functional.interpolate(samples, size=size, mode=self.latent_scale_mode["mode"],
                                                      antialias=self.latent_scale_mode["antialias"])
            return samples, self.txt2img_image_conditioning(samples, self.hr_upscale_to_x, self.hr_upscale_to_y)
        large = [images.resize_image(0, to_image(((d + 1) / 2).clamp(0, 1)), self.hr_upscale_to_x,
                                     self.hr_upscale_to_y, upscaler_name=self.hr_upscaler) for d in decoded]
        pixels = torch.stack([to_pixels(image) for image in large])
        samples = images_tensor_to_samples(pixels)
        return samples, self.img2img_image_conditioning(pixels * 2 - 1, samples)

    def sample_hr_pass(self, samples, decoded_samples, seeds, subseeds, subseed_strength, prompts):
        """The second pass; its result is decoded already."""
        if state.interrupted:
            return samples
        self.is_hr_pass = True
        self.sampler = sd_samplers.create_sampler(self.hr_sampler_name or self.sampler_name, self.sd_model)
        samples, image_conditioning = self._upscaled(samples, decoded_samples)
        state.nextjob()
        self.rng = rng.ImageRNG(samples.shape[1:], self.seeds, subseeds=self.subseeds,
                                subseed_strength=self.subseed_strength)
        noise = self.rng.next()
        if not self.disable_extra_networks:
            extra_networks.activate(self, self.hr_extra_network_data)
        self.calculate_hr_conds()
        if self.scripts is not None:
            self.scripts.before_hr(self)
        self._before_sampling(samples, noise, self.hr_c, self.hr_uc)
        if launching.is_forge():  # the UNet that the call above patched is dropped, and the scripts are called again
            self.sd_model.reset_objects()
            self._before_sampling(samples, noise, self.hr_c, self.hr_uc)
            noise = self._modified(noise)
        samples = self.sampler.sample_img2img(self, samples, noise, self.hr_c, self.hr_uc,
                                              steps=self.hr_second_pass_steps or self.steps,
                                              image_conditioning=image_conditioning)
        self.sampler = None
        result = decode_latent_batch(self.sd_model, samples, target_device=devices.cpu, check_for_nans=True)
        self.is_hr_pass = False
        return result

    def calculate_hr_conds(self) -> None:
        """Conditionings of the hires pass, once."""
        if self.hr_c is not None:
            return
        scale = self.hr_cfg if launching.is_forge() else self.cfg_scale
        steps = self.total_steps(self.hr_sampler_name or self.sampler_name, self.hr_second_pass_steps or self.steps)
        self.hr_c, self.hr_uc = self.conds(self.hr_prompts, self.hr_negative_prompts, steps, self.hr_upscale_to_x,
                                           self.hr_upscale_to_y, scale)

    def setup_conds(self) -> None:
        """Base conditionings; in the hires pass (the refiner calls this) the hires ones."""
        if self.is_hr_pass:
            self.hr_c = None
            self.calculate_hr_conds()
            return
        super().setup_conds()
        self.hr_c = self.hr_uc = None

    def get_conds(self):
        """Conditionings of the pass that runs."""
        return (self.hr_c, self.hr_uc) if self.is_hr_pass else super().get_conds()

    def parse_extra_network_prompts(self) -> None:
        """Also the hires prompts."""
        super().parse_extra_network_prompts()
        if self.enable_hr:
            count = len(self.prompts)
            hr_prompts = [self.hr_prompt] * count if self.hr_prompt else self.all_prompts[:count]
            self.hr_negative_prompts = ([self.hr_negative_prompt] * count if self.hr_negative_prompt
                                        else list(self.negative_prompts))
            self.hr_prompts, self.hr_extra_network_data = extra_networks.parse_prompts(hr_prompts)
