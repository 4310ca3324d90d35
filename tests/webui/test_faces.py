"""Jobs with a person's photo on the stand-in host: every kind of job, the identity score, and what stops a job."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_ipadapter.session.scoring import score_key
from tests.encoders.face_pictures import DrawnFace, face_picture, portrait
from tests.webui.prompting import BLUE, GREEN, LONG, RED, WARNING, Prompting, assert_same_latents


def as_base64(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


ANNA, BERT = as_base64(portrait(1)), as_base64(portrait(3))
NOBODY = as_base64(Image.new("RGB", (320, 240), (90, 90, 90)))
FACE = {"intent": "face", "images": [ANNA], "weight": 1.0, "lora": 0.0}


def half_mask() -> str:
    mask = Image.new("L", (160, 120), 0)
    mask.paste(255, (80, 0, 160, 120))
    return as_base64(mask)


JOBS: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "batch": {"batch_size": 2, "n_iter": 2},
    "hires": {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7},
    "img2img": {"route": "img2img", "denoising_strength": 0.8},
    "inpaint only masked": {
        "route": "img2img", "denoising_strength": 0.8, "mask": half_mask(), "inpaint_full_res": True,
    },
    "long prompt": {"prompt": LONG},
}  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("adapter", ["ip-adapter-faceid_sd15", "ip-adapter-faceid-plusv2_sd15"])
def test_every_row_of_every_job_gets_its_face_tokens(prompting: Prompting, job: str, adapter: str) -> None:
    plain = prompting.run(**JOBS[job]).pixels
    with prompting.watch() as calls:
        result = prompting.run({**FACE, "adapter": adapter}, **JOBS[job])
    prompting.check_rows(calls)
    assert all(one != other for one, other in zip(result.pixels, plain, strict=True))
    assert prompting.run(**JOBS[job]).pixels == plain


def test_a_face_and_a_picture_act_together(prompting: Prompting) -> None:
    units = ({**FACE, "weight": 0.7}, {"images": [RED], "weight": 0.6})
    with prompting.watch() as calls:
        prompting.run(*units)
    prompting.check_rows(calls)
    assert prompting.prepared[0].choice.sources.endswith("buffalo_l")
    ours = list(prompting.latents)
    assert_same_latents(ours, prompting.reference())


def test_another_person_and_another_face_of_the_picture_make_another_picture(prompting: Prompting) -> None:
    both = as_base64(
        Image.fromarray(face_picture(900, 500, [DrawnFace(200, 250, 180, 3), DrawnFace(650, 250, 260, 1)]))
    )
    pictures = [
        prompting.run({**FACE, **change}).pixels[0]
        for change in ({}, {"images": [BERT]}, {"images": [both]}, {"images": [both], "face": "1"})
    ]
    assert len(set(pictures)) == 4


def test_the_infotext_says_which_models_saw_the_face(prompting: Prompting) -> None:
    from modules.infotext_utils import parse_generation_parameters

    result = prompting.run({**FACE, "face": "best", "score": False})
    record = json.loads(parse_generation_parameters(result.infotexts[0])["IP-Adapter unit 1"])
    assert record["intent"] == "face"
    assert record["face"] == "best"
    assert record["ran"]["faces"].startswith("buffalo_l "), "a pack that nobody knows is told by its fingerprint"
    assert "score" not in record


def test_the_score_stands_in_each_picture_and_the_best_is_named(
    prompting: Prompting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampled pictures of random nets show nobody, so finished pictures are swapped for drawn ones."""
    from lib_ipadapter.webui.script import IPAdapterScript

    shown = iter([portrait(3), portrait(1), Image.new("RGB", (200, 200)), portrait(1, tilt=8.0)])
    score = IPAdapterScript.postprocess_image_after_composite

    def swapped(self: Any, p: Any, pp: Any, *args: Any) -> None:
        pp.image = next(shown)
        score(self, p, pp, *args)

    said: list[str] = []
    postprocess = IPAdapterScript.postprocess

    def listening(self: Any, p: Any, processed: Any, *args: Any) -> None:
        postprocess(self, p, processed, *args)
        said.append(processed.comments)

    monkeypatch.setattr(IPAdapterScript, "postprocess_image_after_composite", swapped)
    monkeypatch.setattr(IPAdapterScript, "postprocess", listening)
    answer = prompting.post({**FACE, "score": True}, batch_size=2, n_iter=2).json()
    info = json.loads(answer["info"])
    values = info["extra_generation_params"][score_key(1)]
    assert values[2] is None
    assert values[1] > 0.95
    assert values[0] < 0.5
    assert values[3] > 0.9
    from modules.infotext_utils import parse_generation_parameters

    texts = [parse_generation_parameters(text)[score_key(1)] for text in info["infotexts"][-4:]]
    assert texts == [f"{values[0]:.3f}", f"{values[1]:.3f}", "no face", f"{values[3]:.3f}"]
    assert "IP-Adapter unit 1" in parse_generation_parameters(info["infotexts"][-1])
    (job,) = prompting.jobs
    assert not [key for key in job.extra_generation_params if key == score_key(1)], "what comes later is no picture"
    assert "Identity scores of unit 1" in said[0]
    assert "the best is picture 2" in said[0]


