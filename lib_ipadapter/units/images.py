"""Reference pictures: from what a page or a program sends to bytes, and from bytes to an upright RGB picture.

session calls `decode_reference` and `open_picture` for each reference; the page calls `open_picture` on an upload and
shows `thumbnail_data_uri`. Colour profiles are ignored, as the official preprocessing does.
"""

# Pillow 9.5, which the hosts pin, carries no types, so strict checking would report each of its names.
# pyright: basic

from __future__ import annotations

import base64
import io
import re
from typing import cast

from PIL import Image, ImageFile

from ..library.errors import BadImageError
from .field_spec import shown
from .store import ImageStore, checked_id, digest, extension

__all__ = ["ImageStore", "checked_id", "decode_reference", "digest", "open_picture", "thumbnail_data_uri"]

MAX_FILE_BYTES = 128 * 1024 * 1024
MAX_PIXELS = 100_000_000
# A JPEG can be decoded at half its width and height, so four times as many pixels cost the same memory.
MAX_JPEG_PIXELS = 4 * MAX_PIXELS
# Only formats whose decoders run inside Pillow (EPS, for one, would start Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
FORMS = "a data URI (data:image/png;base64,…), base64, or the 'sha256:…' id of a stored picture"
OPAQUE_WHITE, OPAQUE_BLACK = 0xFFFFFFFF, 0xFF000000

