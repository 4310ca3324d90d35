"""Noise per picture: each picture of a batch has its own generator, so that a batch equals single pictures."""

from __future__ import annotations

import torch


class ImageRNG:
    """Noise of a batch; `next()` first gives the initial noise, then the noise of each step."""

    def __init__(self, shape, seeds, subseeds=None, subseed_strength: float = 0.0, seed_resize_from_h: int = 0,
                 seed_resize_from_w: int = 0):
        self.shape = tuple(int(n) for n in shape)
        self.seeds = seeds
        self.subseeds = subseeds or seeds
        self.subseed_strength = subseed_strength
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.is_first = True

    def next(self) -> torch.Tensor:
        """Noise `(b, c, h, w)`."""
        noise = torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])
        if self.is_first and self.subseed_strength:
            others = [torch.Generator().manual_seed(int(seed)) for seed in self.subseeds]
            variation = torch.stack([torch.randn(self.shape, generator=g) for g in others])
            s = float(self.subseed_strength)
            noise = (noise * (1 - s) + variation * s) / (s * s + (1 - s) ** 2) ** 0.5
        self.is_first = False
        return noise


def create_generator(seed: int) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(int(seed))
