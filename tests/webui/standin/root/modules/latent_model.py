"""`shared.sd_model`: the UNet, the text conditioning and the VAE of one checkpoint, as A1111's names have them."""

from __future__ import annotations

import torch
from modules import devices, prompt_parser, sd_unet
from modules.toy_vae import ToyVAE

from tests.webui.standin.nets import UNetShape, build_unet


def alphas_cumprod() -> torch.Tensor:
    """Stable Diffusion's schedule: 1000 betas, linear in their square roots from 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, dim=0).float()


class SwitchableUNet:
    """Mixed into the UNet's class: an active alternative UNet answers instead, as the host's class patch does."""

    def forward(self, x, timesteps=None, context=None, *args, **kwargs):
        """The alternative UNet's answer while one is active."""
        if sd_unet.current_unet is not None:
            return sd_unet.current_unet.forward(x, timesteps, context, *args, **kwargs)
        return super().forward(x, timesteps, context, *args, **kwargs)  # pyright: ignore


def build(shape: UNetShape) -> torch.nn.Module:
    """The UNet with the switch in it; its class keeps the ldm name."""
    net = build_unet(shape)
    net.__class__ = type(type(net).__name__, (SwitchableUNet, type(net)), {})
    return net.eval().requires_grad_(False)


class DiffusionWrapper(torch.nn.Module):
    """Calls the UNet with what a checkpoint's kind wants: `context=`, `y=`, or more input channels."""

    def __init__(self, diffusion_model: torch.nn.Module, conditioning_key: str):
        super().__init__()
        self.diffusion_model = diffusion_model
        self.conditioning_key = conditioning_key

    def forward(self, x, t, cond: dict):
        """Predict the noise; `cond` is `c_crossattn` and `c_concat` lists, or SDXL's crossattn and vector."""
        if self.conditioning_key == "hybrid":
            x = torch.cat([x, *cond["c_concat"]], dim=1)
        x = x.to(devices.dtype_unet)
        if "crossattn" in cond:
            return self.diffusion_model(x, timesteps=t, context=cond["crossattn"].to(x.dtype),
                                        y=cond["vector"].to(x.dtype))
        return self.diffusion_model(x, t, context=torch.cat(cond["c_crossattn"], dim=1).to(x.dtype))


class LatentModel(torch.nn.Module):
    """One loaded checkpoint."""

    def __init__(self, shape: UNetShape):
        super().__init__()
        self.shape = shape
        self.is_sdxl = shape.kind == "sdxl"
        self.is_sd1 = not self.is_sdxl and shape.context_dim == 768
        self.is_sd2 = not self.is_sdxl and shape.context_dim == 1024
        self.is_sd3 = self.is_ssd = self.is_sdxl_inpaint = False
        self.cond_stage_key = "edit" if shape.in_channels == 8 else "txt"
        self.model = DiffusionWrapper(build(shape), "hybrid" if shape.in_channels > 4 else "crossattn")
        self.first_stage_model = ToyVAE()
        self.parameterization = "eps"
        self.lowvram = False
        self.latent_channels = 4
        self.register_buffer("alphas_cumprod", alphas_cumprod(), persistent=False)
        self.sd_checkpoint_info = None
        self.sd_model_hash = None
        self.filename = None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the UNet's weights."""
        return next(self.model.diffusion_model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the UNet's weights."""
        return next(self.model.diffusion_model.parameters()).device

    @property
    def cond_stage_model_empty_prompt(self) -> torch.Tensor:
        """Embedding of the empty prompt, `(1, 77, width)`."""
        return prompt_parser.encode_batch([""], self.shape.context_dim).to(devices.device)

    def get_learned_conditioning(self, prompts):
        """Rows `(b, seq, width)`; for SDXL a dict of crossattn and vector."""
        context = prompt_parser.encode_batch(list(prompts), self.shape.context_dim).to(devices.device)
        if not self.is_sdxl:
            return context
        names = [f"{text}|{prompts.width}x{prompts.height}" for text in prompts]
        pooled = prompt_parser.encode_batch(names, self.shape.label_dim)[:, 1:-1].mean(dim=1)
        return {"crossattn": context, "vector": pooled.to(devices.device)}

    def apply_model(self, x, t, cond: dict):
        """The UNet's prediction, in the latent's dtype."""
        return self.model(x, t, cond).to(x.dtype)

    def encode_first_stage(self, x):
        """Pixels in -1..1 to the VAE's answer."""
        return self.first_stage_model.encode(x)

    def get_first_stage_encoding(self, moments):
        """The latent of the VAE's answer."""
        return moments.mode() if hasattr(moments, "mode") else moments

    def decode_first_stage(self, z):
        """Latents to pixels in -1..1."""
        return self.first_stage_model.decode(z)
