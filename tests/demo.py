"""The main job from end to end, for a newcomer without a WebUI: `python3 dev.py demo`.

A reference picture goes through the whole extension on the stand-in host: real API call, real sampler loop, real ldm
UNet. The nets are small and their weights random, so the pictures are patterns; what shows is that the reference acts,
how much with which weight, and that nothing is left behind.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tests.sample_models import write_sample_models
from tests.webui.standin import StandIn, installed_flavour
from tests.webui.standin.host import Result, encode
from tests.webui.standin.launching import FLAVOURS

REPOSITORY = Path(__file__).resolve().parents[1]
TILE, GAP, LINE, COLUMNS = 256, 20, 28, 4
STEP = TILE + 2 * LINE + GAP
"""Pixels from one row of the contact sheet to the next: a title, a picture, a line below it."""
NEAREST = Image.Resampling.NEAREST
PLAIN = "prompt only"
FOOT = (
    "The nets are small and their weights random, so the pictures are patterns. What shows is",
    "how much a reference changes them: mean difference from the prompt alone, of 255.",
)
JOB = {"prompt": "a garden in the morning", "steps": 8, "width": 128, "height": 128, "seed": 7, "cfg_scale": 5.0}


@dataclass(frozen=True)
class Tile:
    """A picture of the contact sheet, its title, and the line below it."""

    title: str
    picture: Image.Image
    below: str


def reference(colours: tuple[str, str, str], *, round_shape: bool) -> Image.Image:
    """A picture with a ground, a horizon and one object, drawn rather than shipped."""
    image = Image.new("RGB", (320, 240), colours[0])
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 150, 320, 240), fill=colours[1])
    shape = draw.ellipse if round_shape else draw.rectangle
    shape((90, 50, 210, 170), fill=colours[2], outline="white", width=4)
    return image


def main(argv: list[str] | None = None) -> int:
    """Generate, write the contact sheet, print where it is, what changed and how long each stage took."""
    parser = argparse.ArgumentParser(prog="dev.py demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "out" / "demo", help="folder for the contact sheet")
    parser.add_argument("--host", choices=FLAVOURS, default=installed_flavour(), help="whose environment this is")
    options = parser.parse_args(argv)
    if options.host != installed_flavour():
        parser.error(f"this environment is {installed_flavour()}'s; start it with: dev.py demo --host {options.host}")
    out: Path = options.out
    stages: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="ipadapter-demo-") as folder:
        started = time.perf_counter()
        host = StandIn(extensions=[REPOSITORY], data_dir=folder)
        write_sample_models(host.checkpoint_dir / "sd15.safetensors", Path(folder) / "models" / "ipadapter")
        stages.append((f"start the stand-in host ({host.flavour})", time.perf_counter() - started))
        tiles, results = generate(host, stages)
        host.stop_serving()
    out.mkdir(parents=True, exist_ok=True)
    sheet = out / "contact-sheet.png"
    contact_sheet(tiles).save(sheet)
    report(sheet, results, stages)
    return 0 if results[PLAIN].pixels == results["weight 0"].pixels == results["plain again"].pixels else 1


def generate(host: StandIn, stages: list[tuple[str, float]]) -> tuple[list[Tile], dict[str, Result]]:
    """Run the jobs; the sheet's tiles, and every result by name."""
    first = reference(("#e8b04a", "#a33b20", "#3a6ea5"), round_shape=True)
    second = reference(("#9fd3c7", "#385170", "#ececec"), round_shape=False)
    one, two = {"images": [encode(first)]}, {"images": [encode(second)]}
    jobs: dict[str, list[dict[str, object]]] = {
        PLAIN: [],
        "weight 0": [{**one, "weight": 0.0}],
        "weight 0.5": [{**one, "weight": 0.5}],
        "weight 1.0": [{**one, "weight": 1.0}],
        "two units": [{**one, "weight": 0.5}, {**two, "weight": 0.5}],
        "plain again": [],
    }
    results: dict[str, Result] = {}
    for name, units in jobs.items():
        started = time.perf_counter()
        scripts = {"alwayson_scripts": {"IP-Adapter": {"args": units}}} if units else {}
        results[name] = host.txt2img(**JOB, **scripts)
        stages.append((f"generate: {name}", time.perf_counter() - started))
    tiles = [Tile("reference", first, "for one unit"), Tile("second reference", second, "for the second unit")]
    for name, change in changes(results).items():
        below = "the prompt alone" if name == PLAIN else f"changed by {change:.2f}"
        tiles.append(Tile(name, results[name].images[0], below))
    return tiles, results


def changes(results: dict[str, Result]) -> dict[str, float]:
    """The mean difference of each picture from the one of the prompt alone, of 255."""
    pictures = {name: np.asarray(result.images[0], dtype=float) for name, result in results.items()}
    return {name: float(np.abs(picture - pictures[PLAIN]).mean()) for name, picture in pictures.items()}


def contact_sheet(tiles: list[Tile]) -> Image.Image:
    """The tiles in rows, each picture between its title and what there is to say of it; what they are at the foot."""
    rows = -(-len(tiles) // COLUMNS)
    width, height = COLUMNS * (TILE + GAP) + GAP, GAP + rows * STEP
    sheet = Image.new("RGB", (width, height + len(FOOT) * LINE + GAP), "white")
    for index, tile in enumerate(tiles):
        row, column = divmod(index, COLUMNS)
        left, top = GAP + column * (TILE + GAP), GAP + row * STEP
        write(sheet, (left, top), tile.title)
        fitted = tile.picture.resize((TILE, round(TILE * tile.picture.height / tile.picture.width)), NEAREST)
        sheet.paste(fitted, (left, top + LINE + (TILE - fitted.height) // 2))
        write(sheet, (left, top + LINE + TILE + 4), tile.below, "#555555")
    for number, line in enumerate(FOOT):
        write(sheet, (GAP, height + number * LINE), line)
    return sheet


def write(sheet: Image.Image, place: tuple[int, int], words: str, colour: str = "black") -> None:
    """Put a line onto the sheet in Pillow's own font, which has no sizes before 10.1: drawn small and doubled."""
    font = ImageFont.load_default()
    small = Image.new("L", tuple(math.ceil(side) for side in font.getbbox(words)[2:]))
    ImageDraw.Draw(small).text((0, 0), words, fill=255, font=font)
    sheet.paste(colour, place, small.resize((small.width * 2, small.height * 2), Image.Resampling.BICUBIC))


def report(sheet: Path, results: dict[str, Result], stages: list[tuple[str, float]]) -> None:
    """Print the sheet's place, the mean change of each picture, and the stages' seconds."""
    print(f"contact sheet: {sheet}")
    print("\nmean change against the prompt alone, of 255:")
    for name, change in changes(results).items():
        if name != PLAIN:
            print(f"  {name:<12} {change:6.2f}{'  identical' if change == 0 else ''}")
    print("\nseconds:")
    for name, seconds in stages:
        print(f"  {name:<45} {seconds:6.2f}")
    print(f"\nwhat the infotext says of the last unit job:\n  {results['two units'].infotexts[0].splitlines()[-1]}")


if __name__ == "__main__":
    raise SystemExit(main())
