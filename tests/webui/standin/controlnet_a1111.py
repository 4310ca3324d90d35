"""sd-webui-controlnet on the stand-in, as far as another extension can see it; `install` puts it before ours.

Observed on 1.1.455: units are read in `process`, an exception there drops them all; the UNet's forward is replaced on
the instance; an IdentityNet wants an ip-adapter before it; kinds are told by the files' paths; models stay in a cache;
the maps are appended to the results. Left out: preprocessors, and the marks of prompt and negative rows, which our
units do not use.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MethodType, ModuleType, SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lib_ipadapter.core.identity_net import load_identity_net
from lib_ipadapter.library.controlnets import read_controlnet
from lib_ipadapter.library.errors import AdapterFileError
from tests.residual_hooks import add_residuals

API = "internal_controlnet.external_code"
SLOTS = 3


class ControlModelType(Enum):
    """What a model file is."""

    ControlNet = "ControlNet"
    IPAdapter = "IPAdapter"
    InstantID = "InstantID"


@dataclass(eq=False)
class ControlNetUnit:
    """One unit; programs send dicts with the same keys."""

    enabled: bool = False
    module: str = "none"
    model: str = "None"
    weight: float = 1.0
    image: Any = None
    resize_mode: str = "Crop and Resize"
    inpaint_crop_input_image: bool = True
    save_detected_map: bool = True
    ipadapter_input: Any = None

    def serialize(self) -> str:
        """For the infotext."""
        return f"Module: {self.module}, Model: {self.model}, Weight: {self.weight}"


class ImageEmbed(NamedTuple):
    """Tokens of prompt and negative rows."""

    cond_emb: Tensor
    uncond_emb: Tensor

    def eval(self, cond_mark: Tensor) -> Tensor:
        """Rows by their marks, which the stand-in's are all prompt."""
        return self.cond_emb.expand(cond_mark.shape[0], -1, -1)


class ControlParams:
    """What the UNet's replaced forward reads of a unit."""

    def __init__(self, kind: ControlModelType, model: Any, unit: ControlNetUnit, hints: tuple[Any, Any]) -> None:
        self.control_model_type, self.control_model = kind, model
        self._hint_cond, self.hr_hint_cond = hints
        self.used_hint_cond: Any = None
        self.weight = unit.weight
        self.guidance_stopped = self.soft_injection = self.cfg_injection = False
        self.advanced_weighting = self.effective_region_mask = None
        self.control_context_override: Any = None

    @property
    def hint_cond(self) -> Any:
        return self._hint_cond

    @hint_cond.setter
    def hint_cond(self, hint: Any) -> None:
        self._hint_cond, self.used_hint_cond = hint, None

    def hint_for(self, x: Tensor) -> Tensor:
        """The first pass's map, or that of the hires pass where its size is nearer."""
        if self.used_hint_cond is None:
            self.used_hint_cond = self.hint_cond
        if self.hr_hint_cond is not None:
            height = 8 * x.shape[-2]
            low, high = (abs(height - hint.shape[-2]) for hint in (self.hint_cond, self.hr_hint_cond))
            self.used_hint_cond = self.hint_cond if low < high else self.hr_hint_cond
        return self.used_hint_cond


class UnetHook:
    """The extension at the UNet."""

    def __init__(self, model: nn.Module, params: list[ControlParams]) -> None:
        self.model, self.control_params = model, params
        original = model.forward

        def forward(unet: Any, x: Tensor, timesteps: Any, context: Any = None, y: Any = None, **more: Any) -> Any:
            handles = []
            for param in self.control_params:
                if param.guidance_stopped or param.control_model_type is ControlModelType.IPAdapter:
                    continue
                text = context
                if param.control_model_type is ControlModelType.InstantID:
                    assert isinstance(param.control_context_override, ImageEmbed)
                    text = param.control_context_override.eval(torch.ones(x.shape[0], 1, 1, 1))
                net = param.control_model.control_model
                hint = net.embed_hint(param.hint_for(x))
                down, mid = net(x, timesteps, text, hint, y, strength=param.weight)
                handles += add_residuals(unet, down, mid)
            try:
                return original(x, timesteps, context=context, y=y, **more)
            finally:
                for handle in handles:
                    handle.remove()

        self._before = model.__dict__.get("forward")
        model.forward = MethodType(forward, model)  # type: ignore[method-assign]

    def restore(self) -> None:
        """Leave the UNet; may be called again. (The real one leaves the bound method on the instance.)"""
        if self.control_params is not None:
            self.control_params = None  # type: ignore[assignment]
            del self.model.forward