_DATA_URI = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.IGNORECASE)
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]{1,15})://", re.IGNORECASE)
_PATH = re.compile(r"~?[/\\]|\.{1,2}[/\\]|[a-z]:[/\\]|file:|[^\n]{1,400}\.[a-z]{3,4}$", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
_ORIENTATION_TAG = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_reference(value: str, store: ImageStore | None = None) -> bytes:
    """The picture file that a reference stands for, as bytes.

    Base64 may be wrapped, url-safe or without padding. Web addresses and file paths are not taken: the first would
    make the server fetch what a stranger names, the second would let him read the disk.
    Raises: BadImageError naming the forms that are taken.
    """
    text = value.strip()
    if text.lower().startswith("sha256:"):
        wanted = checked_id(text)
        if store is None:
            raise BadImageError(f"{shown(text)} names a stored picture, but there is no store here; send the picture.")
        return store.get(wanted)
    if len(text) > 2 * MAX_FILE_BYTES:
        raise BadImageError(_too_many_bytes("A reference", len(text)))
    payload = _base64_part(text)
    data = _decode_base64(payload) if payload else None
    if data is None or (extension(data) == "bin" and _PATH.match(text)):
        raise BadImageError(_why_not(text))
    if len(data) > MAX_FILE_BYTES:
        raise BadImageError(_too_many_bytes("A reference", len(data)))
    return data


def open_picture(data: bytes, name: str, backdrop: int = OPAQUE_WHITE) -> Image.Image:
    """Decode a picture file as people see it: RGB, upright by its EXIF orientation, `name` for error messages.

    The first frame of an animation; 16-bit grey scaled to 8; transparency over white, as the hosts show it, or over
    another `backdrop`, because what is hidden below transparent pixels is arbitrary. JPEGs above `MAX_PIXELS` are
    decoded at half size.
    Raises: BadImageError for what is no picture, is truncated, or has too many pixels.
    """
    if not data:
        raise BadImageError(f"{name} is empty (0 bytes); choose another picture.")
    if len(data) > MAX_FILE_BYTES:
        raise BadImageError(_too_many_bytes(name, len(data)))
    try:
        Image.init()
        opened = Image.open(io.BytesIO(data), formats=[form for form in FORMATS if form in Image.OPEN])
        with opened as image:
            _limit_pixels(image, name)
            _require_end(image, data, name)
            image.load()
            return _upright(_to_rgb(image, name, backdrop), _orientation(image))
    except BadImageError:
        raise
    except Image.DecompressionBombError as error:
        raise BadImageError(f"{name} is refused: {error} At most {MAX_PIXELS} pixels are read.") from error
    except Image.UnidentifiedImageError as error:
        raise BadImageError(
            f"{name} is not a picture that can be read ({len(data)} bytes); use {', '.join(FORMATS)}."
        ) from error
    except Exception as error:
        # Pillow's decoders raise a dozen built-in types (SyntaxError, struct.error, EOFError...) on damaged files.
        raise BadImageError(f"{name} is damaged or truncated ({len(data)} bytes): {error}.") from error


def thumbnail_data_uri(image: Image.Image, side: int = 96) -> str:
    """A JPEG data URI of the picture, fitted into a square of `side` pixels, for the page's reference strip."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _base64_part(text: str) -> str:
    """What should be base64, or "" where the reference says itself that it is something else."""
    if not text.lower().startswith("data:"):
        return text
    match = _DATA_URI.match(text[:200])
    return text[match.end() :] if match and ";base64" in match[2].lower() else ""


def _decode_base64(text: str) -> bytes | None:
    compact = _SPACE.sub("", text).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True) or None
    except ValueError:
        return None


def _why_not(text: str) -> str:
    """One sentence for a reference that is none of the forms."""
    if not text:
        return f"A reference picture is empty; it must be {FORMS}."
    address = _ADDRESS.match(text)
    if address and address[1].lower() != "file":
        return f"{shown(text)} is a web address, and pictures are not fetched from addresses; send {FORMS}."
    if not text.lower().startswith("data:") and _PATH.match(text):
        return f"{shown(text)} looks like a file path, and paths are not read; send {FORMS}."
    if text.lower().startswith("identity:"):
        return f"{shown(text)} names an identity, and this version keeps none; send {FORMS}."
    return f"{shown(text)} cannot be read as a picture; it must be {FORMS}."


def _too_many_bytes(name: str, size: int) -> str:
    return f"{name} is a file of {size} bytes; at most {MAX_FILE_BYTES} are read. Save it smaller."


def _limit_pixels(image: Image.Image, name: str) -> None:
    """Check the size that the header states, before any pixel is decoded; draft large JPEGs."""
    width, height = image.size
    jpeg = image.format in ("JPEG", "MPO")
    limit = MAX_JPEG_PIXELS if jpeg else MAX_PIXELS
    if width * height > limit:
        raise BadImageError(
            f"{name} has {width} x {height} = {width * height} pixels; at most {limit} are read. Save it smaller."
        )
    if jpeg and width * height > MAX_PIXELS:
        image.draft(image.mode, (width // 2, height // 2))


def _require_end(image: Image.Image, data: bytes, name: str) -> None:
    """Notice truncation where another extension told Pillow, for the whole process, to fill missing pixels."""
    if not ImageFile.LOAD_TRUNCATED_IMAGES:
        return
    ended = True
    if image.format == "PNG":
        ended = b"IEND" in data
    elif image.format in ("JPEG", "MPO"):
        # The last start-of-scan is the main picture's; a preview inside EXIF has its own end mark before that.
        ended = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    elif image.format == "WEBP":
        ended = len(data) >= int.from_bytes(data[4:8], "little") + 8
    if not ended:
        raise BadImageError(f"{name} is truncated at {len(data)} bytes; save or download it again.")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where the EXIF block is absent or damaged, as browsers take it."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        # Pillow raises SyntaxError, struct.error, ValueError... on damaged EXIF, which is no reason to refuse pixels.
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    transposition = _TRANSPOSITIONS.get(orientation)
    return image if transposition is None else image.transpose(transposition)


def _to_rgb(image: Image.Image, name: str, backdrop: int) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image, name)
    if image.mode == "F":
        raise BadImageError(f"{name} has floating-point pixels, whose range is unknown; save it with 8 or 16 bits.")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # Pillow converts these two premultiplied modes only to their plain forms.
        plain = image.convert({"RGBa": "RGBA", "La": "LA"}.get(image.mode, image.mode))
        return Image.alpha_composite(Image.new("RGBA", image.size, backdrop), plain.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    """Grey of 16 bits to 8: v * 255 / 65535, rounded. Pillow's own conversion would clip at 255 instead."""
    wide = image.convert("I")
    low, high = cast("tuple[int, int]", wide.getextrema())
    if low < 0 or high > 65535:
        raise BadImageError(f"{name} has 32-bit pixels ({low} to {high}); save it with 8 or 16 bits.")
    scaled = wide.convert("F").point(lambda v: v * (1 / 257) + 0.5)
    return scaled.convert("L").convert("RGB")
