"""An InstantID unit in a job without a host: both halves act as written out by hand, and nothing is left behind."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lib_ipadapter.core.identity_net import build_identity_net
from lib_ipadapter.core.layers import find_cross_attention
from lib_ipadapter.encoders.keypoint_map import as_hint, draw_keypoints
from lib_ipadapter.encoders.keypoints import fit_keypoints
from lib_ipadapter.library.errors import (
    AdapterNotFoundError,
    BadUnitError,
    IdentityNetError,
    IPAdapterError,
    KeypointsError,
    NoFaceError,
    UnsupportedHostStateError,
    WrongBaseError,
)
from lib_ipadapter.library.spec import ControlNetSpec
from lib_ipadapter.session.job import Job
from lib_ipadapter.session.prepare import PreparedUnit
from lib_ipadapter.units.unit import Request, Unit
from tests.core.random_adapters import random_adapter_tensors, save_adapter
from tests.core.random_controlnets import SD15, as_published, narrow, random_controlnet, save_controlnet
from tests.encoders.face_models import write_face_pack
from tests.encoders.face_pictures import DrawnFace, face_picture, portrait
from tests.session.fakes import FakeHost, FakeProcessing, make_unet, services
from tests.unets import unet_inputs

NET = "control_instant_id_sd15.safetensors"
SPEC, SEED = narrow(SD15), 7


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


ANNA, NOBODY = encoded(portrait(1)), encoded(Image.new("RGB", (300, 200)))
POSE = encoded(Image.fromarray(face_picture(800, 400, [DrawnFace(150, 200, 240, 3), DrawnFace(650, 220, 200, 2, 15)])))
SIZE = 64
"""Side of the canvas: the fake's latents are 8 x 8."""


class Processing(FakeProcessing):
    """`p` of a job at `SIZE`, which tells of its passes' latents as the hosts do."""

    width = height = SIZE
    announces = True

    def sample(self, passes: int = 1) -> list[Tensor]:
        results = []
        for _ in range(passes):
            inputs = unet_inputs(self.host.net, rows=2, size=8)  # type: ignore[arg-type]
            self.job.before_sampling(inputs["x"] if self.announces else None)
            for step in range(self.steps):
                self.job.before_step(step / self.steps)
                results.append(self.host.net(inputs["x"], inputs["timesteps"], context=inputs["context"]))
        return results


def write_net(folder: Path, name: str = NET, spec: ControlNetSpec = SPEC, seed: int = SEED) -> Path:
    return save_controlnet(folder / name, as_published(spec, random_controlnet(spec, seed)))


@pytest.fixture
def unet() -> nn.Module:
    return make_unet()


@pytest.fixture
def folder(tmp_path: Path, unet: nn.Module) -> Path:
    widths = [layer.width for layer in find_cross_attention(unet)]
    adapter = random_adapter_tensors("instantid", 768, widths, dim=64, heads=1, depth=1)
    save_adapter(tmp_path / "ip-adapter_instant_id_sd15.safetensors", adapter)
    write_net(tmp_path)
    write_face_pack(tmp_path / "antelopev2", "antelopev2")
    return tmp_path


Run = Callable[..., tuple[Processing, list[Tensor]]]


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[PreparedUnit]:
    """The last job's units, as they were attached."""
    from lib_ipadapter.session import passes

    seen: list[PreparedUnit] = []
    check = passes.check_pass

    def keep(unet: Any, layers: Any, unit: PreparedUnit) -> None:
        seen.append(unit)
        check(unet, layers, unit)

    monkeypatch.setattr(passes, "check_pass", keep)
    return seen


@pytest.fixture
def run(unet: nn.Module, folder: Path) -> Run:
    host = FakeHost(unet)

    def run(*units: dict[str, Any], stop: bool = True, **changes: Any) -> tuple[Processing, list[Tensor]]:
        p = Processing(host)
        for name, value in changes.items():
            setattr(p, name, value)
        defaults = {"intent": "instantid", "images": (ANNA,)}
        request = Request(bool(units), tuple(Unit(**(defaults | unit)) for unit in units), from_page=False)
        p.job = Job(p, request, services(host, folder, stop=lambda: stop))
        p.job.wrap_sample()
        try:
            return p, p.sample()
        finally:
            p.job.close()

    return run


