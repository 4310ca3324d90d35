"""img2img and inpainting."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from modules import images, masking, sd_samplers, shared
from modules.processing_base import StableDiffusionProcessing
from modules.script_base import MaskBlendArgs
from modules.shared import opts
from modules.vae_io import images_tensor_to_samples, to_pixels
from PIL import Image, ImageOps

from tests.webui.standin import launching


@dataclass(repr=False)
class StableDiffusionProcessingImg2Img(StableDiffusionProcessing):
    """A picture from another one, wholly or inside a mask."""

    init_images: list[Any] | None = None
    resize_mode: int = 0
    denoising_strength: float = 0.75
    image_cfg_scale: float | None = None
    mask: Any = None
    mask_blur: int = 4
    mask_round: bool = True
    inpainting_fill: int = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: int = 0
    initial_noise_multiplier: float | None = None

    image_mask: Any = field(default=None, init=False)
    nmask: Any = field(default=None, init=False)
    image_conditioning: Any = field(default=None, init=False)
    mask_for_overlay: Any = field(default=None, init=False)
    init_latent: Any = field(default=None, init=False)

    def __post_init__(self):
        super().__post_init__()
        self.image_mask, self.mask = self.mask, None
        if self.initial_noise_multiplier is None:
            self.initial_noise_multiplier = opts.initial_noise_multiplier

    def init(self, all_prompts, all_seeds, all_subseeds) -> None:
        """Mask, crop, init latent and what the checkpoint gets beside it."""
        self.extra_generation_params["Denoising strength"] = self.denoising_strength
        self.image_cfg_scale = self.image_cfg_scale if shared.sd_model.cond_stage_key == "edit" else None
        self.sampler = sd_samplers.create_sampler(self.sampler_name, self.sd_model)
        self.mask = self.nmask = None
        image_mask, crop = self._mask_and_crop()
        if launching.is_forge() and self.scripts is not None:
            self.scripts.before_process_init_images(self, {"crop_region": crop, "image_mask": image_mask})
        self.overlay_images = [] if image_mask is not None else None
        pixels = [to_pixels(self._init_image(image, image_mask, crop)) for image in self.init_images]
        if len(pixels) == 1:
            pixels *= self.batch_size
            self.overlay_images = self.overlay_images and self.overlay_images * self.batch_size
        elif len(pixels) > self.batch_size:
            raise RuntimeError(f"bad number of images passed: {len(pixels)}; expecting {self.batch_size} or less")
        else:
            self.batch_size = len(pixels)
        batch = torch.stack(pixels).to(shared.device)
        self.init_latent = images_tensor_to_samples(batch)
        if image_mask is not None:
            self._latent_mask(image_mask)
        self.image_conditioning = self.img2img_image_conditioning(batch * 2 - 1, self.init_latent, image_mask,
                                                                  self.mask_round)

    def _mask_and_crop(self):
        """The mask at the job's size, and the box of "only masked"; the reference of no unit is ever cut by it."""
        if self.image_mask is None:
            return None, None
        mask = masking.prepare(self.image_mask, bool(self.inpainting_mask_invert), self.mask_blur, self.mask_round)
        if self.mask_blur > 0:
            self.extra_generation_params["Mask blur"] = self.mask_blur
        if not self.inpaint_full_res:
            mask = images.resize_image(self.resize_mode, mask, self.width, self.height)
            self.mask_for_overlay = mask.point(lambda v: min(255, v * 2))
            return mask, None
        self.mask_for_overlay = mask
        crop = masking.get_crop_region(mask, self.inpaint_full_res_padding)
        if crop is None:
            self.mask_for_overlay, self.inpaint_full_res = None, False
            return None, None
        crop = masking.expand_crop_region(crop, self.width, self.height, mask.width, mask.height)
        x1, y1, x2, y2 = crop
        self.paste_to = (x1, y1, x2 - x1, y2 - y1)
        self.extra_generation_params["Inpaint area"] = "Only masked"
        self.extra_generation_params["Masked area padding"] = self.inpaint_full_res_padding
        return images.resize_image(2, mask.crop(crop), self.width, self.height), crop

    def _init_image(self, image: Image.Image, image_mask, crop) -> Image.Image:
        image = images.flatten(image, opts.img2img_background_color)
        if crop is None:
            image = images.resize_image(self.resize_mode, image, self.width, self.height)
        if image_mask is not None:
            overlay_mask = images.resize_image(0, self.mask_for_overlay, image.width, image.height)
            kept = Image.new("RGBa", image.size)
            kept.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(overlay_mask.convert("L")))
            self.overlay_images.append(kept.convert("RGBA"))
        if crop is not None:
            image = images.resize_image(2, image.crop(crop), self.width, self.height)
        if image_mask is not None and self.inpainting_fill == 0:
            image = masking.fill(image, image_mask)
        return image

    def _latent_mask(self, image_mask: Image.Image) -> None:
        size = (self.init_latent.shape[3], self.init_latent.shape[2])
        values = np.array(image_mask.convert("L").resize(size), dtype=np.float32) / 255
        values = np.around(values) if self.mask_round else values
        nmask = torch.from_numpy(values)[None].repeat(self.init_latent.shape[1], 1, 1).to(self.init_latent)
        self.mask, self.nmask = 1.0 - nmask, nmask
        if self.inpainting_fill == 3:
            self.init_latent = self.init_latent * self.mask
            self.extra_generation_params["Masked content"] = "latent nothing"

    def sample(self, conditioning, unconditional_conditioning, seeds, subseeds, subseed_strength, prompts):
        """One batch from the init latent."""
        noise = self.rng.next()
        if self.initial_noise_multiplier != 1.0:
            self.extra_generation_params["Noise multiplier"] = self.initial_noise_multiplier
            noise = noise * self.initial_noise_multiplier
        if launching.is_forge():
            self.sd_model.reset_objects()
        if self.scripts is not None:
            self.scripts.process_before_every_sampling(self, x=self.init_latent, noise=noise, c=conditioning,
                                                       uc=unconditional_conditioning)
        samples = self.sampler.sample_img2img(self, self.init_latent, noise, conditioning, unconditional_conditioning,
                                              image_conditioning=self.image_conditioning)
        if self.mask is not None:
            blended = samples * self.nmask + self.init_latent * self.mask
            if self.scripts is not None:
                mba = MaskBlendArgs(samples, self.nmask, self.init_latent, self.mask, blended)
                self.scripts.on_mask_blend(self, mba)
                blended = mba.blended_latent
            samples = blended
        return samples
