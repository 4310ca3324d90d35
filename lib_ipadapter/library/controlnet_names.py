"""ldm's names of a ControlNet's tensors in diffusers' words; `controlnets` asks for each name of an ldm-layout file.

ldm numbers the blocks through (`input_blocks.4.0`), diffusers nests them (`down_blocks.1.resnets.0`); with two residual
blocks and a halving per level, block n is the (n - 1) mod 3rd of level (n - 1) // 3. Names: ldm `UNetModel` and cldm's
`ControlNet`, diffusers `ControlNetModel`.
"""

from __future__ import annotations

import re

_FIRST = {
    "time_embed.0.": "time_embedding.linear_1.",
    "time_embed.2.": "time_embedding.linear_2.",
    "label_emb.0.0.": "add_embedding.linear_1.",
    "label_emb.0.2.": "add_embedding.linear_2.",
    "input_blocks.0.0.": "conv_in.",
    "middle_block.0.": "mid_block.resnets.0.",
    "middle_block.1.": "mid_block.attentions.0.",
    "middle_block.2.": "mid_block.resnets.1.",
    "middle_block_out.0.": "controlnet_mid_block.",
    "input_hint_block.0.": "controlnet_cond_embedding.conv_in.",
    "input_hint_block.14.": "controlnet_cond_embedding.conv_out.",
}
_RESNET = {
    "in_layers.0.": "norm1.",
    "in_layers.2.": "conv1.",
    "emb_layers.1.": "time_emb_proj.",
    "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.",
    "skip_connection.": "conv_shortcut.",
}
_BLOCK = re.compile(r"input_blocks\.(\d{1,2})\.([01])\.(.+)", re.DOTALL)
_HINT = re.compile(r"input_hint_block\.(\d{1,2})\.(weight|bias)")
_ZERO = re.compile(r"zero_convs\.(\d{1,2})\.0\.(weight|bias)")


def ldm_to_diffusers(name: str) -> str:
    """diffusers' name of an ldm ControlNet's tensor; a name that ldm does not have comes back as it is."""
    for old, new in _FIRST.items():
        if name.startswith(old):
            return new + _inside(name[len(old) :])
    if match := _HINT.fullmatch(name):
        return f"controlnet_cond_embedding.blocks.{int(match[1]) // 2 - 1}.{match[2]}"
    if match := _ZERO.fullmatch(name):
        return f"controlnet_down_blocks.{match[1]}.{match[2]}"
    match = _BLOCK.fullmatch(name)
    if match is None:
        return name
    level, place = divmod(int(match[1]) - 1, 3)
    rest = match[3]
    if place == 2:
        return f"down_blocks.{level}.downsamplers.0.{rest.replace('op.', 'conv.', 1)}"
    kind = "attentions" if match[2] == "1" else "resnets"
    return f"down_blocks.{level}.{kind}.{place}.{_inside(rest)}"


def _inside(rest: str) -> str:
    for old, new in _RESNET.items():
        if rest.startswith(old):
            return new + rest[len(old) :]
    return rest