def by_hand(unet: nn.Module, unit: PreparedUnit, points: Any, mask: Tensor | None = None) -> Tensor:
    """The UNet with image attention and residuals written out: its own forward, places found by hooks of this test.

    `mask` (`SIZE`, `SIZE`) says where both act.
    """
    region = torch.ones(SIZE, SIZE) if mask is None else mask
    assert unit.tokens is not None
    inputs = unet_inputs(unet, rows=2, size=8)  # type: ignore[arg-type]
    net = build_identity_net(SPEC, random_controlnet(SPEC, SEED))
    hint = net.embed_hint(as_hint(draw_keypoints([points], (SIZE, SIZE))))
    residuals = net(inputs["x"], inputs["timesteps"], unit.tokens, hint, strength=unit.unit.net_weight)
    handles, queries = [], {}

    def share(height: int, width: int) -> Tensor:
        """How much of the mask each place of a level sees."""
        return region.reshape(height, SIZE // height, width, SIZE // width).mean(dim=(1, 3))

    def add_skip(residual: Tensor) -> Any:
        def hook(module: nn.Module, args: Any) -> Any:
            joined = args[0].clone()
            joined[:, -residual.shape[1] :] += residual * share(*residual.shape[2:])
            return (joined, *args[1:])

        return hook

    def add_middle(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + residuals.mid * share(*output.shape[2:])

    for block, residual in zip(unet.output_blocks, reversed(residuals.down), strict=True):  # type: ignore[arg-type]
        handles.append(block.register_forward_pre_hook(add_skip(residual)))
    handles.append(unet.middle_block.register_forward_hook(add_middle))  # type: ignore[union-attr]
    for layer in find_cross_attention(unet):
        key, value = unit.kv[layer.key_id]
        heads = layer.module.heads

        def keep(module: nn.Module, args: Any, output: Tensor, layer: Any = layer) -> None:
            queries[layer.key_id] = output

        def add(module: nn.Module, args: Any, layer: Any = layer, pair: Any = (key, value), heads: Any = heads) -> Any:
            q, k, v = (t.view(2, t.shape[1], heads, -1).transpose(1, 2) for t in (queries[layer.key_id], *pair))
            seen = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, dim=-1) @ v
            side = math.isqrt(args[0].shape[1])
            places = share(side, side).reshape(-1, 1)
            return (args[0] + unit.unit.weight * places * seen.transpose(1, 2).reshape(args[0].shape),)

        handles.append(layer.module.get_submodule("to_q").register_forward_hook(keep))
        handles.append(layer.module.get_submodule("to_out")[0].register_forward_pre_hook(add))  # type: ignore[index]
    try:
        return unet(inputs["x"], inputs["timesteps"], context=inputs["context"])
    finally:
        for handle in handles:
            handle.remove()


def assert_same(ours: Tensor, other: Tensor) -> None:
    assert float((ours - other).abs().max()) <= 1e-4 * max(1.0, float(other.abs().max()))


def face_points(index: int = 0) -> Any:
    return DrawnFace(150, 200, 240, 3).keypoints if index == 0 else DrawnFace(650, 220, 200, 2, 15).keypoints


def record_of(p: Processing) -> dict[str, Any]:
    return json.loads(p.extra_generation_params["IP-Adapter unit 1"])


def test_both_halves_act_as_written_out_by_hand(
    run: Run, unet: nn.Module, folder: Path, prepared: list[PreparedUnit]
) -> None:
    plain = run()[1]
    p, ours = run({"weight": 0.7, "net_weight": 0.9})
    unit = prepared[-1]
    assert unit.identity is not None
    face = unit.identity.face
    assert (face.source, face.size) == ("reference", portrait(1).size)
    points = fit_keypoints(face.points, face.size, (SIZE, SIZE))  # type: ignore[arg-type]
    assert_same(ours[0], by_hand(unet, unit, points))
    assert float((ours[0] - plain[0]).abs().max()) > 0.01
    attention_only = run({"weight": 0.7, "net_weight": 0.0})[1]
    assert float((ours[0] - attention_only[0]).abs().max()) > 0.01
    again = run()[1]
    assert all(torch.equal(one, other) for one, other in zip(again, plain, strict=True)), "nothing is left behind"
    ran = record_of(p)["ran"]
    assert ran["net"] == NET
    assert len(ran["net_hash"]) == 10
    assert ran["keypoints"] == "reference"


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_pose_photos_chosen_face_stands_where_the_fit_lays_it(
    run: Run, unet: nn.Module, folder: Path, prepared: list[PreparedUnit], fit: str, number: int
) -> None:
    expected = fit_keypoints(face_points(number - 1), (800, 400), (SIZE, SIZE), "stretch")  # type: ignore[arg-type]
    fields = {"pose": (POSE,), "pose_face": str(number), "fit": fit}
    if fit == "crop":
        with pytest.raises(KeypointsError, match="pad"):
            run(fields | {"pose_face": "1"})
        return
    p, ours = run(fields)
    face = prepared[-1].identity.face  # type: ignore[union-attr]
    assert face.source == "pose"
    points = fit_keypoints(face.points, face.size, (SIZE, SIZE), fit)  # type: ignore[arg-type]
    if fit == "stretch":
        for one, other in zip(points, expected, strict=True):
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < 2.0
    assert_same(ours[0], by_hand(unet, prepared[-1], points))
    record = record_of(p)
    assert len(record["pose"]) == 1
    assert record["ran"]["keypoints"] == "pose"


def test_a_region_holds_for_both_halves(run: Run, unet: nn.Module, prepared: list[PreparedUnit]) -> None:
    left = torch.zeros(SIZE, SIZE)
    left[:, : SIZE // 2] = 1.0
    fields = {"region": "left", "feather": 0.0}
    _, ours = run(fields)
    face = prepared[-1].identity.face  # type: ignore[union-attr]
    points = fit_keypoints(face.points, face.size, (SIZE, SIZE))  # type: ignore[arg-type]
    assert_same(ours[0], by_hand(unet, prepared[-1], points, left))
    whole, net_everywhere = run({})[1], run({}, {**fields, "net_weight": 0.0})[1]
    assert float((ours[0] - whole[0]).abs().max()) > 0.01
    assert float((ours[0] - net_everywhere[0]).abs().max()) > 0.01
    halves = run(fields, {**fields, "region": "right"})[1]
    assert_same(halves[0], whole[0])


def test_a_region_that_is_not_sampled_leaves_both_halves_out(run: Run) -> None:
    picture = Image.new("RGB", (200, 100))
    masked = {
        "image_mask": picture, "init_images": [picture], "paste_to": (100, 20, 80, 80), "inpaint_full_res": True,
    }  # fmt: skip
    points = json.dumps([[120, 40], [150, 40], [135, 55], [122, 75], [150, 75]])
    plain = run()[1]
    p, ours = run({"keypoints": points, "region": "left", "feather": 0.0}, **masked)
    assert torch.equal(ours[0], plain[0])
    assert "no part of its region" in p.comments[0]
    assert not [key for key in p.extra_generation_params if key.startswith("IP-Adapter unit")]
    assert not torch.equal(run({"keypoints": points, "region": "right", "feather": 0.0}, **masked)[1][0], plain[0])


def test_given_points_may_be_pixels_or_fractions(run: Run, unet: nn.Module, folder: Path, prepared: Any) -> None:
    pixels = [[20, 20], [40, 22], [30, 32], [22, 44], [40, 44]]
    fractions = [[x / SIZE, y / SIZE] for x, y in pixels]
    _, ours = run({"keypoints": json.dumps(pixels)})
    assert_same(ours[0], by_hand(unet, prepared[-1], tuple(map(tuple, pixels))))
    assert torch.equal(ours[0], run({"keypoints": json.dumps(fractions)})[1][0])


def test_without_keypoints_or_net_the_identity_comes_through_attention_alone(
    run: Run, folder: Path, prepared: Any
) -> None:
    off = run({"net_weight": 0.0})
    (folder / NET).unlink()
    for fields in ({"keypoints": "none"}, {"identity_net": "none"}, {"net_weight": 0.0}):
        p, ours = run(fields)
        assert prepared[-1].identity is None
        assert torch.equal(ours[0], off[1][0])
        assert "net" not in record_of(p)["ran"]
        assert not p.comments


def test_the_net_has_its_own_window_and_may_serve_the_prompt_alone(run: Run) -> None:
    whole, attention = run({})[1], run({"net_weight": 0.0})[1]
    first = run({"net_end": 0.5})[1]
    assert torch.equal(first[0], whole[0])
    assert torch.equal(first[1], attention[1])
    later = run({"net_start": 0.5})[1]
    assert torch.equal(later[0], attention[0])
    alone = run({"start": 1.0, "end": 1.0, "net_end": 0.5})
    assert "net" in record_of(alone[0])["ran"], "a unit whose net acts is acting"
    never = run({"net_start": 0.9, "net_end": 0.95})
    assert "net" not in record_of(never[0])["ran"]
    assert "IdentityNet of unit 1 did not act" in never[0].comments[0]
    half = run({"net_rows": "cond"})[1]
    assert_same(half[0][:1], whole[0][:1])
    assert torch.equal(half[0][1], attention[0][1]), "the negative row has no residual"


def test_two_units_share_one_net_and_their_residuals_add_up(run: Run) -> None:
    given = [[20, 20], [40, 22], [30, 32], [22, 44], [40, 44]]
    one, other = {"region": "everywhere"}, {"keypoints": json.dumps(given), "region": "everywhere"}
    assert_same(run(one, other)[1][0], run(other, one)[1][0])
    p, _ = run(one, other)
    assert len(p.host.nets) == 3, "a job reads a file once"


def test_the_map_is_shown_on_request(run: Run) -> None:
    from types import SimpleNamespace

    p, _ = run({"show_map": True, "region": "everywhere"}, {"show_map": False, "region": "everywhere"})
    result = SimpleNamespace(images=[], infotexts=[], comments="")
    p.job.finish(result)
    assert [image.size for image in result.images] == [(SIZE, SIZE)]
    assert result.infotexts == ["IP-Adapter keypoints: Unit 1, 64 x 64"]
    assert max(extreme for _, extreme in result.images[0].getextrema()) == 255


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"keypoints": "pose"}, BadUnitError, "has a pose photo"),
        ({"pose": (NOBODY,)}, NoFaceError, "the pose photo"),
        ({"pose": (POSE,), "pose_face": "3", "fit": "pad"}, NoFaceError, "the pose photo"),
        ({"keypoints": "[[1,1],[2,1],[3,3],[4,4],[900,5]]"}, KeypointsError, "900"),
        ({"identity_net": "nowhere.safetensors"}, AdapterNotFoundError, "nowhere"),
        ({"identity_net": "ip-adapter_instant_id_sd15.safetensors"}, IdentityNetError, "no ControlNet"),
        ({"identity_net": "control_instant_id_wide.safetensors"}, WrongBaseError, "control_instant_id_wide"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    run: Run, folder: Path, fields: dict[str, Any], error: type[IPAdapterError], says: str
) -> None:
    write_net(folder, "control_instant_id_wide.safetensors", narrow(SD15, 64))
    plain = run()[1]
    with pytest.raises(error, match=says) as caught:
        run(fields)
    assert str(caught.value).startswith("IP-Adapter unit 1: ")
    assert torch.equal(run()[1][0], plain[0])
    p, going_on = run(fields, stop=False)
    assert torch.equal(going_on[0], plain[0])
    assert "Generated without unit 1" in p.comments[0]


