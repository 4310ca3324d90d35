"""What the session asks of a WebUI, and the parts of the answer that need no WebUI.

`a1111.py` and `forge.py` implement `Host`; `session` holds one and never imports `modules.*` itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.torch_version import TorchVersion

from ..core.schedule import UNetCall
from ..library.errors import UnsupportedHostStateError
from ..library.spec import ControlNetSpec
from .extension_nets import ExtensionNets
from .guidance import Guidance, Rescale
from .identity_nets import HostNet
from .loras import HostLora

OLDEST_TORCH = "2.1"
"""The first with hooks that are called after a failure too, and with mapped and assigned weights."""


class LaterCheckpoint(NamedTuple):
    """A second checkpoint that the job will load: `role` is "hires" or "refiner"."""

    role: str
    name: str
    path: Path


class CallReader(Protocol):
    """Says of each UNet call which rows are prompt and which negative, and how far the pass has come."""

    def forget(self) -> None:
        """Let go of the pass: called when sampling (base, hires) is about to start, and when it is over."""
        ...

    def begin_step(self, params: Any) -> None:
        """Take the denoiser's parameters of the step that is about to call the UNet."""
        ...

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> UNetCall:
        """Describe one UNet call from its arguments. Raises UnexplainedRowsError."""
        ...


class Host(Protocol):
    """One WebUI. All methods are cheap except `make_room`."""

    @property
    def name(self) -> str: ...

    def version(self) -> str: ...

    def too_old(self) -> str:
        """Why this host cannot run image prompts at all, or an empty string."""
        ...

    def refusal(self, p: Any) -> str:
        """Why this job cannot, in the host's present state, or an empty string."""
        ...

    def unet(self, p: Any) -> nn.Module:
        """The UNet that the job `p` calls right now, as a module."""
        ...

    def loaded_unet(self) -> nn.Module | None:
        """The UNet loaded at this moment, for the page; None while nothing is loaded."""
        ...

    def selected_checkpoint(self) -> Path | None:
        """The file of the checkpoint that the next job will load, for the page; None when none is selected."""
        ...

    def has_workers(self) -> bool:
        """Whether an extension that runs jobs on other machines is loaded: the store's ids mean nothing there."""
        ...

    def later_checkpoints(self, p: Any) -> Sequence[LaterCheckpoint]: ...

    def call_reader(self, p: Any) -> CallReader: ...

    def hides_errors(self) -> bool:
        """Whether what the running job raises while sampling would be lost instead of shown."""
        ...

    def interrupted(self) -> bool:
        """Whether the user stopped or skipped the running job."""
        ...

    def device(self) -> torch.device:
        """Where encoders and projectors run."""
        ...

    def dtype(self) -> torch.dtype:
        """What encoders compute in there: the precision that the host was started with, float32 on the CPU."""
        ...

    def make_room(self, size: int) -> None:
        """Ask for `size` bytes on the device before an encoder is loaded."""
        ...

    def release(self) -> None:
        """Give cached device memory back after an encoder was dropped."""
        ...

    def folders(self, extra: Sequence[Path]) -> tuple[Path, ...]:
        """Where adapters and vision encoders are looked for, first to last; `extra` are the user's own."""
        ...

    def typed_loras(self) -> Sequence[Path]:
        """Files of the LoRAs that the prompt has put on for the pass that is about to start; never ours."""
        ...

    def lora_folders(self) -> Sequence[Path]:
        """Where the user keeps LoRAs."""
        ...

    def build_lora(self, p: Any, name: str, weights: Mapping[str, torch.Tensor]) -> HostLora:
        """Bring a LoRA into the host's form for the UNet that `p` calls right now.

        `name` tells it from every other, `weights` have kohya's names (`lora_unet_….lora_down.weight`).
        Raises: UnsupportedHostStateError, WrongBaseError.
        """
        ...

    def build_net(self, p: Any, spec: ControlNetSpec, path: Path) -> HostNet:
        """Read an IdentityNet (`spec` as `core.identity_fit` gives it) for the job `p`; it rests until a pass.

        Raises: AdapterFileError.
        """
        ...

    def guide(self, p: Any, rescale: Rescale) -> Guidance:
        """Let `rescale` change the guided predictions of the pass of `p` that is about to start, or is under way."""
        ...

    def extension_nets(self, p: Any) -> ExtensionNets:
        """The host's ControlNet extension, to run IdentityNets in the job `p`; it need not be installed."""
        ...

    def face_folders(self, extra: Sequence[Path]) -> tuple[Path, ...]:
        """Where face packs are looked for with everything below, first to last; the first is where to put one."""
        ...


