"""Which rows of an A1111 UNet call are prompt and which negative.

A1111's denoiser (modules/sd_samplers_cfg_denoiser.py, CFGDenoiser.forward) announces a step through
`on_cfg_denoiser` and then runs all prompt rows followed by all negative rows, each exactly once, in one call or
several. So the rows of a step are one sequence, and every call takes the next slice of it, however the host splits.
Used by `hosts.a1111`; knows tensors and the denoiser's parameters, imports nothing of the WebUI.
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

    def begin_pass(self) -> None:
        self._clock.begin_pass()
        self._params = None

    def begin_step(self, params: Any) -> None:
        """Keep the parameters; the sequence is read in the step's first UNet call, as later callbacks may edit them."""
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
        if len(rows) == batch:
            self._next += batch
        else:
            context = call_argument(args, kwargs, 2, "context")
            rows = rows_by_context(
                context, text_rows(self._params.text_cond), text_rows(self._params.text_uncond), batch
            )
        return UNetCall(rows=rows, fraction=fraction)

    def _step_rows(self) -> tuple[int, ...]:
        cond = (COND,) * text_rows(self._params.text_cond).shape[0]
        if self._skips_negative(self._params):
            return cond
        uncond = (UNCOND,) * text_rows(self._params.text_uncond).shape[0]
        return cond + uncond * (2 if self._edits(self._params) else 1)


def text_rows(text: Any) -> torch.Tensor:
    """The `(rows, tokens, dim)` text tensor of a conditioning, which SDXL wraps in a dict."""
    return text["crossattn"] if isinstance(text, dict) else text


def rows_by_context(context: Any, cond: torch.Tensor, uncond: torch.Tensor, batch: int) -> tuple[int, ...]:
    """Tell each row of a call that is not in the step's sequence by its text: equal to a prompt's or a negative's.

    `context` is `(batch, tokens, dim)`. Extensions may put tokens before the text, so the last tokens are compared.

    Raises:
        UnexplainedRowsError: a row is neither, or could be both.
    """
    kinds: list[int] = []
    for row in range(batch):
        is_cond = isinstance(context, torch.Tensor) and _has_row(cond, context[row])
        is_uncond = isinstance(context, torch.Tensor) and _has_row(uncond, context[row])
        if is_cond == is_uncond:
            why = "fits both the prompt and the negative prompt" if is_cond else "is neither prompt nor negative prompt"
            raise UnexplainedRowsError(
                f"Another extension calls the UNet with rows of its own ({batch} in this call), and row {row + 1} "
                f"{why}, so the image prompt cannot be applied rightly. Switch off that extension (tiling, guidance, "
                "regional prompts) or the image prompt."
            )
        kinds.append(COND if is_cond else UNCOND)
    return tuple(kinds)


def _has_row(text: torch.Tensor, row: torch.Tensor) -> bool:
    if row.shape[-1] != text.shape[-1] or row.shape[0] < text.shape[1]:
        return False
    tail = row[-text.shape[1] :].to(text)
    return any(torch.equal(tail, candidate) for candidate in text)
