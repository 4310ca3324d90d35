"""What the page keeps of references: by content, never of a picture that is gone."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from lib_ipadapter.library.errors import BadImageError
from lib_ipadapter.units.images import ImageStore
from lib_ipadapter.webui import looks as module
from lib_ipadapter.webui.looks import Looks


def png(colour: tuple[int, int, int], size: tuple[int, int] = (40, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store", 10**7)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pictures that were decoded."""
    names: list[str] = []
    decode = module.open_picture

    def counting(data: bytes, name: str) -> Image.Image:
        names.append(name)
        return decode(data, name)

    monkeypatch.setattr(module, "open_picture", counting)
    return names


@pytest.mark.parametrize("inline", [False, True])
def test_a_picture_is_decoded_once_for_each_look(store: ImageStore, opened: list[str], inline: bool) -> None:
    data = png((200, 10, 10))
    reference = "data:image/png;base64," + base64.b64encode(data).decode() if inline else store.put(data)
    looks = Looks()
    for _ in range(3):
        seen = looks.thumbnail(reference, "one", store)
        assert (seen.width, seen.height) == (40, 20)
        (square,) = looks.squares(reference, "one", store, 16, "centre")
        assert square.size == (16, 16)
    assert opened == ["one", "one"]
    assert len(looks.squares(reference, "one", store, 16, "tiles")) == 2
    assert looks.squares(reference, "one", store, 8, "centre")[0].size == (8, 8)


def test_a_picture_that_is_gone_is_not_shown_from_memory(store: ImageStore) -> None:
    looks, reference = Looks(), store.put(png((1, 2, 3)))
    looks.thumbnail(reference, "one", store)
    store.clear()
    with pytest.raises(BadImageError, match="add the picture again"):
        looks.thumbnail(reference, "one", store)
