"""Which rows of an A1111 UNet call are prompt and which negative.

A1111's denoiser (modules/sd_samplers_cfg_denoiser.py, CFGDenoiser.forward) announces a step through
`on_cfg_denoiser` and then runs all prompt rows followed by all negative rows, each exactly once, in one call or
several. So the rows of a step are one sequence, and every call takes the next slice of it, however the host splits.
Extensions that call the UNet in their own way (tiles, guidance) can break that with calls of the same size, so a slice
is held against the rows' text when it is first seen; later steps trust what held, and need no comparison.
Used by `hosts.a1111`, and by `hosts.forge` to tell rows by their text; imports nothing of the WebUI.
"""

from __future__ import annotations

from typing import Any

import torch

from ..core.schedule import COND, UNCOND, UNetCall
from ..library.errors import UnexplainedRowsError
from .base import StepClock, call_argument, require_step


class SequenceReader:
    """Reads A1111's calls; `skips_negative(params)` and `edits(params)` are the host's own decisions for a step."""

    def __init__(self, skips_negative: Any, edits: Any) -> None:
        self._skips_negative = skips_negative
        self._edits = edits
        self._clock = StepClock()
        self._params: Any = None
        self._rows: tuple[int, ...] | None = None
        self._next = 0
        self._held: set[tuple[tuple[int, ...], int, int]] = set()

    def forget(self) -> None:
        self._clock.forget()
        self._params = None
        self._rows = None
        self._held.clear()

    def begin_step(self, params: Any) -> None:
        """Keep the parameters; the sequence is read in the step's first UNet call, as later callbacks may edit them."""
        if self._rows is not None and self._next != len(self._rows):
            self._held.clear()
        self._clock.begin_step(params)
        self._params = params
        self._rows = None
        self._next = 0

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> UNetCall:
        require_step(self._params is not None)
        if self._rows is None:
            self._rows = self._step_rows()
        batch = call_argument(args, kwargs, 0, "x").shape[0]
        fraction = self._clock.fraction(call_argument(args, kwargs, 1, "timesteps"))
        rows = self._rows[self._next : self._next + batch]
        place = (self._rows, self._next, batch)
        if len(rows) == batch and place in self._held:
            self._next += batch
            return UNetCall(rows=rows, fraction=fraction)
        context = call_argument(args, kwargs, 2, "context")
        cond, uncond = text_rows(self._params.text_cond), text_rows(self._params.text_uncond)
        if len(rows) == batch and not contradicts(context, cond, uncond, rows):
            self._next += batch
            self._held.add(place)
        else:
            # Not a call of the host's own: nothing that was seen before says what comes next.
            self._held.clear()
            rows = rows_by_context(context, cond, uncond, batch)
        return UNetCall(rows=rows, fraction=fraction)

    def _step_rows(self) -> tuple[int, ...]:
        cond = (COND,) * _count(self._params.text_cond)
        if self._skips_negative(self._params):
            return cond
        uncond = (UNCOND,) * _count(self._params.text_uncond)
        return cond + uncond * (2 if self._edits(self._params) else 1)


def text_rows(text: Any) -> torch.Tensor | None:
    """The `(rows, tokens, dim)` text tensor of a conditioning, which SDXL wraps in a dict; None where there is none."""
    return text["crossattn"] if isinstance(text, dict) else text


def _count(text: Any) -> int:
    rows = text_rows(text)
    return 0 if rows is None else rows.shape[0]


def contradicts(
    context: Any, cond: torch.Tensor | None, uncond: torch.Tensor | None, rows: tuple[int, ...]
) -> bool:
    """Whether a row's text is known, and is not of the kind that `rows` says.

    A text that is neither (another extension put its own into the call) does not contradict.
    """
    if not isinstance(context, torch.Tensor) or context.shape[0] != len(rows):
        return False
    for row, kind in zip(context, rows, strict=True):
        found = _kinds(row, cond, uncond)
        if found and kind not in found:
            return True
    return False


def rows_by_context(
    context: Any, cond: torch.Tensor | None, uncond: torch.Tensor | None, batch: int
) -> tuple[int, ...]:
    """Tell each row of a call that is not in the step's sequence by its text: equal to a prompt's or a negative's.

    `context` is `(batch, tokens, dim)`. Hosts pad a text at its end and extensions put tokens before it, so either its
    first or its last tokens have to agree.

    Raises:
        UnexplainedRowsError: a row is neither, or could be both.
    """
    kinds: list[int] = []
    for row in range(batch):
        found = _kinds(context[row], cond, uncond) if isinstance(context, torch.Tensor) else set[int]()
        if len(found) != 1:
            why = "fits both the prompt and the negative prompt" if found else "is neither prompt nor negative prompt"
            raise UnexplainedRowsError(
                f"Another extension calls the UNet with rows of its own ({batch} in this call), and row {row + 1} "
                f"{why}, so the image prompt cannot be applied rightly. Switch off that extension (tiling, guidance, "
                "regional prompts) or the image prompt."
            )
        kinds.append(found.pop())
    return tuple(kinds)


def _kinds(row: torch.Tensor, cond: torch.Tensor | None, uncond: torch.Tensor | None) -> set[int]:
    """COND, UNCOND, both or neither: by the row's first tokens, or where these say nothing by its last ones."""
    texts = {kind: text for kind, text in ((COND, cond), (UNCOND, uncond)) if text is not None}
    by_start = {kind for kind, text in texts.items() if _agrees(row, text, slice(0, min(len(row), text.shape[1])))}
    if by_start:
        return by_start
    return {kind for kind, text in texts.items() if _agrees(row, text, slice(-min(len(row), text.shape[1]), None))}


def _agrees(row: torch.Tensor, text: torch.Tensor, tokens: slice) -> bool:
    """Whether one of the text's rows equals `row` in these tokens, in the call's dtype: hosts cast to the UNet's."""
    if row.shape[-1] != text.shape[-1]:
        return False
    part = row[tokens]
    return any(torch.equal(part, one) for one in text[:, tokens].to(row))
