"""A test UNet's twin in diffusers, and a ControlNet's: the same weights under diffusers' names, for parity
tests and the bench.

Names follow the two code bases: ldm `UNetModel` numbers blocks through, diffusers `UNet2DConditionModel` nests them
(`down_blocks.b.resnets.a` is `input_blocks.{1 + 3b + a}.0`).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from lib_ipadapter.library.spec import ControlNetSpec
from tests.core.random_controlnets import as_published
from tests.unets import SDXLUNet

_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def diffusers_twin(unet: UNetModel) -> UNet2DConditionModel:
    """diffusers' UNet with the layout and the weights of one of `tests.unets`."""
    twin = UNet2DConditionModel(**twin_options(unet)).eval().requires_grad_(False)
    twin.load_state_dict({diffusers_name(key): tensor for key, tensor in unet.state_dict().items()}, strict=True)
    return twin


def twin_options(unet: UNetModel) -> dict[str, Any]:
    """What diffusers calls the layout of one of `tests.unets`; the UNet may be on the meta device."""
    widths = [unet.model_channels * mult for mult in unet.channel_mult]
    xl = isinstance(unet, SDXLUNet)
    attention = next(m for n, m in unet.named_modules() if n.endswith("attn2"))
    head_dim = unet.num_head_channels
    options: dict[str, Any] = {
        "in_channels": unet.in_channels,
        "block_out_channels": widths,
        "cross_attention_dim": attention.to_k.in_features,
        # diffusers' name is historical: it is the number of heads.
        "attention_head_dim": 8 if head_dim == -1 else [width // head_dim for width in widths],
        "use_linear_projection": any(getattr(m, "use_linear", False) for m in unet.modules()),
    }
    if xl:
        depths = [_depth(unet.input_blocks[1 + 3 * level]) for level in range(len(widths))]
        names = ["CrossAttn" if depth else "" for depth in depths]
        options |= {
            "down_block_types": [f"{name}DownBlock2D" for name in names],
            "up_block_types": [f"{name}UpBlock2D" for name in reversed(names)],
            "transformer_layers_per_block": [depth or 1 for depth in depths],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": unet.label_emb[0][0].in_features,
        }
    return options


def diffusers_inputs(twin: UNet2DConditionModel, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """The twin's arguments for one call of ldm's UNet. SDXL's `y` has to be made by `sdxl_condition`."""
    converted: dict[str, Any] = {
        "sample": inputs["x"],
        "timestep": inputs["timesteps"],
        "encoder_hidden_states": inputs["context"],
        "added_cond_kwargs": {},
    }
    if "y" in inputs:
        split = inputs["y"].shape[1] - 6 * twin.config["addition_time_embed_dim"]
        time_ids = torch.tensor(_TIME_IDS).repeat(len(inputs["y"]), 1)
        converted["added_cond_kwargs"] = {"text_embeds": inputs["y"][:, :split], "time_ids": time_ids}
    return converted


def sdxl_condition(twin: UNet2DConditionModel, y: Tensor) -> Tensor:
    """`y` `(rows, dim)` with its last part replaced by the embedding of sizes that `diffusers_inputs` states."""
    sizes = twin.add_time_proj(torch.tensor(_TIME_IDS)).flatten()
    return torch.cat([y[:, : -len(sizes)], sizes.repeat(len(y), 1)], dim=1)


_TIME_IDS = [512.0, 768.0, 0.0, 64.0, 1024.0, 896.0]


def diffusers_controlnet(
    spec: ControlNetSpec, tensors: dict[str, Tensor], size_width: int = 8, *, shared: bool = False
) -> ControlNetModel:
    """diffusers' ControlNet of these sizes and weights, whose memory it shares if `shared`.

    `size_width` is how wide it makes the embedding of each number in `time_ids`.
    """
    names = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in spec.depths]
    options: dict[str, Any] = {}
    if spec.y_dim:
        options = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": size_width,
            "projection_class_embeddings_input_dim": spec.y_dim,
        }
    with torch.device("meta" if shared else "cpu"):
        net = ControlNetModel(
            down_block_types=names,
            block_out_channels=spec.channels,
            cross_attention_dim=spec.context_dim,
            attention_head_dim=spec.heads,  # historical: the number of heads
            transformer_layers_per_block=[depth or spec.mid_depth for depth in spec.depths],
            use_linear_projection=spec.context_dim != 768,
            conditioning_embedding_out_channels=spec.hint_widths,
            **options,
        )
    net.load_state_dict(as_published(spec, tensors), strict=True, assign=shared)
    return net.eval().requires_grad_(False)


def diffusers_name(key: str) -> str:
    """diffusers' name of an ldm UNet's weight."""
    for old, new in _TOP.items():
        if key.startswith(f"{old}."):
            return new + _inside(key.removeprefix(old))
    match = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d+)(\..+)", key)
    assert match, key
    number, child, rest = int(match[2]), int(match[3]), match[4]
    side, (block, place) = ("down", divmod(number - 1, 3)) if match[1] == "input" else ("up", divmod(number, 3))
    if rest.startswith(".op."):
        return f"down_blocks.{block}.downsamplers.0.conv.{rest.removeprefix('.op.')}"
    if rest.startswith(".conv."):
        return f"up_blocks.{block}.upsamplers.0{rest}"
    return f"{side}_blocks.{block}.{'attentions' if child else 'resnets'}.{place}{_inside(rest)}"


def _inside(rest: str) -> str:
    for old, new in _RESNET.items():
        if rest.startswith(f".{old}."):
            return f".{new}{rest.removeprefix(f'.{old}')}"
    return rest


def _depth(block: Any) -> int:
    return next((len(child.transformer_blocks) for child in block if hasattr(child, "transformer_blocks")), 0)
