"""The accordion as a user works it, on any WebUI: opening, adding pictures in three ways, reading what is shown."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

PATIENCE_MS = 20_000
JOB_PATIENCE_MS = 300_000
# Makes files in the browser and hands them over as a drop or as a clipboard's content.
GIVE_FILES = """
([selector, event, files, text]) => {
    const transfer = new DataTransfer();
    if (text) transfer.setData("text/plain", text);
    for (const [name, type, data] of files) {
        const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
        transfer.items.add(new File([bytes], name, {type}));
    }
    const target = selector ? document.querySelector(selector) : document.activeElement ?? document.body;
    const init = {bubbles: true, cancelable: true};
    target.dispatchEvent(event === "paste"
        ? new ClipboardEvent("paste", {...init, clipboardData: transfer})
        : new DragEvent(event, {...init, dataTransfer: transfer}));
}
"""


class Accordion:
    """The accordion of one tab on an open page."""

    def __init__(self, page: Any, tab: str = "txt2img") -> None:
        self.page, self.tab = page, tab
        self.id = f"#{tab}_ipadapter"

    def unit(self, number: int = 1) -> str:
        return f"{self.id}_unit{number}"

    def open(self) -> None:
        if "open" not in (self.page.get_attribute(f"{self.id} > .label-wrap", "class") or "").split():
            self.page.click(f"{self.id} > .label-wrap")
        self.page.wait_for_selector(f"{self.unit()}_strip", state="visible", timeout=PATIENCE_MS)

    def is_on(self) -> bool:
        return self.page.is_checked(f"{self.id}-visible-checkbox")

    def choose(self, *files: Path, number: int = 1) -> None:
        """Through the file dialogue. A click is lost where the strip is drawn anew between press and release, on a busy
        machine now and then; as people do, it is clicked again.
        """
        from playwright.sync_api import TimeoutError as TooLate

        for last in (False, False, True):
            try:
                with self.page.expect_file_chooser(timeout=PATIENCE_MS / 2) as chooser:
                    self.page.click(f"{self.unit(number)}_strip .ipadapter-add")
            except TooLate:
                if last:
                    raise
            else:
                chooser.value.set_files([str(file) for file in files])
                return

    def drop(self, *files: Path, number: int = 1) -> None:
        target = f"{self.unit(number)}_strip .ipadapter-strip"
        for event in ("dragover", "drop"):
            self.page.evaluate(GIVE_FILES, [target, event, [carried(file) for file in files]])

    def paste(self, *files: Path, text: str = "") -> None:
        """Paste where the keyboard's focus is: files, and text beside them as word processors give it."""
        self.page.evaluate(GIVE_FILES, [None, "paste", [carried(file) for file in files], text])

    def wait_for_thumbnails(self, count: int, number: int = 1) -> None:
        self._wait_for_count(f"{self.unit(number)}_strip .ipadapter-tile img", count)

    def wait_for_squares(self, count: int, number: int = 1) -> None:
        self._wait_for_count(f"{self.unit(number)}_preview img", count)

    def squares(self, number: int = 1) -> list[Image.Image]:
        """What the preview shows, at its own size."""
        return self._pictures(f"{self.unit(number)}_preview img")

    def text(self, part: str, number: int = 1) -> str:
        """The sentence in the unit's message, strip, or adapter_line; gradio's own progress text is not part of it."""
        lines = self.page.eval_on_selector_all(
            f"{self.unit(number)}_{part} [role=status]", "all => all.map(one => one.textContent)"
        )
        return " ".join(lines).strip()

    def wait_for_text(self, part: str, text: str, number: int = 1) -> None:
        self.page.wait_for_function(
            "([selector, text]) => document.querySelector(selector)?.innerText.includes(text)",
            arg=[f"{self.unit(number)}_{part}", text],
            timeout=PATIENCE_MS,
        )

    def number(self, field: str, number: int = 1) -> float:
        return float(self.page.input_value(f"{self.unit(number)}_{field} input[type=number]"))

    def set_number(self, field: str, value: float, number: int = 1) -> None:
        fill(self.page, f"{self.unit(number)}_{field} input[type=number]", value)

    def references(self, number: int = 1) -> str:
        return self.page.input_value(f"{self.unit(number)}_images textarea")

    def select(self, field: str, label: str, number: int = 1) -> None:
        """Choose an entry of a drop-down."""
        self.page.click(f"{self.unit(number)}_{field} input")
        self.page.click(f'ul.options li:has-text("{label}")')

    def selected(self, field: str, number: int = 1) -> str:
        return self.page.input_value(f"{self.unit(number)}_{field} input")

    def intent(self, number: int = 1) -> str:
        return self.page.inner_text(f"{self.unit(number)}_intent label:has(input:checked)").strip()

    def choose_intent(self, label: str, number: int = 1) -> None:
        self.page.click(f"{self.unit(number)}_intent label:has-text('{label}')")

    def wait_for_faces(self, count: int, number: int = 1) -> None:
        """Wait until the preview shows so many faces and nothing is left to be analysed."""
        self._wait_for_count(f"{self.unit(number)}_preview .ipadapter-face-box", count)
        self.page.wait_for_function(
            "selector => !/Looking for|Aligning/.test(document.querySelector(selector)?.textContent ?? '')",
            arg=f"{self.unit(number)}_preview .ipadapter-seen",
            timeout=PATIENCE_MS,
        )

    def faces(self, number: int = 1) -> list[tuple[str, bool]]:
        """What each face in the preview is called, and whether it counts."""
        return [
            (label, pressed == "true")
            for label, pressed in self.page.eval_on_selector_all(
                f"{self.unit(number)}_preview .ipadapter-face-box",
                "all => all.map(one => [one.getAttribute('aria-label'), one.getAttribute('aria-pressed')])",
            )
        ]

    def crops(self, number: int = 1) -> list[Image.Image]:
        """The aligned faces, at their own size."""
        return self._pictures(f"{self.unit(number)}_preview .ipadapter-face-crop")

    def keypoint_map(self, photo: str, number: int = 1) -> Image.Image:
        """The map of the keypoints of that photo, once the preview shows it."""
        selector = f"{self.unit(number)}_preview img[alt='Keypoints of {photo}']"
        self.page.wait_for_selector(selector, timeout=2 * PATIENCE_MS)
        return self._pictures(selector)[0].convert("RGB")

    def face_text(self, number: int = 1) -> str:
        return self.page.input_value(f"{self.unit(number)}_face textarea")

    def wait_for_face_text(self, text: str, number: int = 1) -> None:
        self.page.wait_for_function(
            "([selector, text]) => document.querySelector(selector)?.value === text",
            arg=[f"{self.unit(number)}_face textarea", text],
            timeout=PATIENCE_MS,
        )

    def _pictures(self, selector: str) -> list[Image.Image]:
        sources = self.page.eval_on_selector_all(selector, "all => all.map(one => one.src)")
        return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]

    def _wait_for_count(self, selector: str, count: int) -> None:
        self.page.wait_for_function(
            "([selector, count]) => document.querySelectorAll(selector).length === count",
            arg=[selector, count],
            timeout=PATIENCE_MS,
        )