def test_a_missing_half_names_the_folders_and_the_other_controlnets(run: Run, folder: Path) -> None:
    (folder / NET).rename(folder / "control_depth_sd15.safetensors")
    with pytest.raises(IdentityNetError, match=r"other half.*control_depth_sd15\.safetensors") as caught:
        run({})
    assert str(folder) in str(caught.value)
    p, _ = run({"identity_net": "control_depth_sd15"})
    assert record_of(p)["ran"]["net"] == "control_depth_sd15.safetensors", "the user's word counts"
    (folder / "control_depth_sd15.safetensors").unlink()
    write_net(folder, "control_instant_id_wide.safetensors", narrow(SD15, 64))
    with pytest.raises(WrongBaseError, match="control_instant_id_wide"):
        run({})
    (folder / "InstantID").mkdir()
    write_net(folder, "InstantID/diffusion_pytorch_model.safetensors")
    p, _ = run({})
    assert record_of(p)["ran"]["net"] == "InstantID/diffusion_pytorch_model.safetensors", "the one that fits"


def test_both_halves_are_of_one_pair(run: Run, folder: Path) -> None:
    other = "a_control_instant_id_sd21.safetensors"
    write_net(folder, other, replace(narrow(SD15), context_dim=1024))
    p, _ = run({})
    assert record_of(p)["ran"]["net"] == NET, "the one whose tokens the adapter gives"
    with pytest.raises(WrongBaseError, match=r"takes tokens of 1024 numbers and ip-adapter_instant_id_sd15"):
        run({"identity_net": other})


