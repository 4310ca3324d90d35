"""References become upright RGB pictures, or a sentence that says why not."""

from __future__ import annotations

import base64
import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from lib_ipadapter.library.errors import BadImageError
from lib_ipadapter.units import images
from lib_ipadapter.units.images import (
    OPAQUE_BLACK,
    ImageStore,
    decode_reference,
    digest,
    open_picture,
    thumbnail_data_uri,
)

# Red, green over blue, yellow: every turn and flip of it differs.
CORNERS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def corners() -> Image.Image:
    image = Image.new("RGB", (2, 2))
    image.putdata(CORNERS)
    return image


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    """The pixels of an RGB picture, row by row."""
    return list(zip(*[iter(image.tobytes())] * 3, strict=True))


def noise(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    count = size[0] * size[1] * len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, size, random.Random(seed).randbytes(count))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *, extra: bytes = b"") -> bytes:
    """A PNG file from its parts, for kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PICTURE = encoded(noise((9, 7)))


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(PICTURE).decode(),
        base64.urlsafe_b64encode(PICTURE).decode(),
        base64.b64encode(PICTURE).decode().rstrip("="),
        base64.encodebytes(PICTURE).decode(),
        "  \r\n" + base64.encodebytes(PICTURE).decode().replace("\n", "\r\n\t "),
        "data:image/png;base64," + base64.b64encode(PICTURE).decode(),
        "DATA:image/png;charset=utf-8;BASE64," + base64.encodebytes(PICTURE).decode(),
        "data:;base64," + base64.b64encode(PICTURE).decode(),
    ],
)
def test_base64_is_read_in_the_forms_in_which_it_is_sent(text: str) -> None:
    assert decode_reference(text) == PICTURE


def test_a_jpeg_in_base64_begins_like_a_path_and_is_none() -> None:
    data = encoded(noise((8, 8)), "JPEG")
    assert base64.b64encode(data).startswith(b"/9j/")
    assert decode_reference(base64.b64encode(data).decode()) == data


def test_an_id_is_read_from_the_store(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, 10_000)
    assert decode_reference(f" {store.put(PICTURE)}\n", store) == PICTURE
    with pytest.raises(BadImageError, match="is not in"):
        decode_reference(digest(b"other"), store)
    with pytest.raises(BadImageError, match="there is no store"):
        decode_reference(digest(PICTURE))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://127.0.0.1:7860/secret.png", "is a web address, and pictures are not fetched"),
        ("HTTPS://example.com/a", "is a web address"),
        ("ftp://example.com/a.png", "is a web address"),
        ("file:///etc/passwd", "looks like a file path"),
        ("/etc/passwd", "looks like a file path"),
        ("/tmp/picture", "looks like a file path"),
        ("~/me.png", "looks like a file path"),
        ("../me.png", "looks like a file path"),
        ("C:\\Users\\me.png", "looks like a file path"),
        ("\\\\server\\share\\me", "looks like a file path"),
        ("me.jpeg", "looks like a file path"),
        ("sha256:../../x", "is not the id of a stored picture"),
        ("sha256:abc", "is not the id of a stored picture"),
        ("identity:Anna", "names an identity"),
        ("", "is empty"),
        ("   ", "is empty"),
        ("data:image/png;base64,", "cannot be read as a picture"),
        ("data:image/svg+xml,<svg/>", "cannot be read as a picture"),
        ("data:image/png;base64", "cannot be read as a picture"),
        ("AAAAA", "cannot be read as a picture"),
        ("AA==BB", "cannot be read as a picture"),
        ("Ж" * 8, "cannot be read as a picture"),
        ("!" * 1_000_000, "cannot be read as a picture"),
    ],
)
def test_other_forms_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(BadImageError, match=message) as caught:
        decode_reference(text)
    assert len(str(caught.value)) < 400
    if "id of a stored" not in message:
        assert "base64" in str(caught.value), "the forms that are taken are told"


def test_files_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100)
    for size in (101, 1000):
        with pytest.raises(BadImageError, match="at most 100 are read"):
            decode_reference(base64.b64encode(bytes(size)).decode())
    with pytest.raises(BadImageError, match=r"photo is a file of 101 bytes; at most 100"):
        open_picture(bytes(101), "photo")


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "TIFF"])
def test_lossless_formats_keep_each_pixel(form: str) -> None:
    picture = noise((13, 5))
    opened = open_picture(encoded(picture, form, **({"lossless": True} if form == "WEBP" else {})), "photo")
    assert opened.mode == "RGB"
    assert opened.tobytes() == picture.tobytes()


def test_one_pixel_is_a_picture() -> None:
    assert open_picture(encoded(Image.new("RGB", (1, 1), (1, 2, 3))), "dot").getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("orientation", "order"),
    [(1, "0123"), (2, "1032"), (3, "3210"), (4, "2301"), (5, "0213"), (6, "2031"), (7, "3120"), (8, "1302")],
)
def test_exif_orientation_is_applied(orientation: int, order: str) -> None:
    """`order` says which stored pixel stands at each place as seen, by the EXIF specification's table."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_picture(encoded(corners(), exif=exif), "photo")
    assert pixels(opened) == [CORNERS[int(index)] for index in order]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_no_reason_to_refuse_a_picture() -> None:
    for block in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        assert open_picture(encoded(corners(), "JPEG", exif=block), "photo").size == (2, 2)
    exif = Image.Exif()
    exif[0x0112] = 77
    assert open_picture(encoded(corners(), exif=exif), "photo").getpixel((0, 0)) == CORNERS[0]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white(mode: str) -> None:
    black = (0,) * (len(mode) - 1)
    picture = Image.new(mode, (3, 1))
    picture.putdata([(*black, 0), (*black, 255), (*black, 128)])
    opened = open_picture(encoded(picture), "cut-out")
    assert opened.mode == "RGB"
    seen = pixels(opened)
    assert seen[:2] == [(255, 255, 255), (0, 0, 0)]
    assert all(abs(channel - 127) <= 1 for channel in seen[2])


