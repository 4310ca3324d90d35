"""The main job from end to end, for a newcomer without a WebUI: `python3 dev.py demo`.

A reference picture goes through the whole extension on the stand-in host: real API call, real sampler loop, real ldm
UNet. The nets are small and their weights random, so the pictures are patterns; what shows is that the reference acts,
how much with which weight, and that nothing is left behind.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tests.sample_models import write_sample_models
from tests.webui.standin import StandIn, installed_flavour
from tests.webui.standin.host import Result, encode
from tests.webui.standin.launching import FLAVOURS

REPOSITORY = Path(__file__).resolve().parents[1]
TILE = 256
JOB = {"prompt": "a garden in the morning", "steps": 8, "width": 128, "height": 128, "seed": 7, "cfg_scale": 5.0}


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
        pictures, results = generate(host, stages)
        host.stop_serving()
    out.mkdir(parents=True, exist_ok=True)
    sheet = out / "contact-sheet.png"
    contact_sheet(pictures).save(sheet)
    report(sheet, results, stages)
    return 0 if results["prompt only"].pixels == results["weight 0"].pixels == results["plain again"].pixels else 1


def generate(host: StandIn, stages: list[tuple[str, float]]) -> tuple[list[tuple[str, Image.Image]], dict[str, Result]]:
    """Run the jobs; labelled pictures for the sheet, and every result by name."""
    first = reference(("#e8b04a", "#a33b20", "#3a6ea5"), round_shape=True)
    second = reference(("#9fd3c7", "#385170", "#ececec"), round_shape=False)
    one, two = {"images": [encode(first)]}, {"images": [encode(second)]}
    jobs: dict[str, list[dict[str, object]]] = {
        "prompt only": [],
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
    shown = [(name, results[name].images[0]) for name in jobs if name != "plain again"]
    return [("reference", first), *shown[:4], ("second reference", second), shown[4]], results


def contact_sheet(pictures: list[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures side by side, each under its label."""
    label = 22
    sheet = Image.new("RGB", (len(pictures) * (TILE + 8) + 8, TILE + label + 16), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, image) in enumerate(pictures):
        left = 8 + index * (TILE + 8)
        draw.text((left, 8), name, fill="black")
        fitted = image.copy()
        fitted = fitted.resize((TILE, round(TILE * fitted.height / fitted.width)), Image.Resampling.NEAREST)
        sheet.paste(fitted, (left, 8 + label))
    return sheet


def report(sheet: Path, results: dict[str, Result], stages: list[tuple[str, float]]) -> None:
    """Print the sheet's place, the mean change of each picture, and the stages' seconds."""
    print(f"contact sheet: {sheet}")
    print("\nmean change against the prompt alone, of 255:")
    plain = np.asarray(results["prompt only"].images[0], dtype=float)
    for name, result in results.items():
        if name != "prompt only":
            change = np.abs(np.asarray(result.images[0], dtype=float) - plain).mean()
            print(f"  {name:<12} {change:6.2f}{'  identical' if change == 0 else ''}")
    print("\nseconds:")
    for name, seconds in stages:
        print(f"  {name:<45} {seconds:6.2f}")
    print(f"\nwhat the infotext says of the last unit job:\n  {results['two units'].infotexts[0].splitlines()[-1]}")


if __name__ == "__main__":
    raise SystemExit(main())
