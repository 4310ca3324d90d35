"""The parts of the README that are made from the code: the fields of a unit, the model files and where to get them.

`python3 -m tests.readme_tables`, on a bare Python, writes them between their markers; `test_readme` compares.
"""

from __future__ import annotations

import re
from pathlib import Path

from lib_ipadapter.library.catalogue import KnownFile, by_id, face_pack_sizes, face_pack_url, known_files
from lib_ipadapter.library.vision import title
from lib_ipadapter.units.schema import markdown_table

README = Path(__file__).resolve().parents[1] / "README.md"

START = {"SD1": "plus_sd15", "SDXL": "plus_sdxl_vit-h"}
"""What a newcomer is told to begin with: the adapter that `auto` prefers, by the catalogue's id."""

START_FACES = {"SD1": "faceid-plusv2_sd15", "SDXL": "faceid-plusv2_sdxl"}
"""The same for faces."""

CHECKPOINTS = {"SD1": "SD1.5", "SDXL": "SDXL", "SD2": "SD2", "Kolors": "Kolors"}
"""The bases in the table's order, as people call them."""

PURPOSES = {
    "base": "the whole picture",
    "vit-h": "the whole picture",
    "vit-G": "the whole picture",
    "noob": "the whole picture, on NoobAI checkpoints",
    "light": "leaves more to the prompt; older",
    "light_v11": "leaves more to the prompt",
    "plus": "the whole picture, closer to it",
    "plus-face": "a face: a portrait cropped to it",
    "full-face": "a face cut out of its background",
    "composition": "what stands where, little else",
}
"""What a variant is for."""

FACE_PURPOSES = {
    "faceid": "a person",
    "faceid_plus": "a person, and the face's shape; older",
    "faceid_plus_v2": "a person, and as much of the face's shape as you like",
    "faceid_portrait": "a person, best from several photos",
    "faceid_portrait_unnorm": "a person, from the raw embedding; best from several photos",
}
"""What a kind of face adapter is for."""

FACE_PACK = "buffalo_l"
"""The pack that every published FaceID adapter needs."""


def adapters() -> list[KnownFile]:
    """The published adapters that pictures can be put into; of one file in two containers, the safetensors."""
    safe = {_stem(known) for known in known_files() if known.container == "safetensors"}
    listed = [
        known
        for known in known_files()
        if known.status == "supported"
        and known.url
        and all(name.startswith("clip_") for name in known.encoders)
        and (known.container == "safetensors" or _stem(known) not in safe)
    ]
    order = list(CHECKPOINTS)
    return sorted(listed, key=lambda known: order.index(known.base))


def face_adapters() -> list[KnownFile]:
    """The published adapters that a photo of a person can be put into."""
    listed = [known for known in known_files() if known.status == "supported" and known.kind in FACE_PURPOSES]
    order = list(CHECKPOINTS)
    return sorted((known for known in listed if known.url), key=lambda known: order.index(known.base))


def encoders() -> dict[str, KnownFile]:
    """The first published file of each encoder that the adapters need, in the adapters' order."""
    needed = dict.fromkeys(name for known in adapters() for name in known.encoders)
    return {
        name: next(known for known in known_files() if known.kind == "vision_encoder" and known.variant == name)
        for name in needed
    }


def file_list() -> str:
    """What to begin with, and the table of all files."""
    lines = [_beginning(base, by_id(known_id)) for base, known_id in START.items()]
    lines += ["", "<details><summary>All files</summary>", ""]
    lines += ["| File | For | Checkpoint | Encoder | Size | Licence | Publisher |", "|---|---|---|---|---|---|---|"]
    for known in adapters():
        needed = ", ".join(f"`{_saved_as(encoders()[name])}`" for name in known.encoders)
        lines.append(_row(known, PURPOSES[known.variant], CHECKPOINTS[known.base], needed))
    for name, known in encoders().items():
        lines.append(_row(known, f"encoder, {title(name)}; published as `{known.path}`", "", ""))
    return "\n".join([*lines, "", "</details>"]) + "\n"


def face_list() -> str:
    """What a person's photo needs, and the table of all FaceID adapters."""
    lines = [_beginning_face(base, by_id(known_id)) for base, known_id in START_FACES.items()]
    lines += ["", "<details><summary>All FaceID adapters</summary>", ""]
    lines += ["| File | For | Checkpoint | LoRA | Encoder | Size | Licence | Publisher |", "|---" * 8 + "|"]
    for known in face_adapters():
        needed = ", ".join(f"`{_saved_as(encoders()[name])}`" for name in known.encoders if name != FACE_PACK)
        lora = "inside" if known.lora else ""
        lines.append(_row(known, FACE_PURPOSES[known.kind], CHECKPOINTS[known.base], lora, needed))
    return "\n".join([*lines, "", "</details>"]) + "\n"


PARTS = {"fields": markdown_table, "files": file_list, "faces": face_list}
"""What stands between `<!-- name:begin -->` and `<!-- name:end -->`."""


def between(name: str) -> re.Pattern[str]:
    """What finds a part in the README: group 2 is its text."""
    return re.compile(rf"(<!-- {name}:begin -->\n)(.*)(<!-- {name}:end -->)", re.DOTALL)


def write() -> None:
    """Bring the README up to date."""
    text = README.read_text(encoding="utf-8")
    for name, make in PARTS.items():
        made = make()
        text = between(name).sub(lambda match, made=made: match[1] + made + match[3], text)
    README.write_text(text, encoding="utf-8", newline="\n")


def _beginning(base: str, adapter: KnownFile) -> str:
    """One bullet: an adapter and the encoder that it needs."""
    wanted = [adapter, *(encoders()[name] for name in adapter.encoders)]
    return f"- **{CHECKPOINTS[base]}**: " + " and ".join(f"{_link(known)} ({_size(known)})" for known in wanted)


def _beginning_face(base: str, adapter: KnownFile) -> str:
    """One bullet: a FaceID adapter, the face pack and the encoder that it needs."""
    encoder = next(encoders()[name] for name in adapter.encoders if name != FACE_PACK)
    pack = f"[`{FACE_PACK}.zip`]({face_pack_url(FACE_PACK)}) ({face_pack_sizes()[FACE_PACK + '.zip'] / 1e6:.0f} MB)"
    return (
        f"- **{CHECKPOINTS[base]}**: {_link(adapter)} ({_size(adapter)}), the face pack {pack} and the encoder "
        f"{_link(encoder)} ({_size(encoder)})"
    )


def _row(known: KnownFile, *cells: str) -> str:
    publisher = f"[{known.repo}](https://huggingface.co/{known.repo})"
    cells = (_link(known), *cells, _size(known), known.licence, publisher)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _link(known: KnownFile) -> str:
    return f"[`{_saved_as(known)}`]({known.url})"


def _saved_as(known: KnownFile) -> str:
    """The name to keep a file under: its own, or of an encoder (all are published as "model") what others call it."""
    return known.aliases[0] if known.kind == "vision_encoder" else known.name


def _size(known: KnownFile) -> str:
    """What a download page shows: decimal MB or GB."""
    if known.bytes is None:
        return known.approx_bytes
    return f"{known.bytes / 1e9:.2f} GB" if known.bytes >= 1e9 else f"{known.bytes / 1e6:.0f} MB"


def _stem(known: KnownFile) -> tuple[str, str]:
    return known.repo, known.path.rsplit(".", 1)[0]


if __name__ == "__main__":
    write()
