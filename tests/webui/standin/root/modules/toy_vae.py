"""A fixed, invertible stand-in for the VAE: 4 latent channels to RGB at 8x the size, and back."""

from __future__ import annotations

import torch

# Latents of an untrained UNet stay near the initial noise's size (sigma 14.6), so this much of it is full contrast.
CONTRAST = 12.0
_TO_RGB = torch.tensor([[0.8, 0.3, 0.0, 0.2], [0.0, 0.8, 0.3, -0.2], [0.3, 0.0, 0.8, 0.1]])


class Moments:
    """What an encoder gives: here a point, its own mean, mode and sample."""

    def __init__(self, mean: torch.Tensor):
        self.mean = mean

    def mode(self) -> torch.Tensor:
        """The latent."""
        return self.mean

    def sample(self) -> torch.Tensor:
        """The latent."""
        return self.mean


class ToyVAE(torch.nn.Module):
    """Pixels are in -1..1, latents `(b, 4, h / 8, w / 8)`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("to_rgb", _TO_RGB, persistent=False)
        self.register_buffer("to_latent", torch.linalg.pinv(_TO_RGB), persistent=False)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Latents `(b, 4, h, w)` to pixels `(b, 3, 8h, 8w)`."""
        rgb = torch.tanh(torch.einsum("rc,bchw->brhw", self.to_rgb.to(z), z) / CONTRAST)
        return torch.nn.functional.interpolate(rgb, scale_factor=8, mode="nearest")

    def encode(self, x: torch.Tensor) -> Moments:
        """Pixels `(b, 3, 8h, 8w)` to latents `(b, 4, h, w)`."""
        small = torch.nn.functional.avg_pool2d(x, 8).clamp(-0.999, 0.999)
        return Moments(torch.einsum("cr,brhw->bchw", self.to_latent.to(x), torch.atanh(small) * CONTRAST))