def test_the_score_is_asked_for_and_costs_nothing_otherwise(prompting: Prompting) -> None:
    result = prompting.run(FACE)
    assert score_key(1) not in result.infotexts[0]
    plain = prompting.run({**FACE, "score": True})
    assert plain.pixels == result.pixels, "scoring changes no picture"
    assert f"{score_key(1)}: no face" in plain.infotexts[0]


def test_a_failing_score_costs_no_picture(prompting: Prompting, monkeypatch: pytest.MonkeyPatch) -> None:
    from lib_ipadapter.session.faces import FacePool

    expected = prompting.run(FACE).pixels

    def fail(self: Any, *args: Any) -> Any:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(FacePool, "embeddings", fail)
    result = prompting.run({**FACE, "score": True})
    assert result.pixels == expected
    assert "No identity score of unit 1" in result.infotexts[0]
    assert WARNING in result.infotexts[0]


def test_a_picture_unit_is_scored_with_the_installed_pack(prompting: Prompting) -> None:
    result = prompting.run({"images": [ANNA], "score": True})
    assert f"{score_key(1)}: no face" in result.infotexts[0]
    result = prompting.run({"images": [BLUE], "score": True})
    assert "No identity score of unit 1" in result.infotexts[0], "the reference shows no face"


def test_a_photo_of_somebody_else_is_told_of_in_the_result(prompting: Prompting) -> None:
    result = prompting.run({**FACE, "images": [ANNA, BERT]})
    assert "does not fit" in result.infotexts[0]


@pytest.mark.parametrize(
    ("unit", "says"),
    [
        ({"images": [NOBODY]}, "picture 1"),
        ({"images": [ANNA, NOBODY]}, "picture 2"),
        ({"images": [as_base64(Image.new("RGB", (1, 1)))]}, "1 x 1"),
        ({"face": "4"}, "Face 4"),
        ({"face": "smallest"}, "face is 'smallest'"),
        ({"face": "1; 2"}, "2 choices"),
    ],
)
def test_a_face_that_cannot_be_had_stops_the_job_with_a_sentence(
    prompting: Prompting, unit: dict[str, Any], says: str
) -> None:
    plain = prompting.run().pixels
    assert says in prompting.refused({**FACE, **unit})
    assert prompting.run().pixels == plain


def pack_folder(prompting: Prompting) -> Path:
    return prompting.standin.data_dir / "models" / "ipadapter" / "buffalo_l"


@pytest.fixture
def pack(prompting: Prompting, tmp_path: Path) -> Any:
    """The installed pack's folder, put back as it was afterwards."""
    folder = pack_folder(prompting)
    shutil.copytree(folder, tmp_path / "kept")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tmp_path / "kept", folder)


def test_no_pack_half_a_pack_and_a_broken_one_are_told_apart(prompting: Prompting, pack: Path) -> None:
    detector, recogniser = sorted(pack.glob("*.onnx"))
    recogniser.write_bytes(recogniser.read_bytes()[: recogniser.stat().st_size // 2])
    assert recogniser.name in prompting.refused(FACE)
    recogniser.unlink()
    half = prompting.refused(FACE)
    assert "recogniser" in half or "recognition" in half
    detector.unlink()
    none = prompting.refused(FACE)
    assert "buffalo_l" in none
    assert str(pack.parent) in none, "where it was looked for"


def test_without_onnxruntime_the_sentence_says_how_to_get_it(
    prompting: Prompting, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from modules import shared  # noqa: F401 - the host is there

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "insightface", None)
    fresh = as_base64(portrait(6))
    assert "onnxruntime" in prompting.refused({**FACE, "images": [fresh]})
    with_picture = prompting.run({"images": [GREEN]})
    assert with_picture.pixels, "image prompts need none of it"


def test_a_lora_that_acted_alone_stands_in_the_infotext(prompting: Prompting) -> None:
    """A LoRA is on for a whole pass, whatever the unit's window."""
    plain = prompting.run().pixels
    result = prompting.run({**FACE, "lora": 0.6, "start": 1.0, "end": 1.0})
    assert result.pixels != plain
    assert '\\"lora\\":\\"' in result.infotexts[0]
    assert "only the LoRA acted" in result.infotexts[0]
    result = prompting.run({**FACE, "lora": 0.0, "start": 1.0, "end": 1.0})
    assert result.pixels == plain
    assert "IP-Adapter unit 1:" not in result.infotexts[0]
