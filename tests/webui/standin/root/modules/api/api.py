"""The HTTP API: positional script arguments, base64 pictures, errors by the attributes of an exception."""

from __future__ import annotations

import base64
import dataclasses
import io
from contextlib import closing
from secrets import compare_digest
from threading import Lock
from typing import Any

import gradio as gr
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import HTTPException
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from modules import errors, images, infotext_utils, scripts, sd_models, sd_samplers, shared
from modules.api import models
from modules.processing import (
    StableDiffusionProcessingImg2Img,
    StableDiffusionProcessingTxt2Img,
    process_images,
)
from modules.shared import opts
from PIL import Image, PngImagePlugin

from tests.webui.standin import launching


def decode_base64_to_image(encoding: str) -> Image.Image:
    """A picture from base64 or a data URI; addresses are refused here, the stand-in has no network."""
    if encoding.startswith(("http://", "https://")):
        raise HTTPException(status_code=500, detail="Requests not allowed")
    if encoding.startswith("data:image/"):
        encoding = encoding.split(";")[1].split(",")[1]
    try:
        return images.read(io.BytesIO(base64.b64decode(encoding)))
    except Exception as error:
        raise HTTPException(status_code=500, detail="Invalid encoded image") from error


def encode_pil_to_base64(image: Image.Image) -> bytes:
    """PNG with the infotext in it, as base64."""
    meta = PngImagePlugin.PngInfo()
    for key, value in image.info.items():
        if isinstance(key, str) and isinstance(value, str):
            meta.add_text(key, value)
    with io.BytesIO() as out:
        image.save(out, format="PNG", pnginfo=meta)
        return base64.b64encode(out.getvalue())


def _shown(processed) -> list[Image.Image]:
    """The results, and behind them the arrays that scripts want shown (Forge)."""
    extra = [one if isinstance(one, Image.Image) else Image.fromarray(one) for one in processed.extra_images]
    return [*processed.images, *extra]


def script_name_to_index(name: str, scripts_list) -> int:
    """Raises: HTTPException 422 for an unknown title."""
    try:
        return [script.title().lower() for script in scripts_list].index(name.lower())
    except Exception as error:
        raise HTTPException(status_code=422, detail=f"Script '{name}' not found") from error


def handle_exception(request: Request, error: Exception) -> JSONResponse:
    """The answer for an exception: status and detail from its own attributes, as both hosts do."""
    own = vars(error)
    body = {"error": type(error).__name__, "detail": own.get("detail", ""), "body": own.get("body", ""),
            "errors": str(error)}
    if not isinstance(error, HTTPException):
        errors.report(f"API error: {request.method}: {request.url} {body}", exc_info=True)
    return JSONResponse(status_code=own.get("status_code", 500), content=jsonable_encoder(body))


def api_middleware(app: FastAPI) -> None:
    """Turn exceptions of routes into answers."""

    @app.middleware("http")
    async def exception_handling(request: Request, call_next):
        try:
            return await call_next(request)
        except Exception as error:
            return handle_exception(request, error)

    @app.exception_handler(Exception)
    async def any_exception(request: Request, error: Exception):
        return handle_exception(request, error)

    @app.exception_handler(HTTPException)
    async def http_exception(request: Request, error: HTTPException):
        return handle_exception(request, error)


