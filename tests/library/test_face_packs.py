"""Face packs as people have them: which two files are used, which never are, and what is said of everything else."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from lib_ipadapter.library import catalogue, face_models, face_packs
from lib_ipadapter.library.catalogue import KnownFaceFile, face_file_by_sha256, known_face_files
from lib_ipadapter.library.errors import AdapterFileError, FacePackError
from lib_ipadapter.library.face_packs import FacePack, find_face_pack, list_face_packs

from .onnx_bytes import detector, field, landmarks, model, recogniser, write_large


@dataclass(frozen=True)
class Published:
    """Stand-ins for the published files: what `library` takes for det_10g, w600k_r50, ... in these tests."""

    det: bytes
    small_det: bytes
    buffalo: bytes
    antelope: bytes
    aura: bytes
    mbf: bytes


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Published:
    files = Published(
        det=detector(seed=0.5),
        small_det=detector(seed=0.25, weights=8),
        buffalo=recogniser(seed=1.5, weights=40),
        antelope=recogniser(seed=2.5, weights=50),
        aura=recogniser(seed=3.5, weights=51),
        mbf=recogniser(seed=4.5, weights=20),
    )

    def row(names: str, raw: bytes, packs: tuple[str, ...], task: str, origin: str = "") -> KnownFaceFile:
        digest = hashlib.sha256(raw).hexdigest()
        return KnownFaceFile(tuple(names.split()), len(raw), digest, packs, task, origin or " and ".join(packs))  # type: ignore[arg-type]

    rows = (
        row("det_10g.onnx scrfd_10g_bnkps.onnx", files.det, ("buffalo_l", "antelopev2"), "detection"),
        row("w600k_r50.onnx", files.buffalo, ("buffalo_l",), "recognition"),
        row("glintr100.onnx", files.antelope, ("antelopev2",), "recognition"),
        row("1k3d68.onnx", landmarks(), ("buffalo_l", "antelopev2"), "landmark_3d_68"),
        row("w600k_mbf.onnx", files.mbf, (), "recognition", "buffalo_s and buffalo_sc"),
        row("det_500m.onnx", files.small_det, (), "detection", "buffalo_s and buffalo_sc"),
        row("glintr100.onnx", files.aura, (), "recognition", "AuraFace-v1"),
    )
    by_digest = {known.sha256: known for known in rows}
    monkeypatch.setattr(face_packs, "known_face_files", lambda: rows)
    monkeypatch.setattr(face_packs, "face_file_by_sha256", by_digest.get)
    return files


def put(path: Path, raw: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


def pack_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, raw in members.items():
            archive.writestr(name, raw)
    return path


def refusal(folders: list[Path], name: str = "antelopev2") -> str:
    with pytest.raises(FacePackError) as caught:
        find_face_pack(folders, name)
    message = str(caught.value)
    assert "\n" not in message and message.endswith("non-commercial research only.")
    for folder in folders:
        assert str(folder) in message
    return message


def whole(pack: FacePack, detector_bytes: bytes, recogniser_bytes: bytes) -> None:
    assert (pack.detector.read(), pack.recogniser.read()) == (detector_bytes, recogniser_bytes)
    for found, raw in ((pack.detector, detector_bytes), (pack.recogniser, recogniser_bytes)):
        assert (found.sha256, found.size) == (hashlib.sha256(raw).hexdigest(), len(raw))


# -- where packs lie


LAYOUTS = {
    "flat": ("det_10g.onnx", "glintr100.onnx"),
    "in its folder": ("antelopev2/scrfd_10g_bnkps.onnx", "antelopev2/glintr100.onnx"),
    "as insightface puts it": ("models/antelopev2/scrfd_10g_bnkps.onnx", "models/antelopev2/glintr100.onnx"),
    "unpacked into itself": ("antelopev2/antelopev2/scrfd_10g_bnkps.onnx", "antelopev2/antelopev2/glintr100.onnx"),
    "the other pack's detector": ("models/buffalo_l/det_10g.onnx", "models/glintr100.onnx"),
    "renamed": ("a.onnx", "b/Face.ONNX"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_usual_place(layout: str, published: Published, tmp_path: Path) -> None:
    first, second = LAYOUTS[layout]
    put(tmp_path / first, published.det)
    put(tmp_path / second, published.antelope)
    put(tmp_path / "models/antelopev2/1k3d68.onnx", landmarks())
    pack = find_face_pack([tmp_path / "nothing", tmp_path], "antelopev2")
    whole(pack, published.det, published.antelope)
    assert (pack.name, pack.note) == ("antelopev2", "")
    assert pack.detector.path == tmp_path / first
    assert pack.recogniser.member == ""


def test_two_folders_share_one_detector(published: Published, tmp_path: Path) -> None:
    put(tmp_path / "one/det_10g.onnx", published.det)
    put(tmp_path / "two/w600k_r50.onnx", published.buffalo)
    put(tmp_path / "three/glintr100.onnx", published.antelope)
    folders = [tmp_path / name for name in ("one", "two", "three")]
    buffalo, antelope = find_face_pack(folders, "buffalo_l"), find_face_pack(folders, "antelopev2")
    whole(buffalo, published.det, published.buffalo)
    whole(antelope, published.det, published.antelope)
    assert buffalo.detector == antelope.detector
    assert len({buffalo.fingerprint, antelope.fingerprint}) == 2
    assert len(buffalo.fingerprint) == 64


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("root", ["", "antelopev2/"])
def test_zipped(root: str, method: int, published: Published, tmp_path: Path) -> None:
    members = {
        f"{root}1k3d68.onnx": landmarks(),
        f"{root}glintr100.onnx": published.antelope,
        f"{root}scrfd_10g_bnkps.onnx": published.det,
    }
    path = pack_zip(tmp_path / "antelopev2.zip", members, method)
    pack = find_face_pack([tmp_path], "antelopev2")
    whole(pack, published.det, published.antelope)
    assert (pack.recogniser.path, pack.recogniser.member) == (path, f"{root}glintr100.onnx")
    assert str(path) in pack.recogniser.where
    put(tmp_path / "z.onnx", published.antelope)
    assert find_face_pack([tmp_path], "antelopev2").recogniser.path.name == "z.onnx", "a file needs no unpacking"


def test_a_zip_within_the_adapters_and_one_half_beside_it(published: Published, tmp_path: Path) -> None:
    pack_zip(tmp_path / "buffalo_l.zip", {"det_10g.onnx": published.det})
    put(tmp_path / "w600k_r50.onnx", published.buffalo)
    whole(find_face_pack([tmp_path], "buffalo_l"), published.det, published.buffalo)


def test_the_real_table_knows_what_it_must() -> None:
    """Sizes and digests as published; three files named glintr100 or w600k measure on three scales."""
    known = {(row.origin, row.task): row for row in known_face_files()}
    assert known["buffalo_l", "recognition"].packs == ("buffalo_l",)
    assert known["antelopev2", "recognition"].bytes == 260_665_334
    assert known["AuraFace-v1", "recognition"].names == known["antelopev2", "recognition"].names
    assert known["AuraFace-v1", "recognition"].packs == ()
    assert known["buffalo_l and antelopev2", "detection"].packs == ("buffalo_l", "antelopev2")
    digests = [row.sha256 for row in known_face_files()]
    assert len(set(digests)) == len(digests) and {len(digest) for digest in digests} == {64}
    assert face_file_by_sha256(digests[0]) is known_face_files()[0]
    assert face_file_by_sha256("0" * 64) is None
    for pack in catalogue.PACKS:
        assert catalogue.face_pack_url(pack).endswith(f"/{pack}.zip")
        assert any(row.bytes for row in known_face_files() if row.task == "recognition" and pack in row.packs)


# -- whose a file is


def test_another_pack_under_the_asked_name_is_refused(published: Published, tmp_path: Path) -> None:
    put(tmp_path / "antelopev2/scrfd_10g_bnkps.onnx", published.det)
    path = put(tmp_path / "antelopev2/glintr100.onnx", published.aura)
    message = refusal([tmp_path])
    assert f"{path}: It is AuraFace-v1's glintr100.onnx (known by its sha256)" in message
    assert f"Half of the face pack antelopev2 is missing: its detector is {tmp_path}" in message
    assert message.count("AuraFace") == 1
    put(tmp_path / "right/elsewhere.onnx", published.antelope)
    whole(find_face_pack([tmp_path], "antelopev2"), published.det, published.antelope)


@pytest.mark.parametrize("name", ["glintr100.onnx", "antelopev2.onnx", "antelopev2/model.onnx"])
def test_a_pack_s_file_named_as_the_other_is_refused(name: str, published: Published, tmp_path: Path) -> None:
    put(tmp_path / "det_10g.onnx", published.det)
    put(tmp_path / name, published.buffalo)
    message = refusal([tmp_path])
    assert "It is buffalo_l's w600k_r50.onnx (known by its sha256)" in message
    whole(find_face_pack([tmp_path], "buffalo_l"), published.det, published.buffalo)


def test_the_other_pack_alone_is_named(published: Published, tmp_path: Path) -> None:
    put(tmp_path / "models/buffalo_l/det_10g.onnx", published.det)
    path = put(tmp_path / "models/buffalo_l/w600k_r50.onnx", published.buffalo)
    message = refusal([tmp_path])
    assert f"{path} is a recogniser, but buffalo_l's, by its size, and does not stand in for antelopev2's." in message


UNKNOWN = {
    "glintr100.onnx": "by its name",
    "glintr100_fp16.onnx": "by its name",
    "antelopev2_recognition.onnx": "by its name",
    "models/antelopev2/recognition/model.onnx": "by its folder's name",
    "AntelopeV2 (1)/face.onnx": "by its folder's name",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_file_is_taken_by_its_name_and_that_is_said(name: str, published: Published, tmp_path: Path) -> None:
    put(tmp_path / "det_10g.onnx", published.det)
    path = put(tmp_path / name, recogniser(seed=9.0))
    pack = find_face_pack([tmp_path], "antelopev2")
    assert pack.note.startswith(f"{path} is not the published glintr100.onnx (its sha256 begins with ")
    assert pack.recogniser.sha256[:8] in pack.note
    assert pack.note.endswith(f"it is taken for antelopev2's recogniser {UNKNOWN[name]}.")
    put(tmp_path / "zzz.onnx", published.antelope)
    assert find_face_pack([tmp_path], "antelopev2").note == "", "a known file comes first"


@pytest.mark.parametrize(
    "name",
    [
        "face.onnx", "w600k_r50.onnx", "antelopev2/w600k_r50.onnx", "antelopev2/w600k_mbf.onnx",
        "auraface/glintr100.onnx", "auraface_v1_glintr100.onnx", "models/AuraFace-v1/glintr100.onnx",
    ],
)  # fmt: skip
def test_an_unknown_file_of_another_s_name_is_not(name: str, published: Published, tmp_path: Path) -> None:
    put(tmp_path / "det_10g.onnx", published.det)
    path = put(tmp_path / name, recogniser(seed=9.0))
    assert f"{path} is a recogniser, but of no pack that is known" in refusal([tmp_path])


def test_the_asked_folder_s_own_name_counts_and_those_above_it_do_not(published: Published, tmp_path: Path) -> None:
    put(tmp_path / "antelopev2/models/det.onnx", published.det)
    put(tmp_path / "antelopev2/models/rec.onnx", recogniser(seed=9.0))
    refusal([tmp_path / "antelopev2/models"])
    assert "its folder's name" in find_face_pack([tmp_path / "antelopev2"], "antelopev2").note


def test_a_copy_of_the_published_length_is_said_to_be_damaged(published: Published, tmp_path: Path) -> None:
    put(tmp_path / "det_10g.onnx", published.det)
    raw = bytearray(published.antelope)
    raw[raw.index(b"\x20\x40")] ^= 4  # a weight's byte
    put(tmp_path / "glintr100.onnx", bytes(raw))
    assert "a damaged copy is likely" in find_face_pack([tmp_path], "antelopev2").note


def test_of_several_detectors_the_one_that_is_known_best_counts(published: Published, tmp_path: Path) -> None:
    put(tmp_path / "fixed.onnx", detector(size=(640, 640)))
    put(tmp_path / "rec.onnx", published.buffalo)
    assert "det_10g.onnx" in refusal([tmp_path], "buffalo_l")
    for name, raw, note in (
        ("aaa.onnx", detector(seed=7.0), "taken for buffalo_l's detector by what goes in"),
        ("buffalo_l/x.onnx", detector(seed=8.0), "x.onnx"),
        ("scrfd_10g_bnkps.onnx", detector(seed=9.0), "scrfd_10g_bnkps.onnx"),
        ("zzz.onnx", published.det, ""),
    ):
        path = put(tmp_path / name, raw)
        pack = find_face_pack([tmp_path], "buffalo_l")
        assert pack.detector.path == path
        assert note in pack.note


def test_a_small_pack_s_detector_serves_and_its_recogniser_does_not(published: Published, tmp_path: Path) -> None:
    put(tmp_path / "models/buffalo_s/det_500m.onnx", published.small_det)
    put(tmp_path / "models/buffalo_s/w600k_mbf.onnx", published.mbf)
    message = refusal([tmp_path], "buffalo_l")
    assert "w600k_mbf.onnx is a recogniser, but buffalo_s and buffalo_sc's" in message
    put(tmp_path / "w600k_r50.onnx", published.buffalo)
    note = find_face_pack([tmp_path], "buffalo_l").note
    assert note == "Faces are found with buffalo_s and buffalo_sc's det_500m.onnx, not with det_10g.onnx."


# -- bad files


BAD = {
    "empty": (b"", "empty (0 bytes)"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4ab1\nsize 260665334\n", "git-lfs pointer"),
    "page": (b"<!doctype html><html><body>404", "web page"),
    "cut": (recogniser()[:-40], "Truncated"),
    "other": (b"\x80\x02}q\x00.", "Not an ONNX model"),
    "role": (landmarks(width=5), "a recogniser's name but not the inputs and outputs"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("zipped", [False, True])
def test_bad_files_are_named(kind: str, zipped: bool, published: Published, tmp_path: Path) -> None:
    raw, words = BAD[kind]
    put(tmp_path / "det_10g.onnx", published.det)
    if zipped:
        path = pack_zip(tmp_path / "antelopev2.zip", {"antelopev2/glintr100.onnx": raw})
    else:
        path = put(tmp_path / "antelopev2/glintr100.onnx", raw)
    message = refusal([tmp_path])
    assert str(path) in message and words in message
    put(tmp_path / "good/glintr100.onnx", published.antelope)
    assert find_face_pack([tmp_path], "antelopev2").note == ""


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("antelopev2.zip", b"<html>", "web page"),
        ("antelopev2.zip", b"", "empty (0 bytes)"),
        ("antelopev2.zip", b"PK\x03\x04" + bytes(500), "Truncated"),
        ("antelopev2.zip", b"Rar!" + bytes(500), "Not a zip (504 bytes)"),
        ("antelopev2.zip.crdownload", b"PK\x03\x04", "unfinished download"),
        ("glintr100.onnx.part", b"\x08\x06", "unfinished download"),
    ],
)
def test_bad_zips_and_unfinished_downloads_are_named(
    name: str, raw: bytes, words: str, published: Published, tmp_path: Path
) -> None:
    path = put(tmp_path / name, raw)
    message = refusal([tmp_path])
    assert f"{path}: " in message and words in message
    assert "The face pack antelopev2 is not there." in message


def test_a_zip_that_does_not_fit_its_checksum_is_refused(published: Published, tmp_path: Path) -> None:
    put(tmp_path / "det_10g.onnx", published.det)
    path = pack_zip(tmp_path / "antelopev2.zip", {"glintr100.onnx": published.antelope}, zipfile.ZIP_STORED)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"\x20\x40")] ^= 4
    path.write_bytes(raw)
    assert "does not match the zip's checksum" in refusal([tmp_path])


def test_a_zip_of_absurd_models_is_left_out(published: Published, tmp_path: Path, monkeypatch) -> None:
    path = pack_zip(tmp_path / "antelopev2.zip", {f"{n}.onnx": bytes(100_000) for n in range(5)})
    monkeypatch.setattr(face_models, "MAX_ZIP_BYTES", 400_000)
    assert f"{path}: It claims 5 models of more than 400000 bytes together: left out." in refusal([tmp_path])


def test_half_a_pack(published: Published, tmp_path: Path) -> None:
    path = put(tmp_path / "glintr100.onnx", published.antelope)
    message = refusal([tmp_path, tmp_path / "gone"])
    assert message.startswith(
        f"Half of the face pack antelopev2 is missing: its recogniser is {path}, a detector is not there. Looked, with "
        f"everything below, in {tmp_path}, {tmp_path / 'gone'} (which does not exist). Put det_10g.onnx or "
        "scrfd_10g_bnkps.onnx ("
    )
    assert f"or antelopev2.zip as it is, into {tmp_path}; the zip is at https://" in message


def test_no_folder_and_no_such_pack() -> None:
    assert "no folder (none is set)" in refusal([])
    with pytest.raises(FacePackError, match=r"no face pack called 'buffalo_x'; there are buffalo_l and antelopev2\."):
        find_face_pack([], "buffalo_x")


def test_weights_in_another_file_are_refused(published: Published, tmp_path: Path) -> None:
    put(tmp_path / "det_10g.onnx", published.det)
    outside = field(1, 4) + field(2, 1) + field(8, "w") + field(13, field(1, "location")) + field(14, 1)
    raw = model({"x": (1, 3, 112, 112)}, {"y": (1, 512)}, weights=[outside])
    put(tmp_path / "glintr100.onnx", raw)
    assert "Its weights lie in another file" in refusal([tmp_path])


def test_many_bad_files_are_counted_not_listed(published: Published, tmp_path: Path) -> None:
    for number in range(40):
        put(tmp_path / f"antelopev2/{number}.onnx", b"")
    message = refusal([tmp_path])
    assert "(And 34 more that cannot be used.)" in message and len(message) < 3000


# -- folders


def test_links_in_circles_end(published: Published, tmp_path: Path) -> None:
    put(tmp_path / "a/b/det_10g.onnx", published.det)
    put(tmp_path / "a/b/glintr100.onnx", published.antelope)
    try:
        (tmp_path / "a/b/again").symlink_to(tmp_path / "a", target_is_directory=True)
        (tmp_path / "a/self.onnx").symlink_to(tmp_path / "a/self.onnx")
    except OSError:
        pytest.skip("no symbolic links here")
    whole(find_face_pack([tmp_path], "antelopev2"), published.det, published.antelope)


def test_an_unreadable_folder_is_named(published: Published, tmp_path: Path, monkeypatch) -> None:
    put(tmp_path / "locked/glintr100.onnx", published.antelope)
    real = os.scandir

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(path)

    with monkeypatch.context() as patch:  # pytest cleans the folder up with it, too
        patch.setattr(os, "scandir", scandir)
        message = refusal([tmp_path])
    assert f"The folder {tmp_path / 'locked'} cannot be read: Permission denied." in message


def test_a_pipe_and_a_folder_called_onnx_are_no_files(published: Published, tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(tmp_path / "glintr100.onnx")
    (tmp_path / "w600k_r50.onnx").mkdir()
    assert f"{tmp_path / 'glintr100.onnx'}: It is not a file." in refusal([tmp_path])


def test_a_folder_of_too_much_is_cut_and_that_is_said(published: Published, tmp_path: Path, monkeypatch) -> None:
    for number in range(30):
        put(tmp_path / f"{number:02}.onnx", recogniser())
    monkeypatch.setattr(face_models, "MAX_MODELS", 20)
    assert "holds more than 20 ONNX models" in refusal([tmp_path])
    monkeypatch.undo()
    monkeypatch.setattr("lib_ipadapter.library.files.MAX_ENTRIES", 20)
    assert "holds more than 20 files and folders" in refusal([tmp_path])


# -- reading


def test_what_changed_after_it_was_found_is_not_read(published: Published, tmp_path: Path) -> None:
    put(tmp_path / "det_10g.onnx", published.det)
    path = put(tmp_path / "glintr100.onnx", published.antelope)
    found = find_face_pack([tmp_path], "antelopev2").recogniser
    path.write_bytes(published.aura)
    with pytest.raises(FacePackError, match="has changed since"):
        found.read()
    assert "AuraFace" in refusal([tmp_path])
    path.unlink()
    with pytest.raises(FacePackError, match=r"cannot be read: .*No such file"):
        found.read()


def test_a_file_is_hashed_once(published: Published, tmp_path: Path, monkeypatch) -> None:
    put(tmp_path / "det_10g.onnx", published.det)
    put(tmp_path / "glintr100.onnx", published.antelope)
    first = find_face_pack([tmp_path], "antelopev2")

    def opened(*_, **__):
        raise AdapterFileError("read again")

    monkeypatch.setattr(face_models, "_opened", opened)
    assert find_face_pack([tmp_path], "antelopev2") == first


def test_the_list_is_plain_data(published: Published, tmp_path: Path) -> None:
    put(tmp_path / "det_10g.onnx", published.det)
    zipped = pack_zip(tmp_path / "buffalo_l.zip", {"w600k_r50.onnx": published.buffalo})
    buffalo, antelope = json.loads(json.dumps(list_face_packs([tmp_path])))
    assert (buffalo["name"], buffalo["found"], buffalo["problem"], buffalo["note"]) == ("buffalo_l", True, "", "")
    assert buffalo["recogniser"] == {
        "path": str(zipped),
        "member": "w600k_r50.onnx",
        "bytes": len(published.buffalo),
        "sha256": hashlib.sha256(published.buffalo).hexdigest(),
    }
    assert (antelope["found"], antelope["recogniser"]) == (False, None)
    assert antelope["detector"]["path"] == str(tmp_path / "det_10g.onnx")
    assert "Half of the face pack antelopev2 is missing" in antelope["problem"]
    assert {pack["licence"] for pack in (buffalo, antelope)} == {"non-commercial research"}


def test_a_pack_among_sixty_models_is_found_fast(published: Published, tmp_path: Path, monkeypatch) -> None:
    """Of sixty models of 20 MB, only the two that fit a published length are read whole."""
    put(tmp_path / "det_10g.onnx", published.det)
    put(tmp_path / "deep/antelopev2/glintr100.onnx", published.antelope)
    for number in range(60):
        write_large(tmp_path / f"others/{number}.onnx", count=250, size=80_000, width=number)
    hashed: list[str] = []
    read_digest = face_models.Candidate._read_digest
    monkeypatch.setattr(
        face_models.Candidate, "_read_digest", lambda self: hashed.append(self.name) or read_digest(self)
    )
    began = time.process_time()
    find_face_pack([tmp_path], "antelopev2")
    assert time.process_time() - began < 0.5
    assert sorted(hashed) == ["det_10g.onnx", "glintr100.onnx"]
    shutil.rmtree(tmp_path / "deep")
    began = time.process_time()
    refusal([tmp_path])
    assert time.process_time() - began < 1
    assert len(hashed) == 2


def test_the_modules_run_on_a_bare_python() -> None:
    import subprocess

    code = "import lib_ipadapter.library.face_packs, sys; print('numpy' in sys.modules or 'onnx' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