def test_transparency_shows_another_backdrop() -> None:
    picture = Image.new("RGBA", (2, 1))
    picture.putdata([(255, 255, 255, 0), (255, 255, 255, 255)])
    assert pixels(open_picture(encoded(picture), "drawing", OPAQUE_BLACK)) == [(0, 0, 0), (255, 255, 255)]


def test_transparent_palette_grey_and_rgb_show_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    expected = [(255, 255, 255), (40, 50, 60)]
    assert pixels(open_picture(encoded(palette, transparency=0), "p")) == expected
    assert pixels(open_picture(encoded(palette, "GIF", transparency=0), "gif")) == expected
    assert pixels(open_picture(encoded(palette, transparency=b"\0\xff"), "p")) == expected
    grey = Image.new("L", (2, 1))
    grey.putdata([7, 8])
    assert pixels(open_picture(encoded(grey, transparency=7), "l")) == [(255,) * 3, (8,) * 3]
    colour = Image.new("RGB", (2, 1))
    colour.putdata([(1, 2, 3), (4, 5, 6)])
    opened = open_picture(encoded(colour, transparency=(1, 2, 3)), "rgb")
    assert pixels(opened) == [(255, 255, 255), (4, 5, 6)]


def test_bilevel_grey_and_palette_become_rgb() -> None:
    bits = Image.new("1", (2, 1))
    bits.putdata([0, 255])
    assert pixels(open_picture(encoded(bits), "1")) == [(0, 0, 0), (255, 255, 255)]
    transparent = png(2, 1, 1, 0, b"\0\x40", extra=chunk(b"tRNS", b"\0\0"))
    assert pixels(open_picture(transparent, "1t"))[1] == (255, 255, 255)
    assert open_picture(encoded(Image.new("L", (2, 2), 77)), "l").getpixel((1, 1)) == (77, 77, 77)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(form: str) -> None:
    values = [0, 128, 129, 255, 257, 32768, 65407, 65535]
    picture = Image.frombytes("I;16", (len(values), 1), struct.pack(f"<{len(values)}H", *values))
    opened = open_picture(encoded(picture, form), "deep")
    assert [pixel[0] for pixel in pixels(opened)] == [round(value / 257) for value in values]


def test_16_bit_colour_is_read() -> None:
    rows = b"\0" + struct.pack(">6H", 0, 0x8000, 0xFFFF, 0x1234, 0x5678, 0x9ABC)
    assert pixels(open_picture(png(2, 1, 16, 2, rows), "deep")) == [(0, 0x80, 0xFF), (0x12, 0x56, 0x9A)]


def test_ranges_that_are_unknown_are_refused() -> None:
    wide = Image.new("I", (2, 1), 70_000)
    with pytest.raises(BadImageError, match=r"deep has 32-bit pixels \(70000 to 70000\)"):
        open_picture(encoded(wide, "TIFF"), "deep")
    with pytest.raises(BadImageError, match="floating-point pixels"):
        open_picture(encoded(Image.new("F", (2, 1), 0.5), "TIFF"), "deep")


