"""IdentityNet through the ControlNet extension, without a host: what is decided before the extension is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_ipadapter.core.schedule import COND, UNCOND, UNetCall, Window
from lib_ipadapter.hosts.base import LaterCheckpoint
from lib_ipadapter.hosts.extension_nets import ExtensionNet, ExtensionPair, FaceRows, Watching
from lib_ipadapter.library.errors import UnexplainedRowsError, UnsupportedHostStateError, WrongBaseError
from lib_ipadapter.session.extension import reserve
from lib_ipadapter.session.job import Job
from lib_ipadapter.units.unit import Request, Unit
from tests.session.fakes import FakeHost, services
from tests.session.test_instantid import ANNA, NET, Processing, folder, unet  # noqa: F401 (fixtures)

THROUGH = {"intent": "instantid", "images": (ANNA,), "net_engine": "controlnet"}


class FakeNets:
    """The host's side, which notes what it is asked."""

    def __init__(self, checkpoint: Path | None) -> None:
        self.checkpoint = checkpoint
        self.calls: list[str] = []
        self.pairs: list[ExtensionPair] = []
        self.entered: list[ExtensionNet] = []

    def reserve(self, p: Any, pairs_for: Callable[[Path | None], Sequence[ExtensionPair]]) -> None:
        self.calls.append("reserve")
        if self.checkpoint != Path("unasked"):
            self.pairs = list(pairs_for(self.checkpoint))

    def settle(self, p: Any) -> None:
        self.calls.append("settle")

    def ready(self, p: Any, pair: ExtensionPair) -> None:
        self.calls.append("ready")
        self.pairs = [pair]

    def enter(self, p: Any, at: nn.Module, nets: Sequence[ExtensionNet], *, sampling: bool) -> Sequence[Any]:
        self.calls.append("enter")
        self.entered += nets
        return [Watching()]

    def begin_step(self, params: Any) -> None:
        self.calls.append("step")

    def leave(self) -> None:
        self.calls.append("leave")

    def close(self, p: Any) -> None:
        self.calls.append("close")


Run = Callable[..., FakeNets]


@pytest.fixture
def run(unet: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:  # noqa: F811
    host = FakeHost(unet)

    def run(*units: dict[str, Any], later: Sequence[Any] = (), told: bool = True, **nets: Any) -> FakeNets:
        made = FakeNets(nets.get("checkpoint", Path("unasked")))
        monkeypatch.setattr(FakeHost, "extension_nets", lambda self, p: made, raising=False)
        host.later = list(later)
        p = Processing(host)
        request = Request(True, tuple(Unit(**(THROUGH | unit)) for unit in units), from_page=False)
        given = services(host, folder)
        extension = reserve(p, request, given)
        p.job = Job(p, request, given, extension if told else None)
        p.job.wrap_sample()
        try:
            p.sample()
        finally:
            p.job.close()
        return made

    return run


def test_the_extension_gets_the_tokens_the_map_the_strength_and_the_window(run: Run) -> None:
    nets = run({"net_weight": 0.6, "net_start": 0.25, "net_end": 0.75})
    first = ["reserve", "settle", "ready", "enter", "step", "step", "leave"]
    assert nets.calls[: len(first)] == first
    assert nets.calls[-1] == "close"
    (net,) = nets.entered
    assert (net.strength, net.window, net.path.name) == (0.6, Window(0.25, 0.75), NET)
    assert tuple(net.hint.shape) == (1, 3, 64, 64)
    assert tuple(net.context.shape) == (2, 16, 768)
    assert float(net.hint.max()) == 1.0
    assert nets.pairs[0].net.name == NET


def test_only_units_with_a_net_that_ask_for_it_go_there(run: Run) -> None:
    off = {"keypoints": "none"}, {"net_weight": 0.0}, {"identity_net": "none"}, {"net_engine": "builtin"}
    host = FakeHost(nn.Identity())
    for fields in off:
        request = Request(True, (Unit(**(THROUGH | fields)),), from_page=False)
        assert reserve(SimpleNamespace(), request, SimpleNamespace(host=host)) is None  # type: ignore[arg-type]
    blended = {"region": "everywhere"}
    nets = run(blended, blended | {"net_engine": "builtin"}, {"weight": 0.0})
    assert [net.name for net in nets.entered] == ["Unit 1"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"net_rows": "cond"}, "rows to both"), ({"region": "left"}, "regions in another way")],
)
def test_what_it_cannot_express_is_said_before_it_is_asked(run: Run, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedHostStateError, match=says) as caught:
        run(fields)
    assert "built-in" in str(caught.value)


def test_a_second_checkpoint_and_an_untold_job(run: Run, tmp_path: Path) -> None:
    later = [LaterCheckpoint("refiner", "other", tmp_path / "other.safetensors")]
    with pytest.raises(UnsupportedHostStateError, match="other for the refiner"):
        run({}, later=later)
    with pytest.raises(UnsupportedHostStateError, match="was not told"):
        run({}, told=False)


@pytest.mark.parametrize("checkpoint", [None, Path("nowhere.safetensors")])
def test_a_checkpoint_that_nobody_knows_stops_the_unit(run: Run, checkpoint: Path | None) -> None:
    with pytest.raises(WrongBaseError, match="not known which checkpoint"):
        run({}, checkpoint=checkpoint)


def test_rows_get_their_own_tokens_and_other_calls_are_refused() -> None:
    context = torch.stack([torch.zeros(4, 8), torch.ones(4, 8)])
    rows = FaceRows(ExtensionNet("Unit 1", Path("net"), torch.zeros(1, 3, 64, 64), context, 1.0, Window()))
    latents = torch.zeros(3, 4, 8, 8)
    found: Tensor = rows.context(UNetCall((UNCOND, COND, UNCOND), 0.0), latents)
    assert found[:, 0, 0].tolist() == [1.0, 0.0, 1.0]
    rows.require_asked()
    with pytest.raises(UnsupportedHostStateError, match="did not run"):
        rows.require_asked()
    with pytest.raises(UnexplainedRowsError, match="3 rows"):
        rows.context(UNetCall((COND, UNCOND), 0.0), latents)
    with pytest.raises(UnsupportedHostStateError, match="128x64"):
        rows.context(UNetCall((COND, COND, COND), 0.0), torch.zeros(3, 4, 8, 16))