def fill(page: Any, selector: str, value: object) -> None:
    """Type a value and leave the field, as gradio's sliders want it."""
    page.fill(selector, str(value))
    page.press(selector, "Tab")


def carried(file: Path) -> list[str]:
    """A file as `GIVE_FILES` takes it."""
    types = {".png": "image/png", ".jpg": "image/jpeg"}
    return [file.name, types.get(file.suffix, "text/plain"), base64.b64encode(file.read_bytes()).decode("ascii")]


def generate(page: Any, tab: str = "txt2img") -> tuple[bytes, str]:
    """Press Generate; the picture's pixels and its infotext, or no pixels and the sentence that came instead.

    The infotext must differ from that of the picture before, which is how the end of the job is seen on every host.
    """
    # The paragraphs, because gradio writes its own progress beside them.
    info, log = f"#html_info_{tab} p", f"#html_log_{tab} .error"
    read = "selector => document.querySelector(selector)?.innerText.trim() ?? ''"
    before = page.evaluate(read, info)
    page.click(f"#{tab}_generate")
    page.wait_for_function(
        "([info, log, before]) => { const text = document.querySelector(info)?.innerText.trim();"
        " return (text && text !== before) || document.querySelector(log); }",
        arg=[info, log, before],
        timeout=JOB_PATIENCE_MS,
    )
    if page.query_selector(log):
        return b"", page.evaluate(read, log)
    # reForge's and Classic's page drops errors; there a job ends without a picture and says why in a comment.
    comment = page.evaluate(read, f"#html_log_{tab} .comments")
    if "IP-Adapter: Stopped" in comment:
        return b"", comment
    page.wait_for_selector(f"#{tab}_gallery img", timeout=PATIENCE_MS)
    page.wait_for_timeout(300)
    source = page.evaluate("selector => document.querySelector(selector).src", f"#{tab}_gallery img")
    picture = Image.open(io.BytesIO(page.request.get(source).body()))
    return picture.convert("RGB").tobytes(), page.evaluate(read, info)


def small_job(page: Any, tab: str = "txt2img") -> None:
    """Set the smallest job that every host runs."""
    for field, value in (("steps", 2), ("width", 64), ("height", 64)):
        fill(page, f"#{tab}_{field} input[type=number]", value)
    fill(page, f"#{tab}_seed input", 7)


def open_person(accordion: Accordion, intent: str, shown: str, needed: str) -> Accordion:
    """Choose an intent for a person, whose unit has the class `shown` then; skip the test on a host that has no adapter
    for it, whose line says `needed`.
    """
    need_adapter(accordion)
    accordion.choose_intent(intent)
    accordion.page.wait_for_function(
        "([selector, shown]) => document.querySelector(selector)?.classList.contains(shown)",
        arg=[accordion.unit(), shown],
        timeout=PATIENCE_MS,
    )
    line = accordion.text("adapter_line")
    if needed not in line:
        pytest.skip(f"no adapter of {intent} for the loaded checkpoint: {line}")
    return accordion


def need_adapter(accordion: Accordion) -> None:
    """Skip the test on a host without an adapter for its checkpoint."""
    accordion.page.wait_for_function(
        "selector => document.querySelector(selector)?.textContent.trim()",
        arg=f"{accordion.unit()}_adapter_line [role=status]",
        timeout=PATIENCE_MS,
    )
    if "ip-adapter" not in accordion.text("adapter_line"):
        pytest.skip(f"no adapter for the loaded checkpoint: {accordion.text('adapter_line')}")
