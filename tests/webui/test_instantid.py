"""InstantID in one unit on the stand-in host: every kind of job against the same job computed row by row."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lib_ipadapter.core.identity_net import IdentityNet, Residuals, load_identity_net
from lib_ipadapter.encoders.keypoint_map import as_hint, draw_keypoints
from lib_ipadapter.library.controlnets import read_controlnet
from lib_ipadapter.session.keypoints import frame_of, lay
from tests.encoders.face_pictures import DrawnFace, face_picture, portrait
from tests.residual_hooks import add_residuals
from tests.sample_models import IDENTITY_NET
from tests.webui.prompting import LONG, WARNING, Prompting, assert_same_latents
from tests.webui.test_faces import ANNA, BERT, NOBODY, as_base64, half_mask
from tests.webui.watching import RowByRow

UNIT = {"intent": "instantid", "images": [ANNA], "weight": 0.9, "net_weight": 0.7}
TWO = [DrawnFace(200, 250, 180, 3), DrawnFace(430, 300, 200, 2, 12)]
POSE = as_base64(Image.fromarray(face_picture(600, 600, TWO)))
JOBS: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "batch": {"batch_size": 2, "n_iter": 2},
    "hires": {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7},
    "img2img": {"route": "img2img", "denoising_strength": 0.8},
    "inpaint only masked": {
        "route": "img2img", "denoising_strength": 0.8, "mask": half_mask(), "inpaint_full_res": True,
    },
    "long prompt": {"prompt": LONG},
    "not square": {"width": 96, "height": 64},
}  # fmt: skip


class WithNet(RowByRow):
    """Adds `residuals(x, timesteps, kind, y)` to each row's places, found by hooks of this test."""

    def __init__(self, *given: Any, residuals: Callable[..., Residuals]) -> None:
        super().__init__(*given)
        self.residuals = residuals

    def __enter__(self) -> Any:
        from ldm.modules.diffusionmodules.openaimodel import UNetModel

        whole = UNetModel.forward

        def controlled(unet: Any, x: Tensor, timesteps: Any = None, context: Any = None, y: Any = None, **more: Any):
            down, mid = self.residuals(x, timesteps, self.kind, y)
            handles = add_residuals(unet, down, mid)
            try:
                return whole(unet, x, timesteps, context=context, y=y, **more)
            finally:
                for handle in handles:
                    handle.remove()

        self._patch.setattr(UNetModel, "forward", controlled)
        return super().__enter__()


def net_file(prompting: Prompting, suffix: str = "sd15") -> Path:
    return prompting.standin.data_dir / "models" / "ipadapter" / IDENTITY_NET.format(suffix)


@lru_cache(maxsize=2)
def loaded(path: Path, heads: tuple[int, ...]) -> IdentityNet:
    from dataclasses import replace

    return load_identity_net(replace(read_controlnet(path), heads=heads), path)


def reference(prompting: Prompting, job: dict[str, Any]) -> list[Tensor]:
    """Latents of the same job computed row by row, with the last job's units and without our hooks."""
    units, p = list(prompting.prepared), prompting.jobs[-1]
    frame, suffix = frame_of(p), "sdxl" if p.sd_model.is_sdxl else "sd15"
    identities = [(unit, unit.choice.net.spec.heads) for unit in units]
    faces = {unit.number: find(prompting, unit) for unit in units}

    def residuals(x: Tensor, timesteps: Tensor, kind: int, y: Tensor | None) -> Residuals:
        down: list[Tensor] = []
        mid: Tensor = torch.zeros(())
        canvas = (8 * x.shape[-1], 8 * x.shape[-2])
        for unit, heads in identities:
            net = loaded(net_file(prompting, suffix), heads)
            points = lay(faces[unit.number], frame, canvas, unit.unit.fit)
            hint = net.embed_hint(as_hint(draw_keypoints([points], canvas)))
            one = net(x, timesteps, unit.tokens[kind : kind + 1], hint, y, strength=unit.unit.net_weight)
            down = [a + b for a, b in zip(down, one.down, strict=True)] if down else one.down
            mid = mid + one.mid
        return Residuals(down, mid)

    def attention(*args: Any) -> Tensor:
        prompting.prepared[:] = units
        return prompting.image_attention(*args)

    with WithNet(prompting.kind, attention, residuals=residuals):
        answer = prompting.post(**job)
    assert answer.status_code == 200, answer.text
    return list(prompting.latents)


def find(prompting: Prompting, unit: Any) -> Any:
    from lib_ipadapter.session.faces import FacePool
    from lib_ipadapter.session.keypoints import find_keypoints
    from lib_ipadapter.session.prepare import read_references
    from lib_ipadapter.session.seats import Seating
    from lib_ipadapter.webui.process import services

    given = services()
    store = given.store()
    with FacePool(given.host, given.cache) as faces:
        seat = Seating([(one.number, one.unit) for one in prompting.prepared], store).seat(unit.number)
        return find_keypoints(unit.unit, unit.choice.pack, read_references(unit.unit, store), seat, faces)