class Api:
    """Routes over one app; one job at a time."""

    def __init__(self, app: FastAPI, queue_lock: Lock):
        self.credentials = dict(pair.split(":", 1) for pair in (shared.cmd_opts.api_auth or "").split(",") if pair)
        self.router = APIRouter()
        self.app = app
        self.queue_lock = queue_lock
        api_middleware(app)
        add = self.add_api_route
        add("/sdapi/v1/txt2img", self.text2imgapi, methods=["POST"], response_model=models.GenerationResponse)
        add("/sdapi/v1/img2img", self.img2imgapi, methods=["POST"], response_model=models.GenerationResponse)
        add("/sdapi/v1/png-info", self.pnginfoapi, methods=["POST"])
        add("/sdapi/v1/progress", lambda: {"progress": 0.0, "state": shared.state.dict()}, methods=["GET"])
        add("/sdapi/v1/interrupt", self.interruptapi, methods=["POST"])
        add("/sdapi/v1/skip", self.skipapi, methods=["POST"])
        add("/sdapi/v1/options", self.get_config, methods=["GET"])
        add("/sdapi/v1/options", self.set_config, methods=["POST"])
        add("/sdapi/v1/cmd-flags", lambda: vars(shared.cmd_opts), methods=["GET"])
        add("/sdapi/v1/samplers", self.get_samplers, methods=["GET"])
        add("/sdapi/v1/sd-models", self.get_sd_models, methods=["GET"])
        add("/sdapi/v1/refresh-checkpoints", self.refresh_checkpoints, methods=["POST"])
        add("/sdapi/v1/scripts", self.get_scripts_list, methods=["GET"], response_model=models.ScriptsList)
        add("/sdapi/v1/script-info", self.get_script_info, methods=["GET"], response_model=list[models.ScriptInfo])
        self.default_script_arg_txt2img = self.init_default_script_args(scripts.scripts_txt2img)
        self.default_script_arg_img2img = self.init_default_script_args(scripts.scripts_img2img)

    def add_api_route(self, path: str, endpoint, **kwargs):
        """Add a route, behind `--api-auth` when it is given."""
        if shared.cmd_opts.api_auth:
            kwargs["dependencies"] = [Depends(self.auth)]
        return self.app.add_api_route(path, endpoint, **kwargs)

    def auth(self, credentials: HTTPBasicCredentials = Depends(HTTPBasic())):  # noqa: B008 (fastapi's way)
        """Raises: HTTPException 401."""
        expected = self.credentials.get(credentials.username)
        if expected is not None and compare_digest(credentials.password, expected):
            return True
        raise HTTPException(status_code=401, detail="Incorrect username or password",
                            headers={"WWW-Authenticate": "Basic"})

    def init_default_script_args(self, runner) -> list[Any]:
        """Every script's defaults, in place; `ui()` is called twice per script for them."""
        args: list[Any] = [None] * max([1, *[script.args_to for script in runner.scripts if script.args_to]])
        args[0] = 0
        with gr.Blocks():
            for script in runner.scripts:
                if script.ui(script.is_img2img):
                    values = [component.value for component in script.ui(script.is_img2img)]
                    args[script.args_from:script.args_to] = values
        return args

    def init_script_args(self, request, defaults, selectable, runner, from_infotext) -> list[Any]:
        """Defaults, then what the infotext says, then what the request says; surplus arguments are dropped."""
        args = defaults.copy()
        for index, value in from_infotext.items():
            args[index] = value
        if selectable:
            args[selectable.args_from:selectable.args_to] = request.script_args
            args[0] = runner.selectable_scripts.index(selectable) + 1
        for name, given in (request.alwayson_scripts or {}).items():
            script = runner.scripts[script_name_to_index(name, runner.scripts)]
            if not script.alwayson:
                raise HTTPException(status_code=422,
                                    detail="Cannot have a selectable script in the always on scripts params")
            if "args" in given:
                for i in range(min(script.args_to - script.args_from, len(given["args"]))):
                    args[script.args_from + i] = given["args"][i]
        return args

    def apply_infotext(self, request, tabname: str, runner) -> dict[int, Any]:
        """Fill what the request leaves open from its `infotext`; returns script arguments by index."""
        if not request.infotext:
            return {}
        if launching.is_forge() and tabname == "txt2img":
            raise AttributeError("'FieldInfo' object has no attribute 'type_'")  # as on Forge, whatever the infotext
        params = infotext_utils.parse_generation_parameters(request.infotext)
        sent = models.set_fields(request)
        positions = {id(component): i for i, component in enumerate(runner.inputs) if component is not None}
        found: dict[int, Any] = {}
        for field in infotext_utils.paste_fields[tabname]["fields"]:
            value = field.function(params) if field.function else params.get(field.label)
            if isinstance(value, dict):
                value = value.get("value")
            if value is None:
                continue
            if id(field.component) in positions:
                kind = type(field.component.value)
                found[positions[id(field.component)]] = value if kind is type(None) else kind(value)
            elif field.api and field.api not in sent and hasattr(request, field.api):
                kind = type(getattr(request, field.api))
                setattr(request, field.api, value if kind is type(None) else kind(value))
        return found

    def _run(self, request, tabname: str, runner, defaults, kind, extra: dict[str, Any]):
        from_infotext = self.apply_infotext(request, tabname, runner)
        selectable = None
        if request.script_name:
            selectable = runner.selectable_scripts[script_name_to_index(request.script_name,
                                                                        runner.selectable_scripts)]
        sampler = request.sampler_name or request.sampler_index
        name = sd_samplers.samplers_map.get(str(sampler).lower())
        if name is None:
            raise HTTPException(status_code=400, detail="Sampler not found")
        args = self.init_script_args(request, defaults, selectable, runner, from_infotext)
        known = {field.name for field in dataclasses.fields(kind) if field.init}
        values = {key: value for key, value in models.as_dict(request).items() if key in known}
        values |= {"sampler_name": name, "do_not_save_samples": not request.save_images, **extra}
        with self.queue_lock, closing(kind(sd_model=shared.sd_model, **values)) as p:
            p.is_api = True
            p.outpath_samples = getattr(opts, f"outdir_{tabname}_samples")
            p.scripts = runner
            shared.state.begin(job=f"scripts_{tabname}")
            try:
                p.script_args = args if selectable else tuple(args)
                processed = runner.run(p, *args) if selectable else process_images(p)
            finally:
                shared.state.end()
        pictures = [encode_pil_to_base64(i) for i in _shown(processed)] if request.send_images else []
        return models.GenerationResponse(images=[picture.decode("ascii") for picture in pictures],
                                         parameters=models.as_dict(request), info=processed.js())

    def text2imgapi(self, request: models.Txt2ImgRequest):
        """txt2img."""
        return self._run(request, "txt2img", scripts.scripts_txt2img, self.default_script_arg_txt2img,
                         StableDiffusionProcessingTxt2Img, {})

    def img2imgapi(self, request: models.Img2ImgRequest):
        """img2img."""
        if request.init_images is None:
            raise HTTPException(status_code=404, detail="Init image not found")
        extra: dict[str, Any] = {"mask": decode_base64_to_image(request.mask) if request.mask else None,
                                 "init_images": [decode_base64_to_image(image) for image in request.init_images]}
        result = self._run(request, "img2img", scripts.scripts_img2img, self.default_script_arg_img2img,
                           StableDiffusionProcessingImg2Img, extra)
        if not request.include_init_images:
            result.parameters |= {"init_images": None, "mask": None}
        return result

    def pnginfoapi(self, request: models.PNGInfoRequest):
        """The infotext in a picture, and its fields."""
        info, items = images.read_info_from_image(decode_base64_to_image(request.image.strip()))
        return {"info": info or "", "items": items,
                "parameters": infotext_utils.parse_generation_parameters(info or "")}

    def interruptapi(self):
        """Stop the running job."""
        shared.state.interrupt()
        return {}

    def skipapi(self):
        """Leave the running batch."""
        shared.state.skip()

    def get_config(self):
        """All settings."""
        return dict(shared.opts.data)

    def set_config(self, req: dict[str, Any]):
        """Change settings. Raises: RuntimeError for an unknown checkpoint, KeyError for an unknown key (HTTP 500)."""
        name = req.get("sd_model_checkpoint")
        if name is not None and name not in sd_models.checkpoint_aliases:
            raise RuntimeError(f"model {name!r} not found")
        for key, value in req.items():
            shared.opts.set(key, value, is_api=True)
        shared.opts.save(shared.config_filename)

    def get_samplers(self):
        """All samplers."""
        return [{"name": s.name, "aliases": s.aliases, "options": {}} for s in sd_samplers.all_samplers]

    def get_sd_models(self):
        """All checkpoints."""
        return [{"title": i.title, "model_name": i.model_name, "hash": i.shorthash, "sha256": i.sha256,
                 "filename": i.filename, "config": None} for i in sd_models.checkpoints_list.values()]

    def refresh_checkpoints(self):
        """Read the checkpoint folders again."""
        sd_models.list_models()

    def get_scripts_list(self):
        """Names of both tabs' scripts."""
        return models.ScriptsList(txt2img=[s.name for s in scripts.scripts_txt2img.scripts if s.name],
                                  img2img=[s.name for s in scripts.scripts_img2img.scripts if s.name])

    def get_script_info(self):
        """Both tabs' scripts with their arguments."""
        both = [*scripts.scripts_txt2img.scripts, *scripts.scripts_img2img.scripts]
        return [script.api_info for script in both if script.api_info is not None]
