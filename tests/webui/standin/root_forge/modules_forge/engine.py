"""`shared.sd_model` on Forge: `forge_objects` with the UNet's patcher, reset by shallow copies."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from backend import memory_management
from backend.patcher.unet import KModel, Predictor, UnetPatcher
from modules import devices, prompt_parser
from modules.latent_model import alphas_cumprod
from modules.sd_samplers_kdiffusion import SigmaSchedule
from modules.toy_vae import ToyVAE

from tests.webui.standin.nets import UNetShape, build_unet


class ForgeObjects:
    """The parts of a model that a job may replace."""

    def __init__(self, unet, clip, vae, clipvision):
        self.unet = unet
        self.clip = clip
        self.vae = vae
        self.clipvision = clipvision

    def shallow_copy(self):
        """The same parts in another holder."""
        return ForgeObjects(self.unet, self.clip, self.vae, self.clipvision)


class ForgeUNet:
    """Mixed into the UNet's class: Forge calls it with `control=` and `transformer_options=`."""

    def forward(self, x, timesteps=None, context=None, y=None, control=None, transformer_options=None, **kwargs):
        """The ldm forward; the options are there for hooks to read, and `control` is added as Forge does."""
        del transformer_options
        handles = _add_control(self, control) if control is not None else []
        try:
            return super().forward(x, timesteps, context, y, **kwargs)  # pyright: ignore
        finally:
            for handle in handles:
                handle.remove()


def _add_control(unet, control):
    """Hooks for one call: what a ControlNet gives goes to the skip connections and behind the middle block."""

    def add(residual):
        def hook(module, args):
            joined = args[0].clone()
            joined[:, -residual.shape[1]:] += residual
            return (joined, *args[1:])

        return hook

    mid = control["middle"][0]
    pairs = zip(unet.output_blocks, reversed(control["output"]), strict=True)
    handles = [block.register_forward_pre_hook(add(residual)) for block, residual in pairs]
    return [*handles, unet.middle_block.register_forward_hook(lambda module, args, out: out + mid)]


class ForgeModel:
    """One loaded checkpoint."""

    def __init__(self, shape: UNetShape):
        self.shape = shape
        net = build_unet(shape)
        net.__class__ = type("IntegratedUNet2DConditionModel", (ForgeUNet, type(net)), {})
        net.eval().requires_grad_(False)
        model = KModel(net, Predictor(SigmaSchedule(None)))
        device = memory_management.get_torch_device()
        vae = SimpleNamespace(first_stage_model=ToyVAE(), latent_channels=4)
        self.forge_objects = ForgeObjects(UnetPatcher(model, device, device), None, vae, None)
        self.forge_objects_original = self.forge_objects.shallow_copy()
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()
        self.is_sdxl = shape.kind == "sdxl"
        self.is_sd1, self.is_sd2, self.is_sd3 = shape.kind == "sd15", shape.kind == "sd2", False
        self.is_inpaint = shape.in_channels == 9
        self.cond_stage_key = "edit" if shape.in_channels == 8 else "txt"
        self.latent_channels = 4
        self.alphas_cumprod = alphas_cumprod()
        self.sd_checkpoint_info = None
        self.sd_model_hash = None
        self.filename = None
        self.current_lora_hash = str([])
        self.extra_generation_params: dict[str, object] = {}

    def is_webui_legacy_model(self) -> bool:
        """Whether it is one of the Stable Diffusion family."""
        return True

    def reset_objects(self, original: bool = False) -> None:
        """Drop what scripts put into `forge_objects` since the last reset."""
        source = self.forge_objects_original if original else self.forge_objects_after_applying_lora
        self.forge_objects = source.shallow_copy()

    def prepare_sampling(self, x) -> None:
        """Ask for memory and bring the UNet and its companions to the device."""
        unet = self.forge_objects.unet
        controlnets = unet.controlnet_linked_list.get_models() if unet.controlnet_linked_list else []
        for controlnet in unet.list_controlnets():
            controlnet.pre_run(unet.model, unet.model.predictor.percent_to_sigma)
        memory_management.load_models_gpu([unet, *unet.extra_model_patchers_during_sampling, *controlnets],
                                          unet.model.memory_required([x.shape[0] * 2, *x.shape[1:]]),
                                          unet.extra_preserved_memory_during_sampling)

    def get_learned_conditioning(self, prompts):
        """Rows `(b, seq, width)`; for SDXL a dict of crossattn and vector."""
        context = prompt_parser.encode_batch(list(prompts), self.shape.context_dim).to(devices.device)
        if not self.is_sdxl:
            return context
        names = [f"{text}|{prompts.width}x{prompts.height}" for text in prompts]
        pooled = prompt_parser.encode_batch(names, self.shape.label_dim)[:, 1:-1].mean(dim=1)
        return {"crossattn": context, "vector": pooled.to(devices.device)}

    def encode_first_stage(self, x: torch.Tensor):
        """Pixels in -1..1 to the VAE's answer."""
        return self.forge_objects.vae.first_stage_model.encode(x)

    def get_first_stage_encoding(self, moments):
        """The latent of the VAE's answer."""
        return moments.mode() if hasattr(moments, "mode") else moments

    def decode_first_stage(self, z: torch.Tensor):
        """Latents to pixels in -1..1."""
        return self.forge_objects.vae.first_stage_model.decode(z)