@pytest.mark.parametrize("job", JOBS)
def test_every_job_is_the_one_computed_row_by_row(prompting: Prompting, job: str) -> None:
    plain = prompting.run(**JOBS[job]).pixels
    result = prompting.run(UNIT, **JOBS[job])
    ours = list(prompting.latents)
    assert all(one != other for one, other in zip(result.pixels, plain, strict=True))
    assert_same_latents(ours, reference(prompting, JOBS[job]))
    assert prompting.run(**JOBS[job]).pixels == plain
    attention = prompting.run({**UNIT, "net_weight": 0}, **JOBS[job]).pixels
    assert all(one != other for one, other in zip(result.pixels, attention, strict=True))


@pytest.mark.parametrize("kind", ["sd15-inpainting", "sdxl"])
def test_other_checkpoints(prompting: Prompting, kind: str) -> None:
    """An inpainting checkpoint's net sees the first four channels; SDXL's net takes the prompt's vector."""
    prompting.provide(kind)
    prompting.standin.select(kind)
    job = JOBS["inpaint only masked"] if kind == "sd15-inpainting" else {}
    plain = prompting.run(**job).pixels
    prompting.run(UNIT, **job)
    ours = list(prompting.latents)
    assert_same_latents(ours, reference(prompting, job))
    assert prompting.run(**job).pixels == plain


def test_a_pose_photo_and_two_people(prompting: Prompting) -> None:
    units = (
        {**UNIT, "pose": [POSE], "pose_face": "1", "weight": 0.5, "region": "everywhere"},
        {**UNIT, "images": [BERT], "pose": [POSE], "pose_face": "2", "weight": 0.5, "region": "everywhere"},
    )
    prompting.run(*units)
    ours = list(prompting.latents)
    assert_same_latents(ours, reference(prompting, {}))
    prompting.run(*reversed(units))
    assert_same_latents(ours, prompting.latents)


def test_the_infotext_says_which_net_ran_and_whose_keypoints(prompting: Prompting) -> None:
    from modules.infotext_utils import parse_generation_parameters

    result = prompting.run({**UNIT, "pose": [POSE]})
    record = json.loads(parse_generation_parameters(result.infotexts[0])["IP-Adapter unit 1"])
    assert record["ran"]["net"] == IDENTITY_NET.format("sd15")
    assert record["ran"]["keypoints"] == "pose"
    assert record["ran"]["faces"].startswith("antelopev2 "), "a pack that nobody knows is told by its fingerprint"
    assert len(record["pose"][0]) == 64
    assert WARNING not in result.infotexts[0]


@pytest.mark.parametrize("job", ["txt2img", "batch", "hires"])
def test_the_map_comes_with_the_results_on_request(prompting: Prompting, job: str) -> None:
    without = prompting.run(UNIT, **JOBS[job])
    result = prompting.run({**UNIT, "show_map": True}, **JOBS[job])
    maps = result.images[len(without.images) :]
    assert result.pixels[: len(without.images)] == without.pixels
    assert [image.size for image in maps] == ([(64, 64), (96, 96)] if job == "hires" else [(64, 64)])
    assert all(image.getextrema()[0] == (0, 255) for image in maps)
    assert result.infotexts[-1].startswith("IP-Adapter keypoints: Unit 1, ")


def test_points_through_the_api_and_what_is_wrong_with_them(prompting: Prompting) -> None:
    points = [[20, 20], [40, 22], [30, 32], [22, 44], [40, 44]]
    given = prompting.run({**UNIT, "keypoints": points}).pixels
    assert given == prompting.run({**UNIT, "keypoints": [[x / 64, y / 64] for x, y in points]}).pixels
    assert given != prompting.run(UNIT).pixels
    assert "outside the picture of 64x64" in prompting.refused({**UNIT, "keypoints": [[65, 2], *points[1:]]})
    assert "keypoints" in prompting.refused({**UNIT, "keypoints": points[:4]})


def test_what_stops_a_job_leaves_the_next_one_as_it_was(prompting: Prompting) -> None:
    plain = prompting.run().pixels
    assert "the pose photo" in prompting.refused({**UNIT, "pose": [NOBODY]})
    far = as_base64(Image.fromarray(face_picture(900, 300, [DrawnFace(120, 150, 200, 3)])))
    assert "pad" in prompting.refused({**UNIT, "images": [far]})
    nets = [path for suffix in ("sd15", "sd21", "sdxl") if (path := net_file(prompting, suffix)).exists()]
    for path in nets:
        path.rename(path.with_suffix(".hidden"))
    try:
        sentence = prompting.refused(UNIT)
        assert "other half" in sentence
        assert str(nets[0].parent) in sentence
        assert prompting.run({**UNIT, "keypoints": "none"}).pixels != plain
    finally:
        for path in nets:
            path.with_suffix(".hidden").rename(path)
    assert prompting.run().pixels == plain


