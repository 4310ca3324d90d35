"""Picture helpers of the host: resizing modes, transparency, reading."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, PngImagePlugin

LANCZOS = Image.Resampling.LANCZOS


def read(fp, **_ignored) -> Image.Image:
    """Open a picture and load it."""
    image = Image.open(fp)
    image.load()
    return image


def flatten(image: Image.Image, background: str) -> Image.Image:
    """RGB, transparent parts filled."""
    if image.mode == "RGBA":
        base = Image.new("RGBA", image.size, background)
        base.paste(image, mask=image)
        image = base
    return image.convert("RGB")


def resize_image(resize_mode: int, image: Image.Image, width: int, height: int, upscaler_name=None) -> Image.Image:
    """0: stretch; 1: crop to the ratio; 2: fit and repeat the edge."""
    del upscaler_name
    if resize_mode == 0 or image.width * height == image.height * width:
        return image.resize((width, height), LANCZOS)
    ratio, wanted = image.width / image.height, width / height
    if (ratio > wanted) == (resize_mode == 1):
        size = (max(1, round(height * ratio)), height)
    else:
        size = (width, max(1, round(width / ratio)))
    small = image.resize(size, LANCZOS)
    out = image.resize((width, height), LANCZOS)
    out.paste(small, ((width - size[0]) // 2, (height - size[1]) // 2))
    return out


def image_grid(imgs, batch_size: int = 1, rows=None) -> Image.Image:
    """All pictures in one row."""
    del batch_size, rows
    width, height = imgs[0].size
    grid = Image.new("RGB", (width * len(imgs), height))
    for i, image in enumerate(imgs):
        grid.paste(image, (i * width, 0))
    return grid


def save_image(image: Image.Image, path: str, basename: str, seed=None, prompt=None, extension: str = "png",
               info: str | None = None, p=None, suffix: str = "", **_ignored) -> tuple[str, None]:
    """Write a picture with its infotext and fire the saving callbacks."""
    from modules import script_callbacks

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("*.png")))
    filename = folder / f"{basename}{number:05}-{seed}{suffix}.{extension}"
    params = script_callbacks.ImageSaveParams(image, p, str(filename), {"parameters": info or ""})
    script_callbacks._fire("before_image_saved", params)
    meta = PngImagePlugin.PngInfo()
    for key, value in params.pnginfo.items():
        meta.add_text(key, value)
    params.image.save(params.filename, pnginfo=meta)
    script_callbacks._fire("image_saved", params)
    return params.filename, None


def read_info_from_image(image: Image.Image) -> tuple[str | None, dict[str, str]]:
    """Infotext of a picture, and the rest of its metadata."""
    items = {key: value for key, value in (image.info or {}).items() if isinstance(value, str)}
    return items.pop("parameters", None), items
