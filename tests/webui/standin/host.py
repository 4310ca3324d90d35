"""The host in this process: folders, start, jobs through the API, reload. Called by tests and by `__main__`."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tests.webui.standin import launching
from tests.webui.standin.nets import fit_odd_sizes

DEFAULTS: dict[str, object] = {"prompt": "a red house", "negative_prompt": "blurry", "steps": 2, "width": 64,
                               "height": 64, "seed": 1, "sampler_name": "Euler", "cfg_scale": 7.0}


class StandIn:
    """One host per process.

    `extensions` are folders in load order; `data_dir` is the host's data folder (models/, config.json); with no
    checkpoint in it, one of each kind in `checkpoints` is made there. `argv` goes to the command line.
    """

    def __init__(self, flavour: str | None = None, extensions: tuple[Path, ...] | list[Path] = (),
                 data_dir: Path | str = "out/standin", argv: tuple[str, ...] | list[str] = (),
                 checkpoints: tuple[str, ...] = ("sd15",)):
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        self.flavour = flavour or launching.installed_flavour()
        self.data_dir = Path(data_dir).resolve()
        self.launch = launching.Launch(self.flavour, self.data_dir, [Path(e).resolve() for e in extensions],
                                       [str(a) for a in argv])
        launching.begin(self.launch)
        fit_odd_sizes()
        self.first_checkpoint = checkpoints[0] if checkpoints else ""
        self.add_checkpoints(*checkpoints)
        self.server_port: int | None = None
        self._server = None
        self._client: Any = None
        self.start()

    @property
    def checkpoint_dir(self) -> Path:
        """Where checkpoints lie."""
        return self.data_dir / "models" / "Stable-diffusion"

    def add_checkpoints(self, *kinds: str) -> None:
        """Make a checkpoint of each kind, `<kind>.safetensors`, unless it is there; `<kind>-b` has other weights."""
        from tests.webui.standin.worlds import write_checkpoint

        for name in kinds:
            path = self.checkpoint_dir / f"{name}.safetensors"
            if not path.is_file():
                write_checkpoint(path, name.removesuffix("-b"), seed=int(name.endswith("-b")))
        if "modules.sd_models" in sys.modules:
            sys.modules["modules.sd_models"].list_models()

    def start(self) -> None:
        """What the host does at its start, and again at Reload UI: scripts, settings, page, API."""
        from fastapi import FastAPI
        from modules import extensions, script_callbacks, scripts, sd_models, shared, ui, ui_gradio_extensions
        from modules.api.api import Api
        from modules.call_queue import queue_lock

        extensions.list_extensions()
        sd_models.list_models()
        if shared.opts.sd_model_checkpoint is None:
            first = sd_models.checkpoint_aliases.get(f"{self.first_checkpoint}.safetensors")
            shared.opts.sd_model_checkpoint = first.title if first else None
        scripts.load_scripts()
        script_callbacks.ui_settings_callback()
        self.demo = ui.create_ui()
        ui_gradio_extensions.reload_javascript()
        self.demo.queue()
        self.app = self._gradio_app() if not shared.cmd_opts.nowebui else FastAPI()
        self.api = Api(self.app, queue_lock)
        script_callbacks.app_started_callback(self.demo, self.app)
        if self._server is not None:
            self._start_queue()

    def _gradio_app(self):
        import gradio as gr
        from modules.ui_gradio_extensions import allowed_paths

        demo = self.demo
        demo.allowed_paths, demo.blocked_paths = allowed_paths(), []
        demo.show_error, demo.auth, demo.favicon_path, demo.root_path = True, None, None, ""
        demo.max_file_size, demo.node_server_name, demo.is_running = None, None, True
        demo.share, demo.show_api, demo.validate_queue_settings()
        return gr.routes.App.create_app(demo)

    def reload_ui(self) -> None:
        """Settings > Reload UI: callbacks of unloading, scripts executed again, library modules stay."""
        from modules import script_callbacks

        script_callbacks.app_reload_callback()
        script_callbacks.script_unloaded_callback()
        self.start()

    @property
    def client(self):
        """An HTTP client of this host; the server starts with its first use."""
        import httpx

        if self._client is None:
            self._client = httpx.Client(base_url=self.serve(), timeout=600, trust_env=False, auth=self.auth)
        return self._client

    @property
    def auth(self) -> tuple[str, str] | None:
        """User and password of `--api-auth`, if it was given."""
        from modules import shared

        given = shared.cmd_opts.api_auth
        return tuple(given.split(",")[0].split(":", 1)) if given else None

    def post(self, route: str, payload: dict[str, Any]):
        """POST to `/sdapi/v1/<route>`; returns the response."""
        return self.client.post(f"/sdapi/v1/{route}", json=payload)

    def select(self, kind: str) -> None:
        """Make the checkpoint of that kind the setting's; the next job loads it."""
        from modules import sd_models, shared

        self.add_checkpoints(kind)
        shared.opts.sd_model_checkpoint = sd_models.checkpoint_aliases[f"{kind}.safetensors"].title

    def txt2img(self, **payload) -> Result:
        """A txt2img job; `DEFAULTS` for what is left out. Raises: RuntimeError unless the answer is 200."""
        return self._job("txt2img", payload)

    def img2img(self, image: Image.Image, **payload) -> Result:
        """An img2img job from a picture."""
        return self._job("img2img", {"init_images": [encode(image)], **payload})

    def _job(self, route: str, payload: dict[str, Any]) -> Result:
        response = self.post(route, DEFAULTS | payload)
        if response.status_code != 200:
            raise RuntimeError(f"{route} answered {response.status_code}: {response.text}")
        return Result(response.json())

    @property
    def reports(self) -> list[str]:
        """What the host reported and swallowed since the start; clear it with `.clear()`."""
        from modules import errors

        return errors.exception_records

    def serve(self, port: int = 0) -> str:
        """Serve on 127.0.0.1 in a thread; returns the address."""
        if self._server is None:
            import uvicorn

            listener = socket.socket()
            listener.bind(("127.0.0.1", port))
            self.server_port = listener.getsockname()[1]
            # The app changes with Reload UI, the server stays.
            config = uvicorn.Config(self._answer, log_level="warning", lifespan="off", interface="asgi3")
            self._server = uvicorn.Server(config)
            threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True).start()
            while not self._server.started:
                time.sleep(0.02)
            self._start_queue()
        return f"http://127.0.0.1:{self.server_port}"

    async def _answer(self, scope, receive, send) -> None:
        await self.app(scope, receive, send)

    def _start_queue(self) -> None:
        """Gradio starts its queue in the server's event loop, at a request for this route."""
        import httpx

        httpx.get(f"http://127.0.0.1:{self.server_port}/startup-events", trust_env=False, timeout=60)

    def stop_serving(self) -> None:
        """End the server's thread."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._server is not None:
            self._server.should_exit = True
            self._server = None


class Result:
    """An API answer: `images`, `infotexts`, `info`."""

    def __init__(self, answer: dict[str, Any]):
        self.answer = answer
        self.info: dict[str, Any] = json.loads(answer["info"])
        self.infotexts: list[str] = self.info["infotexts"]
        self.images = [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in answer["images"]]

    @property
    def pixels(self) -> list[bytes]:
        """Raw RGB of each picture: the files carry the infotext, so compare these."""
        return [image.tobytes() for image in self.images]


def encode(image: Image.Image) -> str:
    """A picture as base64 of a PNG."""
    with io.BytesIO() as out:
        image.save(out, format="PNG")
        return base64.b64encode(out.getvalue()).decode("ascii")