class StepClock:
    """The fraction of a pass that is done, from the denoiser's own counters.

    Samplers that choose their own step size (DPM adaptive) have no total: there the timestep's way from the
    pass's first to 0 counts. Second-order samplers call the denoiser twice for a step; both calls are of one step, so
    that no window's edge falls between them.
    """

    def __init__(self) -> None:
        self._first_timestep: float | None = None
        self._denoiser: Any = None

    def forget(self) -> None:
        self._first_timestep = None
        self._denoiser = None

    def begin_step(self, params: Any) -> None:
        self._denoiser = params.denoiser

    def fraction(self, timesteps: torch.Tensor | None) -> float:
        """0 at the first step; 1 when nothing is left. `timesteps` is the UNet's argument, shape (b,)."""
        denoiser = self._denoiser
        sampler = getattr(denoiser, "sampler", None)
        if getattr(sampler, "funcname", None) == "sample_dpm_adaptive" and timesteps is not None:
            now = float(timesteps.flatten()[0])
            if self._first_timestep is None:
                self._first_timestep = max(now, 1e-6)
            return min(max(1.0 - now / self._first_timestep, 0.0), 1.0)
        total, done = getattr(denoiser, "total_steps", None) or 1, denoiser.step
        # Their total is doubled by the host (modules/sd_samplers_common.py, SamplerData.total_steps).
        options = getattr(getattr(sampler, "config", None), "options", None) or {}
        if options.get("second_order"):
            done -= done % 2
        return min(max(done / total, 0.0), 1.0)


def call_argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, *names: str) -> Any:
    """The UNet's argument at `position`, however it was passed; None when absent."""
    if len(args) > position:
        return args[position]
    return next((kwargs[name] for name in names if name in kwargs), None)


def search_folders(models: Path, *more: Path | str | None) -> tuple[Path, ...]:
    """The folders below `models` that are searched on every host, then the given ones, each once."""
    usual = [models / name for name in ("ipadapter", "ControlNet", "clip_vision")]
    wanted = [*usual, *(Path(folder) for folder in more if folder)]
    return tuple(dict.fromkeys(wanted))


def face_search_folders(models: Path, *more: Path | str | None) -> tuple[Path, ...]:
    """The folders below `models` in which face packs lie on every host, the given ones, and insightface's own."""
    usual = [models / name for name in ("insightface", "ipadapter")]
    home = Path(os.path.expanduser("~/.insightface"))  # unlike Path's, does not raise where there is no home
    wanted = [*usual, *(Path(folder) for folder in more if folder), home]
    return tuple(dict.fromkeys(wanted))


def torch_too_old() -> str:
    """Why the installed torch cannot run image prompts, or an empty string. The same on every host."""
    if TorchVersion(torch.__version__) >= TorchVersion(OLDEST_TORCH):
        return ""
    return (
        f"Image prompts need torch {OLDEST_TORCH} or later, and {torch.__version__} is installed: update it (the WebUI "
        "installs a newer one by itself when its folder venv is deleted)."
    )


def require_step(ready: bool) -> None:
    """Raises UnsupportedHostStateError when the UNet is called before the denoiser announced a step."""
    if not ready:
        raise UnsupportedHostStateError(
            "The UNet was called outside the sampler's own steps, so the image prompt cannot tell prompt rows from "
            "negative rows. Switch off the script or extension that calls the model itself (img2img alternative "
            "test, tiled diffusion), or the image prompt."
        )
