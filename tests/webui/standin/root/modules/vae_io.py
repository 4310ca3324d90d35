"""Pictures to latents and back."""

from __future__ import annotations

import numpy as np
import torch
from modules import devices, shared
from PIL import Image


class DecodedSamples(list):
    """Pictures of the hires pass, `(3, h, w)` in -1..1 each."""

    already_decoded = True


def decode_first_stage(model, x):
    """Latents to pixels in -1..1."""
    return model.decode_first_stage(x)


def decode_latent_batch(model, batch, target_device=None, check_for_nans: bool = False) -> DecodedSamples:
    """Decode pictures one by one."""
    samples = DecodedSamples()
    for i in range(batch.shape[0]):
        if check_for_nans:
            devices.test_for_nans(batch[i], "vae")
        sample = decode_first_stage(model, batch[i:i + 1])[0]
        samples.append(sample if target_device is None else sample.to(target_device))
    return samples


def images_tensor_to_samples(image, approximation=None, model=None):
    """Pixels in 0..1 to latents."""
    del approximation
    model = model or shared.sd_model
    return model.get_first_stage_encoding(model.encode_first_stage(image.to(shared.device) * 2 - 1))


def to_pixels(image: Image.Image) -> torch.Tensor:
    """A PIL picture as `(3, h, w)` in 0..1."""
    return torch.from_numpy(np.moveaxis(np.array(image.convert("RGB")).astype(np.float32) / 255.0, 2, 0))


def to_image(sample: torch.Tensor) -> Image.Image:
    """`(3, h, w)` in 0..1 as a PIL picture."""
    return Image.fromarray((255.0 * np.moveaxis(sample.cpu().numpy(), 0, 2)).astype(np.uint8))
