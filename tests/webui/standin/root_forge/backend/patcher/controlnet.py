"""A ControlNet's patcher and its chain on Forge: one runs those before it, then itself, and sums."""

from __future__ import annotations

from backend import memory_management
from backend.patcher.base import ModelPatcher


class ControlNet:
    """`get_control` is called before each call of the UNet, with the call's text."""

    def __init__(self, control_model):
        self.control_model = control_model
        device = memory_management.get_torch_device()
        self.control_model_wrapped = ModelPatcher(control_model, device, memory_management.unet_offload_device())
        self.cond_hint_original = None
        self.strength = 1.0
        self.timestep_percent_range = (0.0, 1.0)
        self.timestep_range = None
        self.transformer_options: dict[str, object] = {}
        self.previous_controlnet = None
        self.model_sampling_current = None

    def copy(self):
        """Another over the same net."""
        return ControlNet(self.control_model)

    def set_cond_hint(self, cond_hint, strength=1.0, timestep_percent_range=(0.0, 1.0)):
        """Give it its map."""
        self.cond_hint_original, self.strength = cond_hint, strength
        self.timestep_percent_range = timestep_percent_range
        return self

    def set_previous_controlnet(self, controlnet):
        """Chain it behind another."""
        self.previous_controlnet = controlnet
        return self

    def pre_run(self, model, percent_to_timestep_function):
        """Sampling is about to start."""
        self.timestep_range = tuple(percent_to_timestep_function(percent) for percent in self.timestep_percent_range)
        self.model_sampling_current = model.predictor
        if self.previous_controlnet is not None:
            self.previous_controlnet.pre_run(model, percent_to_timestep_function)

    def get_models(self):
        """The nets that have to be on the device."""
        before = self.previous_controlnet.get_models() if self.previous_controlnet is not None else []
        return [*before, self.control_model_wrapped]

    def get_control(self, x_noisy, t, cond, batched_number):
        """`{"output": [...], "middle": [...]}` of the whole chain."""
        for modifier in self.transformer_options.get("controlnet_conditioning_modifiers", []):
            x_noisy, t, cond, batched_number = modifier(self, x_noisy, t, cond, batched_number)
        before = None
        if self.previous_controlnet is not None:
            before = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number)
        if self.timestep_range is not None and not self.timestep_range[1] <= t[0] <= self.timestep_range[0]:
            return before
        scaled = x_noisy * ((t**2 + 1) ** -0.5)[:, None, None, None]
        timestep = self.model_sampling_current.timestep(t).float()
        control = self.control_model(x=scaled, hint=self.cond_hint_original, timesteps=timestep,
                                     context=cond["c_crossattn"], y=cond.get("y"))
        control = [one * self.strength for one in control]
        out = {"output": control[:-1], "middle": control[-1:]}
        if before is not None:
            out = {name: [a + b for a, b in zip(out[name], before[name], strict=True)] for name in out}
        return out


def apply_controlnet_advanced(unet, controlnet, image_bchw, strength, start_percent, end_percent):
    """A clone of the UNet's patcher with one more ControlNet in its chain."""
    cnet = controlnet.copy().set_cond_hint(image_bchw, strength, (start_percent, end_percent))
    clone = unet.clone()
    clone.add_patched_controlnet(cnet)
    return clone