def test_a_masked_part_without_the_face_is_named(prompting: Prompting) -> None:
    corner = Image.new("L", (160, 120), 0)
    corner.paste(255, (130, 90, 160, 120))
    job = {"route": "img2img", "denoising_strength": 0.8, "mask": as_base64(corner), "inpaint_full_res": True}
    assert "Only the masked part" in prompting.refused(UNIT, **job)


def test_the_net_is_gone_after_the_job(prompting: Prompting) -> None:
    import gc

    def alive() -> int:
        gc.collect()
        return sum(isinstance(thing, IdentityNet) for thing in gc.get_objects())

    loaded.cache_clear()
    before = alive()
    prompting.run(UNIT)
    prompting.jobs.clear()
    prompting.prepared.clear()
    assert alive() == before
    prompting.refused({**UNIT, "keypoints": [[65, 2], [1, 1], [2, 2], [3, 3], [4, 4]]})
    prompting.jobs.clear()
    prompting.prepared.clear()
    assert alive() == before


def test_forge_brings_the_net_along_with_the_unet(prompting: Prompting, monkeypatch: pytest.MonkeyPatch) -> None:
    if not prompting.is_forge:
        pytest.skip("the Forge family's memory manager")
    from backend import memory_management, operations
    from modules import shared

    loads: list[list[str]] = []
    load = memory_management.load_models_gpu

    def note(models: Any, *args: Any, **kwargs: Any) -> None:
        loads.append([type(patcher.model).__name__ for patcher in models])
        load(models, *args, **kwargs)

    monkeypatch.setattr(memory_management, "load_models_gpu", note)
    before = shared.sd_model.forge_objects.unet.extra_model_patchers_during_sampling[:]
    prompting.run(UNIT, **JOBS["hires"])
    with_net = [names for names in loads if "IdentityNet" in names]
    assert len(with_net) == 2, "once a pass"
    assert all("KModel" in names for names in with_net)
    assert operations.built_with[-1]["manual_cast_enabled"]
    assert shared.sd_model.forge_objects.unet.extra_model_patchers_during_sampling == before
    assert not any(type(one.model).__name__ == "IdentityNet" for one in memory_management.current_loaded_models)


def test_photos_as_a_sequence_make_another_picture_than_their_mean(prompting: Prompting) -> None:
    pair = {**UNIT, "images": [ANNA, as_base64(portrait(1, tilt=8.0))]}
    mean, sequence = (prompting.run({**pair, "combine": how}).pixels for how in ("mean", "sequence"))
    assert mean != sequence
    assert mean == prompting.run(pair).pixels, "auto"


def test_the_page_names_both_halves(prompting: Prompting) -> None:
    from lib_ipadapter.library.errors import IdentityNetError
    from lib_ipadapter.webui.page import PageServices

    prompting.run()
    lines = PageServices().explain("auto", "instantid", "auto")
    assert "ip-adapter_instant_id_sd15.safetensors" in lines[0]
    assert lines[1] == f"IdentityNet: {IDENTITY_NET.format('sd15')}"
    assert not any(line.startswith("IdentityNet") for line in PageServices().explain("auto", "instantid", "none"))
    with pytest.raises(IdentityNetError, match="no ControlNet"):
        PageServices().explain("auto", "instantid", "ip-adapter_sd15.safetensors")
    assert PageServices().is_instantid("auto", "instantid")
    assert not PageServices().is_instantid("auto", "face")


def test_the_preview_draws_the_map_once_the_photo_was_analysed(prompting: Prompting) -> None:
    from lib_ipadapter.units.face_choice import FaceChoice
    from lib_ipadapter.webui.keypoint_looks import NO_MAP, MapLayout
    from lib_ipadapter.webui.page import PageServices

    photo = (as_base64(portrait(9)), "reference 1", FaceChoice())
    before = PageServices().keypoint_map(photo, "auto", "instantid", MapLayout(), analyse=False)
    assert before == NO_MAP._replace(pending=1)
    drawn = PageServices().keypoint_map(photo, "auto", "instantid", MapLayout(), analyse=True)
    assert drawn.source.startswith("data:image/png;base64,")
    assert (drawn.pending, drawn.problem) == (0, "")
    group = PageServices().keypoint_map((POSE, "the pose photo", None), "auto", "instantid", MapLayout(), analyse=True)
    choice = FaceChoice()
    alone = PageServices().keypoint_map(
        (POSE, "the pose photo", choice), "auto", "instantid", MapLayout(), analyse=True
    )
    assert "2 faces" in group.note
    assert not alone.note
    assert group.source != alone.source
    assert (len(alone.points), len(group.points)) == (5, 0)
    photo = (NOBODY, "the pose photo", FaceChoice())
    nobody = PageServices().keypoint_map(photo, "auto", "instantid", MapLayout(), analyse=True)
    assert "No face" in nobody.problem