def test_cmyk_jpegs_become_rgb() -> None:
    opened = open_picture(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95), "print")
    red, green, blue = opened.getpixel((4, 4))
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options: dict[str, object] = {"lossless": True} if form == "WEBP" else {}
    opened = open_picture(encoded(frames[0], form, save_all=True, append_images=frames[1:], **options), "moving")
    assert opened.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("tolerant", [False, True], ids=["strict", "tolerant-pillow"])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_truncation_is_noticed_also_where_pillow_was_told_to_look_away(
    form: str, tolerant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    data = encoded(noise((64, 64)), form)
    assert open_picture(data, "photo").size == (64, 64)
    for part in (0.3, 0.6, 0.9):
        with pytest.raises(BadImageError, match="photo is"):
            open_picture(data[: int(len(data) * part)], "photo")


@pytest.mark.parametrize(
    "data", [b"", b"x", b"<html></html>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"version https://git-lfs"]
)
def test_what_is_no_picture_is_named(data: bytes) -> None:
    with pytest.raises(BadImageError, match="photo 2 is"):
        open_picture(data, "photo 2")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_with_numbers_before_decoding() -> None:
    bomb = png(12_000, 12_000, 8, 0, b"")
    with pytest.raises(BadImageError, match=r"bomb has 12000 x 12000 = 144000000 pixels; at most 100000000"):
        open_picture(bomb, "bomb")
    with pytest.raises(BadImageError, match=r"bomb is refused: .*2500000000 pixels"):
        open_picture(png(50_000, 50_000, 1, 0, b""), "bomb")


def test_the_limit_is_ours_where_the_host_has_lifted_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadImageError, match="2500000000 pixels; at most 100000000"):
        open_picture(png(50_000, 50_000, 1, 0, b""), "bomb")


def test_a_large_jpeg_is_decoded_at_half_size_and_a_larger_one_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 100 * 100)
    monkeypatch.setattr(images, "MAX_JPEG_PIXELS", 4 * 100 * 100)
    assert open_picture(encoded(noise((100, 100)), "JPEG"), "photo").size == (100, 100)
    assert open_picture(encoded(noise((181, 201)), "JPEG"), "photo").size in [(91, 101), (90, 100)]
    with pytest.raises(BadImageError, match="201 x 200 = 40200 pixels; at most 40000"):
        open_picture(encoded(noise((201, 200)), "JPEG"), "photo")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_files_give_a_picture_or_a_named_error(form: str) -> None:
    rng = random.Random(form)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if form in ("GIF", "BMP") else {"exif": exif}
    data = encoded(noise((24, 16)), form, **options)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.choice([rng.randrange(len(data)), rng.randrange(min(64, len(data)))])] = rng.randrange(256)
        try:
            opened = open_picture(bytes(damaged), "photo")
        except BadImageError as error:
            assert str(error).startswith("photo ")
        else:
            assert opened.mode == "RGB"


@pytest.mark.parametrize("seed", range(50))
def test_random_strings_decode_or_are_refused(seed: int) -> None:
    rng = random.Random(seed)
    start = rng.choice(["", "data:", "data:image/png;base64,", "sha256:", "/9j/", "iVBOR", "C:\\"])
    text = start + "".join(chr(rng.choice([rng.randrange(128), rng.randrange(0x2000)])) for _ in range(30))
    try:
        assert decode_reference(text)
    except BadImageError as error:
        assert str(error)


def test_a_thumbnail_fits_its_square_and_leaves_the_picture_alone() -> None:
    picture = noise((400, 100))
    before = picture.tobytes()
    uri = thumbnail_data_uri(picture)
    small = open_picture(decode_reference(uri), "thumbnail")
    assert small.size == (96, 24)
    assert len(uri) < 20_000
    assert picture.tobytes() == before
    assert open_picture(decode_reference(thumbnail_data_uri(Image.new("RGBA", (1, 1)))), "t").size == (1, 1)


def test_no_heavy_package_is_imported() -> None:
    names = ", ".join(f"lib_ipadapter.units.{path.stem}" for path in Path(images.__file__).parent.glob("[a-z]*.py"))
    # Some versions of Pillow import numpy by themselves.
    code = (
        f"import sys, PIL.Image, PIL.ImageOps\nbefore = set(sys.modules)\nimport {names}\n"
        "print(*({'torch', 'gradio', 'numpy', 'modules', 'backend'} & (set(sys.modules) - before)))"
    )
    root = Path(images.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
