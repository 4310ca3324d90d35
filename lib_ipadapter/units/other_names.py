"""Keys that are no field of a unit: which field was meant. `unit` asks when a program sends one."""

from __future__ import annotations

from .field_spec import did_you_mean, shown
from .fields import FIELDS_BY_NAME

OTHER_NAMES = {
    "image": "images",
    "input_image": "images",
    "references": "images",
    "model": "adapter",
    "scale": "weight",
    "strength": "weight",
    "start_at": "start",
    "guidance_start": "start",
    "end_at": "end",
    "guidance_end": "end",
    "resize_mode": "crop",
    "combine_embeds": "combine",
    "weight_type": "intent",
    "negative": "uncond",
    "noise": "uncond_noise",
    "face_index": "face",
    "guidance_rescale": "cfg_rescale",
    "rescale_cfg": "cfg_rescale",
    "lora_weight": "lora",
    "lora_strength": "lora",
    "shortcut_scale": "s_scale",
    "weight_v2": "s_scale",
    "identity_score": "score",
    "mask": "region",
    "effective_region_mask": "region",
    "ip_adapter_masks": "region",
    "attn_mask": "region",
    "controlnet": "identity_net",
    "controlnet_conditioning_scale": "net_weight",
    "net_strength": "net_weight",
    "kps": "keypoints",
    "pose_image": "pose",
    "image_kps": "pose",
}
"""What people who know ControlNet's, Comfy's or diffusers' names write first: our field."""


def unknown_key(key: object) -> str:
    """What is wrong with a key of a unit's dict that is no field, with the field that was probably meant."""
    if not isinstance(key, str):
        return f"the key {shown(key)} is not a string; the keys are {', '.join(FIELDS_BY_NAME)}."
    other = OTHER_NAMES.get(key.lower())
    hint = f" Did you mean {other}?" if other else did_you_mean(key, FIELDS_BY_NAME)
    return f"there is no field {shown(key)}.{hint} The fields are {', '.join(FIELDS_BY_NAME)}."
