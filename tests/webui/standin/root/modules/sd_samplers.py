"""The list of samplers."""

from __future__ import annotations

from modules.sd_samplers_kdiffusion import samplers_data_k_diffusion
from modules.sd_samplers_timesteps import samplers_data_timesteps

all_samplers = [*samplers_data_k_diffusion, *samplers_data_timesteps]
all_samplers_map = {sampler.name: sampler for sampler in all_samplers}
samplers = all_samplers
samplers_for_img2img = all_samplers
samplers_map = {alias.lower(): s.name for s in all_samplers for alias in (s.name, *s.aliases)}


def find_sampler_config(name):
    """The sampler of that name; the first one for None."""
    return all_samplers_map.get(name) if name is not None else all_samplers[0]


def create_sampler(name, model):
    """A fresh sampler. Raises: ValueError for an unknown name."""
    config = find_sampler_config(name)
    if config is None:
        raise ValueError(f"bad sampler name: {name}")
    sampler = config.constructor(model)
    sampler.config = config
    return sampler


def visible_sampler_names() -> list[str]:
    """Names for a drop-down."""
    return [sampler.name for sampler in all_samplers]
