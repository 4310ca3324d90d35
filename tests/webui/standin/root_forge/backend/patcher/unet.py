"""The UNet's patcher and the model around the net."""

from __future__ import annotations

import torch
from backend.patcher.base import ModelPatcher


class Predictor:
    """Sigmas and timesteps of an eps model (Karras et al. 2022, table 1, VE)."""

    def __init__(self, schedule):
        self.schedule = schedule
        self.sigmas = schedule.sigmas

    def timestep(self, sigma):
        """Timestep of a sigma."""
        return self.schedule.sigma_to_t(sigma)

    def percent_to_sigma(self, percent: float) -> float:
        """Sigma at a fraction of the schedule; 0 is its start."""
        if percent <= 0:
            return 999999999.9
        return 0.0 if percent >= 1 else float(self.sigmas[int((1.0 - percent) * 999)])

    def noise_scaling(self, sigma, noise, latent, max_denoise: bool = False):
        """A latent with noise on it."""
        del max_denoise
        return latent + noise * sigma


class KModel(torch.nn.Module):
    """The net with its predictor: called with a latent and a sigma, answers with the predicted picture's latent."""

    def __init__(self, diffusion_model, predictor: Predictor):
        super().__init__()
        self.diffusion_model = diffusion_model
        self.predictor = predictor
        self.storage_dtype = self.computation_dtype = torch.float32

    def apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        """One call of the net; `t` is a sigma per row."""
        scaled = x * ((t**2 + 1) ** -0.5)[:, None, None, None]
        if c_concat is not None:
            scaled = torch.cat([scaled, c_concat], dim=1)
        eps = self.diffusion_model(scaled.to(self.computation_dtype), self.predictor.timestep(t).float(),
                                   context=c_crossattn.to(self.computation_dtype), control=control,
                                   transformer_options=transformer_options or {}, **kwargs).float()
        return x - eps * t[:, None, None, None]

    def memory_required(self, input_shape) -> float:
        """Bytes that a call needs, roughly."""
        return 1.28 * input_shape[0] * input_shape[2] * input_shape[3] * 4 * 16384


class UnetPatcher(ModelPatcher):
    """What `forge_objects.unet` is."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.controlnet_linked_list = None
        self.extra_preserved_memory_during_sampling = 0
        self.extra_model_patchers_during_sampling: list[object] = []
        self.extra_concat_condition = None

    def clone(self):
        """Another patcher over the same net."""
        other = super().clone()
        other.controlnet_linked_list = self.controlnet_linked_list
        other.extra_preserved_memory_during_sampling = self.extra_preserved_memory_during_sampling
        other.extra_model_patchers_during_sampling = self.extra_model_patchers_during_sampling.copy()
        other.extra_concat_condition = self.extra_concat_condition
        return other

    def add_extra_model_patcher_during_sampling(self, model_patcher) -> None:
        """Another net that has to be on the device while sampling."""
        self.extra_model_patchers_during_sampling.append(model_patcher)

    def add_extra_torch_module_during_sampling(self, m, cast_to_unet_dtype: bool = True):
        """The same for a plain module; the cast fails, as on Forge."""
        if cast_to_unet_dtype:
            m.to(self.model.diffusion_model.dtype_of_forge)
        patcher = ModelPatcher(m, self.load_device, self.offload_device)
        self.add_extra_model_patcher_during_sampling(patcher)
        return patcher

    def set_transformer_option(self, k, v) -> None:
        """A value that each call's `transformer_options` carries."""
        self.model_options.setdefault("transformer_options", {})[k] = v

    def add_sampler_pre_cfg_function(self, modifier, ensure_uniqueness: bool = False) -> None:
        """A function called before each step's UNet calls."""
        del ensure_uniqueness
        self.model_options.setdefault("sampler_pre_cfg_function", []).append(modifier)

    def set_model_sampler_post_cfg_function(self, post_cfg_function, disable_cfg1_optimization: bool = False) -> None:
        """A function called after each step's guidance, with its predictions; what it returns goes on."""
        self.model_options["sampler_post_cfg_function"] = [
            *self.model_options.get("sampler_post_cfg_function", []), post_cfg_function]
        if disable_cfg1_optimization:
            self.model_options["disable_cfg1_optimization"] = True

    def set_model_unet_function_wrapper(self, unet_wrapper_function) -> None:
        """A function called in the place of `apply_model`."""
        self.model_options["model_function_wrapper"] = unet_wrapper_function

    def add_patched_controlnet(self, cnet) -> None:
        """Put a ControlNet at the head of the chain."""
        cnet.set_previous_controlnet(self.controlnet_linked_list)
        self.controlnet_linked_list = cnet

    def list_controlnets(self) -> list[object]:
        """The chain, last added first."""
        found, cnet = [], self.controlnet_linked_list
        while cnet is not None:
            found.append(cnet)
            cnet = cnet.previous_controlnet
        return found