def test_a_pass_of_unknown_size_is_refused(run: Run) -> None:
    with pytest.raises(UnsupportedHostStateError, match="at which size"):
        run({}, announces=False)
    run({"keypoints": "none"}, announces=False)


def test_an_instantid_unit_of_the_controlnet_extension_is_told_of(run: Run) -> None:
    from types import SimpleNamespace

    script = SimpleNamespace(title=lambda: "ControlNet", args_from=1, args_to=4)
    units = [{"enabled": True, "model": "control_instant_id_sdxl [c5c25a50]"}, {"enabled": False, "model": "instantid"}]
    given = {"scripts": SimpleNamespace(alwayson_scripts=[script]), "script_args": (0, *units, SimpleNamespace())}
    p, _ = run({}, **given)
    assert "applied twice" in p.comments[0]
    assert "instantid" not in p.comments[0]
    assert not run({"identity_net": "none"}, **given)[0].comments


def test_only_masked_maps_the_points_into_the_crop(run: Run, unet: nn.Module, folder: Path, prepared: Any) -> None:
    picture = Image.new("RGB", (200, 100))
    masked = {
        "image_mask": picture, "init_images": [picture], "paste_to": (100, 20, 80, 80), "inpaint_full_res": True,
    }  # fmt: skip
    points = [[120, 40], [150, 40], [135, 55], [122, 75], [150, 75]]
    _, ours = run({"keypoints": json.dumps(points)}, **masked)
    cut = tuple(((x - 100) * SIZE / 80, (y - 20) * SIZE / 80) for x, y in points)
    assert_same(ours[0], by_hand(unet, prepared[-1], cut))
    cut = ((10 - 100) * SIZE / 80, (10 - 20) * SIZE / 80), *cut[1:]
    _, ours = run({"keypoints": json.dumps([[10, 10], *points[1:]])}, **masked)
    assert_same(ours[0], by_hand(unet, prepared[-1], cut))
    with pytest.raises(KeypointsError, match=r"masked.*no keypoint of a face lies in it: mask the face"):
        run({"keypoints": json.dumps([[x - 90, y] for x, y in points])}, **masked)
    whole = [[10, 10], *[[x / 4, y / 2] for x, y in points[1:]]]
    run({"keypoints": json.dumps(whole)}, **(masked | {"inpaint_full_res": False}))
    with pytest.raises(UnsupportedHostStateError, match="does not say where"):
        run({"keypoints": json.dumps(whole)}, **(masked | {"paste_to": None}))


def test_nets_are_let_go_after_the_job_and_after_a_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    p, _ = run({})
    alive = [weakref.ref(net) for net in p.host.nets]
    p.host.nets.clear()
    del p
    gc.collect()
    assert not any(ref() for ref in alive)
    monkeypatch.setattr(Processing, "announces", False)
    host: list[FakeHost] = []
    build = FakeHost.build_net

    def build_net(self: FakeHost, *args: Any) -> Any:
        host.append(self)
        return build(self, *args)

    monkeypatch.setattr(FakeHost, "build_net", build_net)
    with pytest.raises(UnsupportedHostStateError):
        run({})
    alive = [weakref.ref(net) for net in host[0].nets]
    host[0].nets.clear()
    gc.collect()
    assert alive
    assert not any(ref() for ref in alive)