def script_class() -> type[Any]:
    """The script's class; made late, as `modules` belongs to the host of this process."""
    from modules import scripts

    class Script(scripts.Script):
        model_cache: ClassVar[dict[str, Any]] = {}

        def __init__(self, models: dict[str, Path]) -> None:
            self.models = models
            self.latest_network: Any = None
            self.enabled_units: list[ControlNetUnit] = []
            self.detected_map: list[tuple[Any, str]] = []
            self.ui_batch_option_state = ["All ControlNet units for all images in a batch", False]

        def title(self) -> str:
            return "ControlNet"

        def show(self, is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def process(self, p: Any, *args: Any) -> None:
            if self.latest_network is not None:
                self.latest_network.restore()
            self.enabled_units = [unit for unit in map(as_unit, args) if unit.enabled]
            for number, unit in enumerate(self.enabled_units):
                p.extra_generation_params[f"ControlNet {number}"] = unit.serialize()
            if not self.enabled_units:
                self.latest_network = None
                return
            maps: list[tuple[Any, str]] = []
            params = [self._params(p, unit, maps) for unit in self.enabled_units]
            for before, param in zip([None, *params], params, strict=False):
                if param.control_model_type is ControlModelType.InstantID:
                    assert before is not None
                    assert before.control_model_type is ControlModelType.IPAdapter
                    param.control_context_override = before.control_model.image_emb
            self.latest_network = UnetHook(p.sd_model.model.diffusion_model, params)
            self.detected_map = maps

        def _params(self, p: Any, unit: ControlNetUnit, maps: list[tuple[Any, str]]) -> ControlParams:
            kind, model = self._load(unit.model)
            if unit.ipadapter_input is not None:
                return ControlParams(kind, model, unit, (unit.ipadapter_input[0], None))
            hint = torch.as_tensor(unit.image).float().permute(2, 0, 1)[None] / 255
            sizes = [(p.height, p.width)]
            if getattr(p, "enable_hr", False):
                sizes.append((int(p.height * p.hr_scale), int(p.width * p.hr_scale)))
            hints = [nn.functional.interpolate(hint, size=size) for size in sizes]
            if unit.save_detected_map:
                maps += [((one[0].permute(1, 2, 0) * 255).byte().numpy(), unit.module) for one in reversed(hints)]
            return ControlParams(kind, model, unit, (hints[0], hints[1] if len(hints) > 1 else None))

        def _load(self, name: str) -> tuple[ControlModelType, Any]:
            if name not in self.models:
                raise RuntimeError(f"model not found: {name}")
            if name not in self.model_cache:
                self.model_cache[name] = load_model(self.models[name])
            return self.model_cache[name]

        def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
            from PIL import Image

            self.enabled_units.clear()
            if self.latest_network is None:
                return
            processed.images.extend(Image.fromarray(picture) for picture, _ in self.detected_map)
            self.latest_network.restore()
            self.latest_network = None
            self.detected_map.clear()

    return Script


def as_unit(given: Any) -> ControlNetUnit:
    """A unit from a program's dict."""
    return ControlNetUnit(**given) if isinstance(given, dict) else given


def load_model(path: Path) -> tuple[ControlModelType, Any]:
    """Told apart by the path, as the extension does."""
    try:
        spec = read_controlnet(path)
    except AdapterFileError:
        return ControlModelType.IPAdapter, SimpleNamespace(image_emb=ImageEmbed(*torch.zeros(2, 1, 16, 768)))
    # The extension knows the published heads; the stand-in's UNets have 8 for SD1.5.
    net = load_identity_net(spec, path)
    kind = ControlModelType.InstantID if "instant_id" in str(path).lower() else ControlModelType.ControlNet
    return kind, SimpleNamespace(control_model=net)


def install(standin: Any, patch: Any, folders: list[Path]) -> Any:
    """Put the extension into the txt2img and img2img tabs of a running host, with every model in `folders`."""
    from modules import scripts

    files = [file for folder in folders for file in folder.glob("*.safetensors")]
    models = {f"{file.stem} [{len(file.name):08x}]": file for file in files}
    made = script_class()
    found = []
    for runner, defaults in (
        (scripts.scripts_txt2img, "default_script_arg_txt2img"), (scripts.scripts_img2img, "default_script_arg_img2img")
    ):  # fmt: skip
        script = made(models)
        script.name, script.alwayson, script.filename = "controlnet", True, __file__
        args = getattr(standin.api, defaults)
        script.args_from, script.args_to = len(args), len(args) + SLOTS
        patch.setattr(standin.api, defaults, [*args, *(ControlNetUnit() for _ in range(SLOTS))])
        patch.setattr(runner, "alwayson_scripts", [script, *runner.alwayson_scripts])
        patch.setattr(runner, "scripts", [script, *runner.scripts])
        found.append(script)
    patch.setitem(sys.modules, API, external_code(models))
    return found[0]


def external_code(models: dict[str, Path]) -> ModuleType:
    """The external API."""
    api = ModuleType(API)

    def find_cn_script(runner: Any) -> Any:
        return next((one for one in runner.alwayson_scripts if one.title().lower() == "controlnet"), None)

    def update_cn_script_in_processing(p: Any, units: list[Any]) -> None:
        script = find_cn_script(p.scripts)
        args = list(p.script_args)
        assert len(units) == script.args_to - script.args_from, "more units shift the other scripts' arguments"
        args[script.args_from : script.args_to] = units
        p.script_args = type(p.script_args)(args)

    api.__dict__.update(
        ControlNetUnit=ControlNetUnit,
        find_cn_script=find_cn_script,
        update_cn_script_in_processing=update_cn_script_in_processing,
        get_max_models_num=lambda: SLOTS,
        get_models=lambda update=False: list(models),
        global_state=SimpleNamespace(cn_models={"None": None, **models}),
    )
    return api
