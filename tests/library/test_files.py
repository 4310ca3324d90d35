"""Searching folders: what is listed, found by name, reported about folders, and read again or not."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lib_ipadapter.library import files
from lib_ipadapter.library.errors import AdapterFileError, AdapterNotFoundError
from lib_ipadapter.library.files import FolderIndex, find_encoders, fingerprint, scan

from .synthetic import Shapes, adapter_shapes, lora_shapes, vision_shapes, write_safetensors

SD1 = adapter_shapes("base", "SD1", narrow=16)
PLUS = adapter_shapes("plus", "SDXL", narrow=16)


def put(path: Path, shapes: Shapes = SD1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_safetensors(path, shapes)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    one, two = tmp_path / "ipadapter", tmp_path / "ControlNet"
    put(one / "ip-adapter_sd15.safetensors")
    put(one / "sdxl" / "ip-adapter-plus_sdxl.safetensors", PLUS)
    put(one / "sdxl" / "same.safetensors")
    put(two / "same.safetensors")
    put(two / "Faces.SAFETENSORS", lora_shapes())
    (two / "readme.txt").write_text("no model", encoding="utf-8")
    (two / "empty.bin").write_bytes(b"")
    return one, two


def names(listing: files.Listing) -> list[str]:
    return [file.name for file in listing.files]


def test_lists_model_files_below_the_folders(folders: tuple[Path, Path]) -> None:
    listing = scan(folders)
    assert names(listing) == [
        "empty.bin", "Faces.SAFETENSORS", "ip-adapter_sd15.safetensors", "same.safetensors",
        "sdxl/ip-adapter-plus_sdxl.safetensors", "sdxl/same.safetensors",
    ]  # fmt: skip
    assert listing.problems == ()
    assert names(scan(folders, (".bin",))) == ["empty.bin"]
    assert [file.report.status for file in scan(folders, (".bin",)).files] == ["unreadable"]


def test_chooses_by_kind_and_base(folders: tuple[Path, Path]) -> None:
    listing = scan(folders)
    assert len(listing.adapters()) == 4
    assert [file.stem for file in listing.adapters("SDXL")] == ["sdxl/ip-adapter-plus_sdxl"]
    assert listing.adapters("SD2") == ()
    assert [file.name for file in listing.of_kind("lora")] == ["Faces.SAFETENSORS"]
    assert len(listing.of_kind("base", "plus")) == 4


@pytest.mark.parametrize(
    "name",
    [
        "sdxl/ip-adapter-plus_sdxl.safetensors", "sdxl/ip-adapter-plus_sdxl", "ip-adapter-plus_sdxl.safetensors",
        "ip-adapter-plus_sdxl", "IP-Adapter-Plus_SDXL", " ip-adapter-plus_sdxl ", "sdxl\\ip-adapter-plus_sdxl",
    ],
)  # fmt: skip
def test_finds_by_name(name: str, folders: tuple[Path, Path]) -> None:
    assert scan(folders).find(name).path == folders[0] / "sdxl" / "ip-adapter-plus_sdxl.safetensors"


def test_a_whole_name_beats_a_last_part(folders: tuple[Path, Path]) -> None:
    assert scan(folders).find("same").path == folders[1] / "same.safetensors"
    assert scan(folders).find("sdxl/same").path == folders[0] / "sdxl" / "same.safetensors"


def test_one_file_in_two_folders_is_no_question(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        put(folder / "copied.safetensors")
    assert scan(folders).find("copied").path == folders[0] / "copied.safetensors"


def test_what_cannot_be_read_is_no_second_file(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = put(folders[1] / "x.safetensors")
    link(folders[0] / "x.safetensors", tmp_path / "gone")
    listing = scan(folders)
    assert [file.name for file in listing.files].count("x.safetensors") == 2
    assert listing.find("x").path == good
    locked = put(folders[0] / "sdxl" / "y.safetensors", PLUS)
    other = put(folders[1] / "sub" / "y.safetensors")
    deleted = put(folders[1] / "more" / "y.safetensors")
    listing = scan(folders)
    deleted.unlink()
    with pytest.raises(AdapterFileError, match="3 files are called 'y'"):
        listing.find("y")
    open_file = Path.open

    def refuse(path: Path, *args: object, **keywords: object) -> object:
        if path == locked:
            raise PermissionError(13, "Permission denied")
        return open_file(path, *args, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", refuse)
    assert listing.find("y").path == other
    other.unlink()
    with pytest.raises(AdapterFileError, match=r"3 files are called 'y' and none of them can be read: .*refresh"):
        listing.find("y")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_named_pipe_is_no_second_file(folders: tuple[Path, Path]) -> None:
    good = put(folders[1] / "x.safetensors")
    os.mkfifo(folders[0] / "x.safetensors")
    assert scan(folders).find("x").path == good


def test_a_folder_that_cannot_be_resolved_is_a_problem(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object) -> str:
        raise OSError(1, "Incorrect function")  # a RAM disk on Windows

    monkeypatch.setattr(os.path, "realpath", refuse)
    listing = scan((folders[0],))
    assert listing.files == ()
    assert "Incorrect function" in listing.problems[0]


def test_a_folder_or_the_path_tells_two_files_of_one_name(folders: tuple[Path, Path]) -> None:
    first, second = put(folders[0] / "two.safetensors"), put(folders[1] / "two.safetensors", PLUS)
    with pytest.raises(AdapterFileError, match="2 files"):
        scan(folders).find("two.safetensors")
    assert scan(folders).find("ipadapter/two.safetensors").path == first
    assert scan(folders).find("ControlNet/two.safetensors").path == second
    assert scan(folders).find(str(second)).path == second


def test_ambiguous_and_unknown_names(folders: tuple[Path, Path]) -> None:
    other = put(folders[1] / "more" / "same.safetensors", PLUS)
    (folders[1] / "same.safetensors").unlink()
    with pytest.raises(AdapterFileError, match="2 files are called 'same'") as ambiguous:
        scan(folders).find("same")
    assert str(other) in str(ambiguous.value)
    assert str(folders[0] / "sdxl" / "same.safetensors") in str(ambiguous.value)
    with pytest.raises(AdapterNotFoundError, match="no file called 'nothing'") as unknown:
        scan((*folders, folders[0] / "missing")).find("nothing")
    assert str(folders[1]) in str(unknown.value)
    assert "missing (which does not exist)" in str(unknown.value)
    with pytest.raises(AdapterNotFoundError, match="none is set"):
        scan(()).find("nothing")
    put(folders[0] / "x.safetensors")
    (folders[0] / "x.bin").write_bytes(b"")
    with pytest.raises(AdapterFileError, match="2 files"):
        scan(folders).find("x")
    assert scan(folders).find("x.bin").name == "x.bin"


def test_missing_folders_are_no_problem_unreadable_ones_are(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = folders[0] / "sdxl"
    scandir: Callable[[Path], object] = os.scandir

    def refuse(path: Path) -> object:
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listing = scan((*folders, folders[0] / "missing"))
    assert len(listing.problems) == 1
    assert str(locked) in listing.problems[0]
    assert "Permission denied" in listing.problems[0]
    assert listing.missing == (folders[0] / "missing",)
    assert "ip-adapter_sd15.safetensors" in names(listing)


def test_a_file_in_place_of_a_folder_is_a_problem(folders: tuple[Path, Path]) -> None:
    listing = scan((folders[0] / "ip-adapter_sd15.safetensors",))
    assert listing.files == ()
    assert len(listing.problems) == 1


def link(path: Path, target: Path) -> None:
    try:
        path.symlink_to(target, target_is_directory=target.is_dir())
    except OSError as error:
        pytest.skip(f"links cannot be made here: {error}")


def test_links_are_followed_once(folders: tuple[Path, Path], tmp_path: Path) -> None:
    outside = put(tmp_path / "elsewhere" / "linked.safetensors")
    link(folders[0] / "away", tmp_path / "elsewhere")
    link(folders[0] / "circle", folders[0])
    link(tmp_path / "elsewhere" / "back", folders[0])
    link(folders[0] / "one.safetensors", outside)
    link(folders[0] / "dangling.safetensors", tmp_path / "gone")
    link(folders[0] / "self.safetensors", folders[0] / "self.safetensors")
    began = time.monotonic()
    listing = scan((folders[0],))
    assert time.monotonic() - began < 5
    assert [name for name in names(listing) if "sd15" not in name and "sdxl" not in name] == [
        "away/linked.safetensors", "dangling.safetensors", "one.safetensors", "self.safetensors",
    ]  # fmt: skip
    assert listing.find("dangling").report.status == "unreadable"
    assert listing.find("self").report.status == "unreadable"
    assert listing.find("one").report.status == "supported"


def test_overlapping_folders_list_a_file_once(folders: tuple[Path, Path]) -> None:
    listing = scan((folders[0], folders[0] / "sdxl", folders[0]))
    assert len(listing.files) == 3


def test_a_file_is_read_again_only_when_it_changed(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    inspect = files.inspect_file
    monkeypatch.setattr(files, "inspect_file", lambda path: (read.append(path), inspect(path))[1])
    scan(folders)
    assert len(read) == 6
    scan(folders)
    assert len(read) == 6
    changed = put(folders[0] / "ip-adapter_sd15.safetensors", adapter_shapes("base", "SD2", narrow=16))
    os.utime(changed, ns=(1, 1))
    listing = scan(folders)
    assert read[6:] == [changed]
    assert listing.find("ip-adapter_sd15").report.base == "SD2"


def test_the_index_scans_when_asked_only(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[int] = []
    original = files.scan
    monkeypatch.setattr(files, "scan", lambda *args: (scans.append(1), original(*args))[1])
    index = FolderIndex(folders)
    assert scans == []
    first = index.listing()
    assert index.listing() is first
    put(folders[0] / "new.safetensors")
    assert index.listing() is first
    assert "new.safetensors" in names(index.refresh())
    assert len(scans) == 2
    assert names(index.refresh((folders[1],))) == ["empty.bin", "Faces.SAFETENSORS", "same.safetensors"]


def test_threads_get_one_listing(folders: tuple[Path, Path]) -> None:
    index = FolderIndex(folders)
    found: list[files.Listing] = []
    threads = [threading.Thread(target=lambda: found.append(index.listing())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(listing) for listing in found}) == 1


def test_encoders_by_what_a_projector_needs(tmp_path: Path) -> None:
    towers = {
        "h": vision_shapes(),
        "h_alone": vision_shapes(projected=0),
        "g": vision_shapes(hidden=1664, depth=48, mlp=8192, projected=1280),
        "l336": vision_shapes(hidden=1024, depth=24, positions=577, projected=768),
        "l": vision_shapes(hidden=1024, depth=24, projected=768),
        "custom": vision_shapes(hidden=1280, depth=4, projected=1024),
    }
    for name, shapes in towers.items():
        put(tmp_path / f"{name}.safetensors", shapes)
    put(tmp_path / "adapter.safetensors")
    listing = scan((tmp_path,))

    def found(**needs: object) -> list[str]:
        return [file.stem for file in find_encoders(listing, **needs)]  # type: ignore[arg-type]

    assert found(projected_dim=1024, feature="pooled") == ["custom", "h"]
    assert found(projected_dim=1024, feature="pooled", name="clip_h") == ["h", "custom"]
    assert found(projected_dim=1280, feature="pooled") == ["g"]
    assert found(hidden_dim=1280, feature="hidden", name="clip_h") == ["h", "h_alone", "custom"]
    assert found(hidden_dim=1280, feature="face_hidden", name="clip_h") == ["h", "h_alone", "custom"]
    assert found(hidden_dim=1024, feature="hidden", name="clip_l_336") == ["l336"]
    assert found(hidden_dim=99, feature="hidden") == []
    assert found(feature="pooled") == []
    assert found(hidden_dim=1280, feature="face") == []


def test_fingerprint_follows_content_not_name_or_time(tmp_path: Path) -> None:
    path = put(tmp_path / "a.safetensors", adapter_shapes("base", "SD1"))
    first = fingerprint(path)
    assert len(first) == 64
    os.utime(path, ns=(1, 1))
    assert fingerprint(path.rename(tmp_path / "b.safetensors")) == first
    path = tmp_path / "b.safetensors"
    for place in (100, (1 << 20) + 5, path.stat().st_size // 16 * 9 + 1, path.stat().st_size - 1):
        with path.open("r+b") as file:
            file.seek(place)
            before = file.read(1)
            file.seek(place)
            file.write(b"\xaa")
        assert fingerprint(path) != first, place
        with path.open("r+b") as file:
            file.seek(place)
            file.write(before)
        assert fingerprint(path) == first
    small = tmp_path / "small"
    small.write_bytes(bytes(1000))
    digest = fingerprint(small)
    small.write_bytes(bytes(999) + b"\x01")
    assert fingerprint(small) != digest
