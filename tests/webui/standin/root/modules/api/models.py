"""Shapes of the API's requests and answers; they work with both major versions of pydantic."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ScriptArg(BaseModel):
    """One positional argument of a script."""

    label: str | None = None
    value: Any = None
    minimum: Any = None
    maximum: Any = None
    step: Any = None
    choices: Any = None


class ScriptInfo(BaseModel):
    """One script."""

    name: str | None = None
    is_alwayson: bool | None = None
    is_img2img: bool | None = None
    args: list[ScriptArg] = []


class GenerationRequest(BaseModel):
    """What txt2img and img2img share."""

    prompt: str | None = ""
    negative_prompt: str | None = ""
    styles: list[str] | None = None
    seed: int | None = -1
    subseed: int | None = -1
    subseed_strength: float | None = 0
    sampler_name: str | None = None
    sampler_index: str | None = "Euler"
    scheduler: str | None = None
    batch_size: int | None = 1
    n_iter: int | None = 1
    steps: int | None = 50
    cfg_scale: float | None = 7.0
    width: int | None = 512
    height: int | None = 512
    s_min_uncond: float | None = None
    override_settings: dict[str, Any] | None = None
    override_settings_restore_afterwards: bool | None = True
    refiner_checkpoint: str | None = None
    refiner_switch_at: float | None = None
    disable_extra_networks: bool | None = False
    denoising_strength: float | None = 0.75
    script_name: str | None = None
    script_args: list[Any] | None = []
    send_images: bool | None = True
    save_images: bool | None = False
    alwayson_scripts: dict[str, Any] | None = {}
    infotext: str | None = None


class Txt2ImgRequest(GenerationRequest):
    """txt2img."""

    enable_hr: bool | None = False
    firstphase_width: int | None = 0
    firstphase_height: int | None = 0
    hr_scale: float | None = 2.0
    hr_upscaler: str | None = None
    hr_second_pass_steps: int | None = 0
    hr_resize_x: int | None = 0
    hr_resize_y: int | None = 0
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: str | None = ""
    hr_negative_prompt: str | None = ""
    hr_cfg: float | None = 1.0
    hr_additional_modules: list[Any] | None = None


class Img2ImgRequest(GenerationRequest):
    """img2img."""

    init_images: list[Any] | None = None
    resize_mode: int | None = 0
    image_cfg_scale: float | None = None
    mask: str | None = None
    mask_blur: int | None = 4
    mask_round: bool | None = True
    inpainting_fill: int | None = 0
    inpaint_full_res: bool | None = True
    inpaint_full_res_padding: int | None = 0
    inpainting_mask_invert: int | None = 0
    initial_noise_multiplier: float | None = None
    include_init_images: bool | None = False


class GenerationResponse(BaseModel):
    """Pictures as base64, what was asked for, and the job's info as JSON text."""

    images: list[str] | None = None
    parameters: dict[str, Any] = {}
    info: str = ""


class PNGInfoRequest(BaseModel):
    """A picture to read."""

    image: str


class ScriptsList(BaseModel):
    """Script names per tab."""

    txt2img: list[Any] | None = None
    img2img: list[Any] | None = None


def as_dict(request: BaseModel) -> dict[str, Any]:
    """Fields of a request, shallow, with either pydantic."""
    return {name: getattr(request, name) for name in request.__fields__}


def set_fields(request: BaseModel) -> set[str]:
    """Names that the client sent, with either pydantic."""
    return set(getattr(request, "model_fields_set", None) or getattr(request, "__fields_set__", ()))
