"""Files that are not a usable IP-Adapter, told by a tensor name each; `detection` asks the rows in their order.

The order matters, the first hit wins: a ControlNet also has `input_blocks`, a full checkpoint also holds encoders.
Patterns are searched in all names at once, one per line; `also` must be found as well. Names are hostile text: a
pattern may have one part of free length, since two of them that can trade characters take quadratic time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from .spec import Status


class Row(NamedTuple):
    """One kind of file: the names that give it away and what to tell its owner."""

    pattern: str
    status: Status
    sentence: str
    kind: str = ""
    base: str = ""
    also: str = ""
    variant: str = ""


# Relatives of IP-Adapter whose tensors have other names.
FAMILIES = (
    Row(
        r"^double_blocks\.\d+\.processor\.ip_adapter_double_stream_",
        "unsupported",
        "An XLabs IP-Adapter for Flux; it needs a Flux pipeline, here SD1, SD2 and SDXL adapters work.",
        base="Flux",
    ),
    Row(
        r"^image_proj_(?:proj|norm|model_proj)|^ip_adapter_\d+",
        "unsupported",
        "An InstantX IP-Adapter for Flux; it needs a Flux pipeline, here SD1, SD2 and SDXL adapters work.",
        base="Flux",
    ),
    Row(
        r"^(?:module\.)?id_adapter(?:_attn_layers)?\.",
        "unsupported",
        "A PuLID file; it needs its own face encoder (EVA02-CLIP) and is not supported.",
        base="SDXL",
    ),
    Row(
        r"^(?:module\.)?pulid_(?:ca|encoder)\.",
        "unsupported",
        "A PuLID file for Flux; it needs a Flux pipeline and its own face encoder (EVA02-CLIP) and is not supported.",
        base="Flux",
    ),
    Row(
        r"^id_encoder\.",
        "unsupported",
        "A PhotoMaker file; it edits the prompt's embedding and is not an IP-Adapter.",
        base="SDXL",
        also=r"^lora_weights\.",
    ),
    Row(
        r"^(?:\w+\.)?content_image_proj\.",
        "unsupported",
        "A CSGO file (two projectors and a ControlNet); use an IP-Adapter instead.",
        base="SDXL",
    ),
    Row(
        r"\.processor\.to_[kv]_ip\.\d+\.weight$|^encoder_hid_proj\.image_projection_layers\.",
        "unsupported",
        "A diffusers UNet saved with an IP-Adapter inside; use the original adapter file.",
    ),
)

OTHER_FILES = (
    Row(r"^lllite_", "not_adapter", "A ControlLLLite file; it belongs to the ControlNet extension."),
    Row(
        r"^lora_controlnet$",
        "not_adapter",
        "A Control-LoRA; it belongs to the ControlNet extension.",
        kind="controlnet",
        variant="control-lora",
    ),
    Row(
        r"^(?:control_model\.|input_hint_block\.|zero_convs\.)",
        "not_adapter",
        "A ControlNet (ldm layout); it belongs to the ControlNet extension.",
        kind="controlnet",
    ),
    Row(
        r"^(?:controlnet_cond_embedding\.|controlnet_down_blocks\.)",
        "not_adapter",
        "A ControlNet (diffusers layout); it belongs to the ControlNet extension.",
        kind="controlnet",
    ),
    Row(
        r"^down_blocks_\d.*_attn[12]_(?:q|k|v|out)_proj\.lora_(?:down|up)\.weight$",
        "unsupported",
        "An early, broken upload of the FaceID SDXL LoRA (its names lack lora_unet_); download it again.",
        kind="lora",
        base="SDXL",
    ),
    Row(
        r"^lora_(?:unet|te\d?)_|\.lora_(?:up|down|A|B)\b|[._]lora(?:_linear_layer)?\.(?:up|down)\.|\.hada_w1|\.lokr_w1",
        "not_adapter",
        "A LoRA; put it in models/Lora and call it from the prompt.",
        kind="lora",
    ),
    Row(
        r"^(?:model\.diffusion_model\.|first_stage_model\.|conditioner\.embedders\.|cond_stage_model\.)",
        "not_adapter",
        "A full checkpoint; put it in models/Stable-diffusion.",
    ),
    Row(r"^(?:diffusion_model\.)?(?:input_blocks|joint_blocks|double_blocks|single_blocks)\.", "not_adapter",
        "A diffusion model's UNet or transformer, not an adapter; put it with the checkpoints."),
    Row(r"^conv_in\.", "not_adapter", "A UNet in diffusers layout, not an adapter; put it with the checkpoints.",
        also=r"^down_blocks\.\d+\.(?:attentions|resnets)\.0\.(?:transformer_blocks|time_emb_proj)"),
    Row(r"^(?:encoder|decoder)\.(?:conv_in|mid|down|up)", "not_adapter", "A VAE; put it in models/VAE."),
    Row(r"^(?:adapter\.body\.|body\.\d+\.)", "not_adapter",
        "A T2I-Adapter; it belongs to the ControlNet extension."),
    Row(r"^(?:style_embedding|transformer_layes\.)", "not_adapter",
        "A T2I style adapter; it belongs to the ControlNet extension."),
    Row(r"(?:^|\.)vision_model\.|(?:^|\.)visual\.", "not_adapter", "A vision encoder.", kind="vision_encoder"),
    Row(r"(?:^|\.)text_model\.|^(?:encoder\.block|shared)\.|^token_embedding\.", "not_adapter",
        "A text encoder; put it in models/text_encoder."),
    Row(r"^string_to_param|^clip_[lg]$|^emb_params$", "not_adapter",
        "A textual inversion embedding; put it in embeddings."),
    Row(r"^(?:model\.\d+\.|params_ema\.|params\.|conv_first\.)", "not_adapter",
        "An upscaler; put it in models/ESRGAN."),
)  # fmt: skip


def first_hit(rows: Iterable[Row], names: str) -> Row | None:
    """Find the first row whose pattern is in `names`, a text of one tensor name per line."""
    for row in rows:
        if re.search(row.pattern, names, re.MULTILINE) and (not row.also or re.search(row.also, names, re.MULTILINE)):
            return row
    return None


class Relative(NamedTuple):
    """A family that shares IP-Adapter's prefixes: the part it shows in and the name that gives it away.

    Without a `base` it exists for several, and the width of the attention's context tells.
    """

    part: str  # "projector" or "attention"
    pattern: str
    sentence: str
    base: str = ""


RELATIVES = (
    Relative("attention", r"\.norm_(?:ip|q|k)\b|\.norm_(?:ip|q|k)\.",
             "An IP-Adapter for SD3.5; it needs an SD3.5 pipeline, here SD1, SD2 and SDXL adapters work.", "SD3.5"),
    Relative("projector", r"^time_embedding\.",
             "An IP-Adapter for SD3.5; it needs an SD3.5 pipeline, here SD1, SD2 and SDXL adapters work.", "SD3.5"),
    Relative("projector", r"proj_new_input|new_input_layers",
             "IP-Adapter-Instruct, which takes a text instruction beside the picture; use a plain IP-Adapter."),
    Relative("attention", r"\.ln_k_ip\b", "InstantIR, a restoration adapter with its own pipeline; not supported.",
             "SDXL"),
    Relative("projector", r"^(?:id_embedding_)?mapping_|^body\.",
             "A PuLID file; it needs its own face encoder (EVA02-CLIP) and is not supported.", "SDXL"),
    # Three digits alone would also hit SDXL's own ids 101 to 139.
    Relative("attention", r"^0\d\d\.",
             "An IP-Adapter converted for refiners; use the original .safetensors or .bin file."),
    Relative("projector", r"^Linear\.|^LayerNorm\.",
             "An IP-Adapter converted for refiners; use the original .safetensors or .bin file."),
    Relative("projector", r"^image_embeds\.|^ff\.net|\.ln0\.|\.attn\.to_k\.|^image_projection_layers\.",
             "An IP-Adapter converted by diffusers; use the original .safetensors or .bin file."),
)  # fmt: skip
