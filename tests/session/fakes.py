"""What a job needs of a host, without one: a UNet, an object like `p`, and model files that fit the UNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib_ipadapter.core.identity_net import load_identity_net
from lib_ipadapter.core.layers import find_cross_attention
from lib_ipadapter.core.schedule import COND, UNCOND, UNetCall
from lib_ipadapter.hosts.identity_nets import MovingNet
from lib_ipadapter.session.cache import ResultCache
from lib_ipadapter.session.models import Models
from lib_ipadapter.session.services import Services
from lib_ipadapter.session.shelf import LoraShelf
from lib_ipadapter.units.images import ImageStore
from tests.core.random_adapters import random_adapter_tensors, save_adapter
from tests.encoders.random_encoders import random_vision_encoder_tensors, save_vision_encoder
from tests.unets import sd15_unet, unet_inputs

PROJECTED, HIDDEN = 48, 64


class Reader:
    """Every call is a prompt row and a negative row."""

    def forget(self) -> None:
        self.fraction = 0.0

    def begin_step(self, params: Any) -> None:
        self.fraction = params

    def __call__(self, args: Any, kwargs: Any) -> UNetCall:
        return UNetCall((COND, UNCOND), self.fraction)


class FakeHost:
    """`hosts.base.Host` over one UNet; `later` are the checkpoints that a job will load."""

    name = "fake"

    def __init__(self, unet: nn.Module) -> None:
        self.net: nn.Module = unet
        self.later: list[Any] = []
        self.stopped = False
        self.hiding = False
        self.room: list[int] = []
        self.typed: list[Path] = []
        self.lora_dirs: list[Path] = []
        self.built: list[str] = []
        self.on: list[FakeLora] = []
        self.lora_failure = ""
        self.nets: list[MovingNet] = []
        self.guided: list[FakeGuidance] = []

    def version(self) -> str:
        return "1"

    def too_old(self) -> str:
        return ""

    def refusal(self, p: Any) -> str:
        return ""

    def unet(self, p: Any) -> nn.Module:
        return self.net

    def loaded_unet(self) -> nn.Module | None:
        return self.net

    def later_checkpoints(self, p: Any) -> Sequence[Any]:
        return self.later

    def call_reader(self, p: Any) -> Reader:
        return Reader()

    def selected_checkpoint(self) -> Path | None:
        return None

    def has_workers(self) -> bool:
        return False

    def hides_errors(self) -> bool:
        return self.hiding

    def interrupted(self) -> bool:
        return self.stopped

    def device(self) -> torch.device:
        return torch.device("cpu")

    def dtype(self) -> torch.dtype:
        return torch.float32

    def make_room(self, size: int) -> None:
        self.room.append(size)

    def release(self) -> None:
        self.room.append(0)

    def folders(self, extra: Sequence[Path]) -> tuple[Path, ...]:
        return tuple(extra)

    def face_folders(self, extra: Sequence[Path]) -> tuple[Path, ...]:
        return tuple(extra)

    def build_net(self, p: Any, spec: Any, path: Path) -> MovingNet:
        net = MovingNet(load_identity_net(spec, path))
        self.nets.append(net)
        return net

    def guide(self, _p: Any, rescale: Any) -> FakeGuidance:
        self.guided.append(FakeGuidance(rescale))
        return self.guided[-1]

    def typed_loras(self) -> Sequence[Path]:
        return self.typed

    def lora_folders(self) -> Sequence[Path]:
        return self.lora_dirs

    def build_lora(self, p: Any, name: str, weights: Any) -> FakeLora:
        self.built.append(name)
        return FakeLora(self, name)


class FakeGuidance:
    """Keeps what the session wants to do with guided predictions."""

    def __init__(self, rescale: Any) -> None:
        self.rescale, self.steps, self.removed = rescale, [], 0

    def begin_step(self, params: Any) -> None:
        self.steps.append(params)

    def remove(self) -> None:
        self.removed += 1


class FakeLora:
    """What is on stands in the host's list `on`, by name and strength; it is its own `PlacedLora`."""

    def __init__(self, host: FakeHost, name: str) -> None:
        self.host, self.name, self.strength = host, name, 0.0

    def put(self, strength: float, *, sampling: bool) -> FakeLora:
        self.strength = strength
        self.host.on.append(self)
        return self

    def failure(self) -> str:
        return self.host.lora_failure

    def remove(self, *, sampling: bool) -> None:
        self.host.on = [lora for lora in self.host.on if lora is not self]



class FakeProcessing:
    """`p`: its class has `sample`, which calls the job's callbacks as a host does and then the UNet."""

    width = height = 64

    def __init__(self, host: FakeHost, steps: int = 2) -> None:
        self.host, self.steps = host, steps
        self.extra_generation_params: dict[str, Any] = {}
        self.comments: list[str] = []
        self.prompts = ["a cat"]
        self.latent: Any = torch.zeros(1, 4, 8, 8)
        self.job: Any = None

    def comment(self, text: str) -> None:
        self.comments.append(text)

    def sample(self, passes: int = 1) -> list[torch.Tensor]:
        results = []
        for _ in range(passes):
            if self.job is not None:
                self.job.before_sampling(self.latent)
            for step in range(self.steps):
                if self.job is not None:
                    self.job.before_step(step / self.steps)
                results.append(call_unet(self.host.net))
        return results


def call_unet(unet: nn.Module) -> torch.Tensor:
    """One call with two rows of fixed noise."""
    inputs = unet_inputs(unet, rows=2, size=8)  # type: ignore[arg-type]
    return unet(inputs["x"], inputs["timesteps"], context=inputs["context"])


def make_unet(seed: int = 0) -> nn.Module:
    return sd15_unet(32, seed=seed)


def write_models(folder: Path, unet: nn.Module, name: str = "ip-adapter_sd15", seed: int = 1) -> Path:
    """A base adapter that fits the UNet, and an encoder that feeds it."""
    widths = [layer.width for layer in find_cross_attention(unet)]
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_vision_encoder_tensors(HIDDEN, 1, mlp=HIDDEN, patch=14, positions=17, projected=PROJECTED)
    save_vision_encoder(folder / "encoder.safetensors", tensors)
    adapter = random_adapter_tensors("base", 768, widths, input_dim=PROJECTED, seed=seed)
    return save_adapter(folder / f"{name}.safetensors", adapter)


def services(host: FakeHost, folder: Path, stop: Callable[[], bool] = lambda: True) -> Services:
    """Services over one folder of models and a store beside it."""
    store = ImageStore(folder / "store", 10_000_000)
    return Services(host, Models(lambda: (folder,)), ResultCache(10_000_000), lambda: store, stop, LoraShelf())  # type: ignore[arg-type]
