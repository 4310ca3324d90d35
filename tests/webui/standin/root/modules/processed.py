"""A job's result."""

from __future__ import annotations

import json


class Processed:
    """Pictures, infotexts and the values that made them."""

    def __init__(self, p, images_list, seed=-1, info="", subseed=None, all_prompts=None, all_negative_prompts=None,
                 all_seeds=None, all_subseeds=None, index_of_first_image=0, infotexts=None, comments="",
                 extra_images_list=()):
        del comments
        self.images = images_list
        self.extra_images = list(extra_images_list)
        self.prompt = p.prompt if not isinstance(p.prompt, list) else p.prompt[0]
        self.negative_prompt = p.negative_prompt
        self.seed = seed
        self.subseed = subseed
        self.info = info
        self.comments = "".join(f"{comment}\n" for comment in p.comments)
        self.width = p.width
        self.height = p.height
        self.sampler_name = p.sampler_name
        self.cfg_scale = p.cfg_scale
        self.steps = p.steps
        self.batch_size = p.batch_size
        self.sd_model_name = p.sd_model_name
        self.sd_model_hash = p.sd_model_hash
        self.denoising_strength = getattr(p, "denoising_strength", None)
        self.extra_generation_params = p.extra_generation_params
        self.index_of_first_image = index_of_first_image
        self.all_prompts = all_prompts or p.all_prompts or [self.prompt]
        self.all_negative_prompts = all_negative_prompts or p.all_negative_prompts or [self.negative_prompt]
        self.all_seeds = all_seeds or p.all_seeds or [self.seed]
        self.all_subseeds = all_subseeds or p.all_subseeds or [self.subseed]
        self.infotexts = infotexts or [info]
        self.version = "stand-in"

    def js(self) -> str:
        """What the API's `info` and the page get; comments are not in it, as in the host."""
        names = ("prompt", "all_prompts", "negative_prompt", "all_negative_prompts", "seed", "all_seeds", "subseed",
                 "all_subseeds", "width", "height", "sampler_name", "cfg_scale", "steps", "batch_size",
                 "sd_model_name", "sd_model_hash", "denoising_strength", "index_of_first_image", "infotexts",
                 "version")
        obj = {name: getattr(self, name) for name in names}
        obj["extra_generation_params"] = self.extra_generation_params
        return json.dumps(obj, default=lambda o: None)

    def infotext(self, p, index: int) -> str:
        """The infotext of one picture."""
        from modules.processing_infotext import create_infotext

        return create_infotext(p, self.all_prompts, self.all_seeds, self.all_subseeds, position_in_batch=index,
                               all_negative_prompts=self.all_negative_prompts)
