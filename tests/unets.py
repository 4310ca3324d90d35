"""Test UNets with real layouts: ldm's own `UNetModel`, narrow, with random weights that let every layer speak.

SD1 and SD2 are the class as it is; ldm has no SDXL, so `SDXLUNet` gives it transformer depths per level and a label
embedding, from ldm's own blocks. `tests/parity` proves both against diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from ldm.modules import attention as ldm_attention
from ldm.modules.diffusionmodules.openaimodel import TimestepEmbedSequential, UNetModel
from ldm.modules.diffusionmodules.util import GroupNorm32
from torch import Tensor, nn

SDXL_DEPTHS = {2: 2, 4: 10}
"""Transformer depth by downsampling factor; the middle block has the last one's."""


class DeepSpatialTransformer(ldm_attention.SpatialTransformer):
    """ldm's transformer with several blocks that share one context."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x, context=[context] * len(self.transformer_blocks))


class SDXLUNet(UNetModel):
    """SDXL's layout: depth 2 and 10 at the second and third level, none at the first, a vector condition `y`."""

    def __init__(self, *, label_dim: int, depths: dict[int, int], **options: Any) -> None:
        super().__init__(**options, attention_resolutions=list(depths), use_spatial_transformer=True, legacy=False)
        self.num_classes = "sequential"
        width = self.model_channels * 4
        self.label_emb = nn.Sequential(nn.Sequential(nn.Linear(label_dim, width), nn.SiLU(), nn.Linear(width, width)))
        by_mult = {self.channel_mult[int(math.log2(factor))]: depth for factor, depth in depths.items()}
        for block in (*self.input_blocks, self.middle_block, *self.output_blocks):
            self._deepen(block, by_mult, options)

    def _deepen(self, block: TimestepEmbedSequential, by_mult: dict[int, int], options: dict[str, Any]) -> None:
        for place, child in enumerate(block):
            if isinstance(child, ldm_attention.SpatialTransformer):
                depth = by_mult[child.in_channels // self.model_channels]
                head = options["num_head_channels"]
                block[place] = DeepSpatialTransformer(
                    child.in_channels,
                    child.in_channels // head,
                    head,
                    depth=depth,
                    context_dim=[options["context_dim"]] * depth,
                    use_linear=True,
                    use_checkpoint=False,
                )


def sd15_unet(
    model_channels: int = 32,
    *,
    context_dim: int = 768,
    in_channels: int = 4,
    seed: int = 0,
    channel_mult: Sequence[int] = (1, 2, 4, 4),
    **options: Any,
) -> UNetModel:
    """SD1.5's layout: 16 `attn2`, 8 heads; 9 input channels make an inpainting UNet, 8 an InstructPix2Pix one."""
    heads = {} if "num_head_channels" in options else {"num_heads": 8}
    return _speaking(
        lambda: UNetModel(
            image_size=32,
            in_channels=in_channels,
            out_channels=4,
            model_channels=model_channels,
            num_res_blocks=2,
            attention_resolutions=[4, 2, 1],
            channel_mult=tuple(channel_mult),
            use_spatial_transformer=True,
            transformer_depth=1,
            context_dim=context_dim,
            use_checkpoint=False,
            legacy=False,
            **heads,
            **options,
        ),
        seed,
    )


def sd2_unet(model_channels: int = 32, *, in_channels: int = 4, seed: int = 0, head_dim: int = 8) -> UNetModel:
    """SD2's layout: SD1.5's with context 1024, a fixed head width and linear projections."""
    return sd15_unet(
        model_channels,
        context_dim=1024,
        in_channels=in_channels,
        seed=seed,
        num_head_channels=head_dim,
        use_linear_in_transformer=True,
    )


def sdxl_unet(
    model_channels: int = 32,
    *,
    context_dim: int = 2048,
    in_channels: int = 4,
    seed: int = 0,
    label_dim: int = 2816,
    head_dim: int = 16,
    depths: dict[int, int] | None = None,
) -> SDXLUNet:
    """SDXL's layout: 70 `attn2`; called with `y` of shape `(rows, label_dim)`."""
    return _speaking(
        lambda: SDXLUNet(
            label_dim=label_dim,
            depths=depths or SDXL_DEPTHS,
            image_size=32,
            in_channels=in_channels,
            out_channels=4,
            model_channels=model_channels,
            num_res_blocks=2,
            channel_mult=(1, 2, 4),
            num_head_channels=head_dim,
            transformer_depth=1,
            context_dim=context_dim,
            use_checkpoint=False,
            use_linear_in_transformer=True,
        ),
        seed,
    )


def unet_inputs(unet: UNetModel, rows: int = 2, size: int = 16, length: int = 77, seed: int = 1) -> dict[str, Tensor]:
    """Random keyword arguments for one call: latents `(rows, c, size, size)`, context `(rows, length, dim)`, `y`.

    Every row differs, so that a mixed-up row shows.
    """
    generator = torch.Generator().manual_seed(seed)
    context_dim = next(m for n, m in unet.named_modules() if n.endswith("attn2.to_k")).in_features
    inputs = {
        "x": torch.randn(rows, unet.in_channels, size, size, generator=generator),
        "timesteps": torch.full((rows,), 500.0),
        "context": torch.randn(rows, length, context_dim, generator=generator),
    }
    if isinstance(unet, SDXLUNet):
        inputs["y"] = torch.randn(rows, unet.label_emb[0][0].in_features, generator=generator)
    return inputs


class FittingCat:
    """`torch` for ldm's UNet, whose `cat` stretches a tensor to its partner's size: sizes in steps of 8 work."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def cat(self, tensors: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Concatenate; of two maps of different size the first is stretched (nearest), as the hosts do."""
        if len(tensors) == 2 and tensors[0].shape[-2:] != tensors[1].shape[-2:]:
            first, second = tensors
            tensors = (nn.functional.interpolate(first, second.shape[-2:], mode="nearest"), second)
        return torch.cat(tensors, *args, **kwargs)


def _speaking(build: Any, seed: int) -> Any:
    """Build with a seed of its own; layers that ldm starts at zero get random weights, or differences stay hidden."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = build().eval().requires_grad_(False)
        for parameter in unet.parameters():
            if parameter.ndim > 1 and not parameter.is_meta and not parameter.any():
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return unet


def cast_unet(unet: UNetModel, dtype: torch.dtype) -> UNetModel:
    """Run the whole UNet in half precision, as the hosts do; ldm alone keeps norms and time embedding in float32.

    Its attention has to be replaced too (`tests.attention_forwards`): ldm's own mixes precisions.
    """
    for module in unet.modules():
        if isinstance(module, GroupNorm32):
            module.__class__ = nn.GroupNorm
    unet.time_embed.register_forward_pre_hook(lambda _module, args: (args[0].to(dtype),))
    unet.dtype = dtype
    return unet.to(dtype)
