"""The engines' edges: wrong, damaged and missing files and packages, providers, the choice between the two."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib_ipadapter.encoders import face_engine, face_sessions
from lib_ipadapter.encoders.face_alignment import align_face, face_transform
from lib_ipadapter.encoders.face_engine import load_face_engine
from lib_ipadapter.encoders.face_insightface import InsightFaceEngine
from lib_ipadapter.encoders.face_onnx import OnnxFaceEngine
from lib_ipadapter.encoders.faces import OnnxModel, face_of
from lib_ipadapter.library.errors import FaceModelError, MissingPackageError, NotANumberError

from .face_models import cosine, person_recogniser, random_detector, write_face_pack
from .face_pictures import DrawnFace, blank, draw_face, face_picture

ENGINES = [
    OnnxFaceEngine,
    pytest.param(
        InsightFaceEngine,
        marks=pytest.mark.skipif(
            importlib.util.find_spec("insightface") is None, reason="insightface is not installed"
        ),
    ),
]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> tuple[OnnxModel, OnnxModel]:
    detector, recogniser = write_face_pack(tmp_path_factory.mktemp("pack"))
    return OnnxModel(detector.name, detector), OnnxModel(recogniser.name, recogniser)


@pytest.mark.parametrize("engine", ENGINES)
def test_people_are_told_apart_at_any_size_and_tilt(engine: Callable[..., Any], pack: Any) -> None:
    loaded = engine(*pack, cuda=False)

    def embedding(person: int, size: float, tilt: float, x: float) -> np.ndarray:
        picture = face_picture(900, 700, [DrawnFace(x, 340, size, person, tilt)])
        (face,) = loaded.detect(picture, 640)
        return loaded.embed(picture, face)

    one, again, other = embedding(1, 200, 0, 300), embedding(1, 380, 18, 500), embedding(2, 200, 0, 300)
    assert cosine(one, again) > 0.95
    assert cosine(one, other) < 0.5
    assert 10 < np.linalg.norm(one) < 30


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_of_one_size_takes_any_picture(engine: Callable[..., Any]) -> None:
    loaded = engine(OnnxModel("fixed", random_detector(3, fixed=320)), None, cuda=False)
    picture = blank(500, 400, seed=1)
    faces = loaded.detect(picture, 640)
    assert faces
    assert loaded.detect(picture, 256) == faces


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (9000, 1), (3, 9000)])
def test_dots_and_lines_have_no_face(engine: Callable[..., Any], pack: Any, width: int, height: int) -> None:
    assert engine(*pack, cuda=False).detect(blank(width, height), 640) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_from_a_path_and_from_bytes(engine: Callable[..., Any], pack: Any) -> None:
    picture = face_picture(640, 640, [DrawnFace(300, 300, 200)])
    opened = engine(*pack, cuda=False)
    read = engine(*(OnnxModel(model.name, Path(model.source).read_bytes()) for model in pack), cuda=False)
    (face,) = opened.detect(picture, 640)
    assert read.detect(picture, 640) == [face]
    assert np.array_equal(opened.embed(picture, face), read.embed(picture, face))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cut", [0, 1, 1000])
def test_a_damaged_file_is_named(engine: Callable[..., Any], pack: Any, cut: int, tmp_path: Path) -> None:
    file = tmp_path / "det_10g.onnx"
    file.write_bytes(Path(pack[0].source).read_bytes()[:-1000][:cut])
    with pytest.raises(FaceModelError, match=r"det_10g\.onnx cannot be opened .* Download it again"):
        engine(OnnxModel(file.name, file), None, cuda=False)
    with pytest.raises(FaceModelError, match=r"w600k_r50\.onnx cannot be opened"):
        engine(pack[0], OnnxModel("w600k_r50.onnx", b"not a model"), cuda=False)
    with pytest.raises(FaceModelError, match="gone"):
        engine(OnnxModel("gone", tmp_path / "gone.onnx"), None, cuda=False)


@pytest.mark.parametrize("engine", ENGINES)
def test_files_in_each_others_place_are_named(engine: Callable[..., Any], pack: Any) -> None:
    detector, recogniser = pack
    with pytest.raises(FaceModelError, match=r"w600k_r50\.onnx is no face detector .* 1 output"):
        engine(recogniser, None, cuda=False)
    with pytest.raises(FaceModelError, match=r"det_10g\.onnx is no face recogniser"):
        engine(detector, detector, cuda=False)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_embedding_that_is_no_number_is_refused(engine: Callable[..., Any], pack: Any) -> None:
    picture = face_picture(640, 640, [DrawnFace(300, 300, 200)])
    broken = person_recogniser(weights=np.nan)
    loaded = engine(pack[0], OnnxModel("w600k_r50.onnx", broken), cuda=False)
    (face,) = loaded.detect(picture, 640)
    with pytest.raises(NotANumberError, match=r"w600k_r50\.onnx computed 512 values"):
        loaded.embed(picture, face)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_detector_alone_recognises_nobody(engine: Callable[..., Any], pack: Any) -> None:
    face = face_of((0, 0, 9, 9), 0.9, DrawnFace(5, 5, 9).keypoints)
    with pytest.raises(ValueError, match="recogniser"):
        engine(pack[0], None, cuda=False).embed(blank(9, 9), face)


@pytest.mark.parametrize("bad", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3))])
def test_only_rgb_is_a_picture(pack: Any, bad: Any) -> None:
    with pytest.raises(ValueError, match="uint8"):
        OnnxFaceEngine(pack[0], None, cuda=False).detect(bad, 640)


def test_the_aligned_crop_is_the_face_upright() -> None:
    """Whatever its size and tilt, it is the face drawn at that size; at 256 the same face with more around it."""
    for drawn in (DrawnFace(400, 300, 260, 3, 25), DrawnFace(500, 333, 500, 3, -40)):
        face = face_of(drawn.box, 0.9, drawn.keypoints)
        picture = face_picture(1000, 700, [drawn])
        for side, size, x in ((112, 112, 56), (224, 224, 112), (256, 224, 128)):
            expected = draw_face(blank(side, side), DrawnFace(x, size / 2, size, 3))
            rows, columns = np.mgrid[:side, :side] + 0.5
            inside = np.hypot(columns - x, rows - size / 2) < size * 0.47
            crop = align_face(picture, face, side)
            assert np.abs(crop[inside, :2].astype(int) - expected[inside, :2]).max() <= 8


def test_alignment_in_a_picture_wider_than_the_warp_can_address() -> None:
    drawn = DrawnFace(39000.0, 130.0, 200.0, 4, 12)
    near = DrawnFace(300.0, 130.0, 200.0, 4, 12)
    wide, narrow = (face_picture(width, 260, [face]) for width, face in ((40000, drawn), (600, near)))
    crops = [
        align_face(picture, face_of(face.box, 0.9, face.keypoints), 112)
        for picture, face in ((wide, drawn), (narrow, near))
    ]
    assert np.abs(crops[0].astype(int) - crops[1]).max() <= 8


def test_keypoints_on_one_point_cannot_be_aligned() -> None:
    with pytest.raises(FaceModelError, match=r"at one point \(5, 6\)"):
        face_transform(face_of((0, 0, 9, 9), 0.9, [(5, 6)] * 5), 112)
    with pytest.raises(ValueError, match="113"):
        face_transform(face_of((0, 0, 9, 9), 0.9, DrawnFace(5, 5, 9).keypoints), 113)


@pytest.fixture
def unimportable(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Exception], None]:
    """Makes the import of a package raise."""

    def make(name: str, error: Exception) -> None:
        real = importlib.import_module

        def importing(wanted: str, *rest: Any) -> types.ModuleType:
            if wanted.partition(".")[0] == name:
                raise error
            return real(wanted, *rest)

        monkeypatch.setattr(importlib, "import_module", importing)

    return make


def absent(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize("name", ["onnxruntime", "cv2"])
def test_a_missing_package_is_named_with_how_to_install_it(pack: Any, unimportable: Any, name: str) -> None:
    unimportable(name, absent(name))
    for prefer in ("auto", "insightface", "onnxruntime"):
        with pytest.raises(MissingPackageError, match=f"{name}, which is not installed.* pip install o"):
            load_face_engine(*pack, cuda=False, prefer=prefer)


def test_a_package_that_does_not_load_is_named_with_why(pack: Any, unimportable: Any) -> None:
    unimportable("onnxruntime", ImportError("DLL load failed: the module was not found"))
    with pytest.raises(MissingPackageError, match=r"does not load \(DLL load failed"):
        load_face_engine(*pack, cuda=False)


def test_without_insightface_our_own_runner_is_taken(pack: Any, unimportable: Any, caplog: Any) -> None:
    unimportable("insightface", absent("insightface"))
    assert isinstance(load_face_engine(*pack, cuda=False), OnnxFaceEngine)
    assert not caplog.records, "it is an extra; nobody misses it"
    with pytest.raises(MissingPackageError, match="insightface is not installed"):
        load_face_engine(*pack, cuda=False, prefer="insightface")


def test_a_broken_insightface_is_a_line_in_the_log(
    pack: Any, unimportable: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(face_engine, "_told", set())
    unimportable("insightface", ValueError("numpy.dtype size changed, may indicate binary incompatibility"))
    with caplog.at_level(logging.WARNING, "ipadapter"):
        assert isinstance(load_face_engine(*pack, cuda=False), OnnxFaceEngine)
        assert isinstance(load_face_engine(*pack, cuda=False), OnnxFaceEngine)
    (record,) = caplog.records
    assert "insightface does not load (numpy.dtype size changed" in record.getMessage()
    with pytest.raises(MissingPackageError, match="size changed"):
        load_face_engine(*pack, cuda=False, prefer="insightface")


def test_insightface_is_taken_where_it_imports(pack: Any) -> None:
    insightface = pytest.importorskip("insightface", reason="insightface is not installed")
    assert load_face_engine(*pack, cuda=False).name == f"insightface {insightface.__version__}"
    assert load_face_engine(*pack, cuda=False, prefer="onnxruntime").name.startswith("onnxruntime ")


def test_insightface_neither_prints_nor_opens_a_connection(
    pack: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("insightface", reason="insightface is not installed")
    import socket

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is asked of the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    loaded = load_face_engine(*pack, cuda=False, prefer="insightface")
    picture = face_picture(640, 640, [DrawnFace(300, 300, 200)])
    loaded.embed(picture, loaded.detect(picture, 640)[0])
    assert capsys.readouterr() == ("", "")


class FakeRuntime:
    """onnxruntime as a CUDA build reports itself, over the real CPU sessions."""

    def __init__(self, how: str) -> None:
        import onnxruntime

        self.real, self.how, self.asked = onnxruntime, how, []
        self.SessionOptions = onnxruntime.SessionOptions

    def get_available_providers(self) -> list[str]:
        with_cuda = [] if self.how == "cpu build" else ["CUDAExecutionProvider"]
        return [*with_cuda, "CPUExecutionProvider"]

    def InferenceSession(self, source: Any, options: Any, providers: list[Any]) -> Any:  # noqa: N802
        names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
        self.asked.append(names)
        if names[0].startswith("CUDA") and self.how == "raises":
            raise RuntimeError("CUDA failure 35: CUDA driver version is insufficient\nsecond line")
        return self.real.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("how", "message"),
    [("raises", "CUDA failure 35"), ("falls back", "did not load"), ("cpu build", None)],
)
def test_a_provider_that_does_not_load_is_a_line_in_the_log(
    how: str, message: str | None, pack: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeRuntime(how)
    monkeypatch.setattr(face_sessions, "import_onnxruntime", lambda: fake)
    with caplog.at_level(logging.WARNING, "ipadapter"):
        loaded = OnnxFaceEngine(pack[0], None, cuda=True)
    assert len(loaded.detect(face_picture(640, 640, [DrawnFace(300, 300, 200)]), 640)) == 1
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (message is not None)
    assert all(message in line for line in lines if message)
    assert fake.asked[-1][-1] == "CPUExecutionProvider"
    assert any("CUDAExecutionProvider" in names for names in fake.asked) == (how != "cpu build")


def test_without_the_wish_cuda_is_not_asked_for(pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRuntime("falls back")
    monkeypatch.setattr(face_sessions, "import_onnxruntime", lambda: fake)
    OnnxFaceEngine(*pack, cuda=False)
    assert fake.asked == [["CPUExecutionProvider"]] * 2


def test_nothing_heavy_is_imported_before_a_face_is_asked_for() -> None:
    modules = ("face_alignment", "face_choice", "face_engine", "face_insightface", "face_onnx", "face_search", "faces")
    imports = "; ".join(f"import lib_ipadapter.encoders.{name}" for name in modules)
    check = "import sys; print([m for m in ('cv2', 'onnxruntime', 'insightface', 'skimage') if m in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-B", "-c", f"{imports}; {check}"], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
