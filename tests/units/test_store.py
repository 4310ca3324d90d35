"""The store keeps pictures by content, bounded, and reads or deletes nothing else."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import time
from pathlib import Path

import pytest

from lib_ipadapter.library.errors import BadImageError
from lib_ipadapter.units.store import ImageStore, digest, extension

PNG = b"\x89PNG\r\n\x1a\n"
MISSING = f"sha256:{'0' * 64}"
HOSTILE_IDS = [
    "sha256:../../etc/passwd",
    "sha256:" + "a" * 63,
    "sha256:" + "a" * 65,
    "sha256:" + "g" * 64,
    "sha256:" + "a" * 64 + "\0",
    "sha256:" + "../" * 20 + "aaaa",
    "sha256:C:\\Windows\\win.ini",
    "sha512:" + "a" * 64,
    "a" * 64,
    "sha256:",
    "",
    "x" * 1_000_000,
]


def picture(size: int, seed: int) -> bytes:
    return PNG + random.Random(seed).randbytes(size - len(PNG))


def age(store: ImageStore, identifier: str, seconds: float) -> None:
    path = next(store.folder.glob(f"{identifier[7:]}.*"))
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "references", 1000)


def test_a_picture_comes_back_by_its_digest(store: ImageStore) -> None:
    data = picture(100, 1)
    identifier = store.put(data)
    assert identifier == digest(data)
    assert re.fullmatch("sha256:[0-9a-f]{64}", identifier)
    assert store.has(identifier)
    assert store.get(identifier) == store.get(identifier.upper().replace("SHA", "sha")) == data
    assert store.size() == 100
    assert [path.name for path in store.folder.iterdir()] == [f"{identifier[7:]}.png"]
    assert store.put(data) == identifier
    assert store.size() == 100


def test_nothing_is_made_before_the_first_picture(store: ImageStore) -> None:
    assert (store.size(), store.clear(), store.has(MISSING)) == (0, 0, False)
    assert not store.folder.exists()


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (PNG, "png"),
        (b"\xff\xd8\xff\xe0", "jpg"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "webp"),
        (b"GIF89a", "gif"),
        (b"BM", "bmp"),
        (b"II*\0", "tif"),
        (b"MM\0*", "tif"),
        (b"\0\0\0\x20ftypavif", "avif"),
        (b"<svg", "bin"),
        (b"", "bin"),
    ],
)
def test_files_are_named_by_what_they_hold(store: ImageStore, start: bytes, name: str) -> None:
    assert extension(start) == name
    identifier = store.put(start)
    assert store.get(identifier) == start
    assert re.fullmatch(rf"[0-9a-f]{{64}}\.{name}", next(store.folder.iterdir()).name), "also a file name on Windows"


@pytest.mark.parametrize("identifier", HOSTILE_IDS, ids=lambda value: value[:20])
def test_hostile_ids_are_refused(store: ImageStore, identifier: str) -> None:
    store.put(picture(50, 1))
    assert not store.has(identifier)
    with pytest.raises(BadImageError, match="is not the id of a stored picture") as caught:
        store.get(identifier)
    assert len(str(caught.value)) < 200


def test_a_missing_picture_says_why_and_what_to_do(store: ImageStore) -> None:
    with pytest.raises(BadImageError, match=r"store was cleared, or it is another machine's id.*add the picture again"):
        store.get(MISSING)
    with pytest.raises(BadImageError, match="the store is off"):
        ImageStore(store.folder, 0).get(MISSING)


def test_a_changed_file_is_refused_and_put_repairs_it(store: ImageStore) -> None:
    data = picture(100, 1)
    identifier = store.put(data)
    path = next(store.folder.iterdir())
    path.write_bytes(data[:-1])
    with pytest.raises(BadImageError, match=r"was changed on disk \(99 bytes\)"):
        store.get(identifier)
    store.put(data)
    assert store.get(identifier) == data


def test_the_least_recently_used_leave_first(store: ImageStore) -> None:
    first, second, third = (store.put(picture(300, seed)) for seed in range(3))
    for seconds, identifier in ((30, first), (20, second), (10, third)):
        age(store, identifier, seconds)
    store.get(first)
    fourth = store.put(picture(300, 4))
    assert [store.has(identifier) for identifier in (first, second, third, fourth)] == [True, False, True, True]
    assert store.size() == 900


def test_putting_again_counts_as_use(store: ImageStore) -> None:
    first, second = (store.put(picture(400, seed)) for seed in range(2))
    age(store, first, 30)
    age(store, second, 20)
    store.put(picture(400, 0))
    store.put(picture(400, 3))
    assert store.has(first)
    assert not store.has(second)


def test_what_was_put_in_this_call_stays_even_above_the_cap(store: ImageStore) -> None:
    old = store.put(picture(300, 0))
    identifiers = store.put_all(picture(600, seed) for seed in (1, 2, 3))
    assert [len(store.get(identifier)) for identifier in identifiers] == [600] * 3
    assert not store.has(old)
    store.put(picture(100, 9))
    assert store.size() <= 1000


@pytest.mark.parametrize("arguments", [{"cap_bytes": 0}, {"cap_bytes": 1000, "enabled": False}])
def test_off_means_that_nothing_is_written(tmp_path: Path, arguments: dict[str, int]) -> None:
    off = ImageStore(tmp_path / "references", **arguments)
    data = picture(100, 1)
    assert off.put(data) == digest(data)
    assert not off.folder.exists()
    before = ImageStore(off.folder, 1000).put(data)
    age(off, before, 100)
    stamp = next(off.folder.iterdir()).stat().st_mtime
    assert off.get(before) == data, "what is there can be read"
    assert next(off.folder.iterdir()).stat().st_mtime == stamp
    assert off.clear() == 1, "and cleared"


def test_clear_deletes_pictures_and_nothing_else(store: ImageStore) -> None:
    store.put(picture(100, 1))
    store.put(b"BM")
    (store.folder / "holiday.png").write_bytes(PNG)
    (store.folder / f"{'a' * 64}.exe").write_bytes(b"MZ")
    (store.folder / "new-abc.part").write_bytes(b"left by a writer that died")
    (store.folder / "sub").mkdir()
    assert store.size() == 102
    assert store.clear() == 2
    assert sorted(path.name for path in store.folder.iterdir()) == [f"{'a' * 64}.exe", "holiday.png", "sub"]


def test_parts_of_dead_writers_go_and_those_of_living_ones_stay(store: ImageStore) -> None:
    store.put(b"BM")
    dead, living = store.folder / "new-dead.part", store.folder / "new-living.part"
    for path in (dead, living):
        path.write_bytes(b"x")
    os.utime(dead, (time.time() - 7200,) * 2)
    store.put(b"BM2")
    assert not dead.exists()
    assert living.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(BadImageError, match=r"cannot be kept in .*file.*switch the store off"):
        ImageStore(blocked, 1000).put(PNG)


def test_a_failed_write_leaves_no_part(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    store.put(b"BM")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BadImageError, match="No space left on device"):
        store.put(PNG)
    assert len(list(store.folder.iterdir())) == 1


def _put_and_get(folder: Path, worker: int) -> None:
    """A second process's work: the same small set of pictures, again and again."""
    store = ImageStore(folder, 100_000)
    rng = random.Random(worker)
    for _ in range(60):
        data = picture(2000, rng.randrange(8))
        if store.get(store.put(data)) != data:
            raise AssertionError("another picture came back")


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_put_and_get, args=(tmp_path, worker)) for worker in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert ImageStore(tmp_path, 100_000).size() == 8 * 2000
    assert not list(tmp_path.glob("*.part"))
