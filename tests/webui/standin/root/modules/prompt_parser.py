"""Prompts to conditionings: AND, weights, chunks of 75 tokens; the shapes are the host's, the numbers are seeded.

A real host's text encoder is replaced by a fixed random vector per word, so that a prompt matters and nothing has to
be downloaded.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache

import torch

CHUNK = 75
_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"^((?:\s|.)*?)(?:\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+)))?\s*$")


@dataclass
class ScheduledPromptConditioning:
    """A conditioning that is used until a step."""

    end_at_step: int
    cond: object


@dataclass
class ComposableScheduledPromptConditioning:
    """One part of an AND prompt, with its weight."""

    schedules: list[ScheduledPromptConditioning]
    weight: float = 1.0


@dataclass
class MulticondLearnedConditioning:
    """A batch of prompts, each a list of parts."""

    shape: tuple
    batch: list[list[ComposableScheduledPromptConditioning]]


class SdConditioning(list):
    """Prompts with the size they are drawn at."""

    def __init__(self, prompts, is_negative_prompt: bool = False, width=None, height=None, **_ignored):
        super().__init__(prompts)
        self.is_negative_prompt = is_negative_prompt
        self.width = width
        self.height = height


@lru_cache(maxsize=4096)
def _vector(name: str, width: int) -> torch.Tensor:
    """A fixed random vector `(width,)` for a word."""
    seed = int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:8], "little") % (2**63)
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def tokens(text: str) -> list[str]:
    """Words and punctuation; a real tokenizer splits rare words further."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def encode(text: str, width: int) -> torch.Tensor:
    """Embedding of one prompt, `(chunks * 77, width)`: start, 75 words or padding, end, per chunk."""
    words = tokens(text)
    chunks = [words[i:i + CHUNK] for i in range(0, len(words), CHUNK)] or [[]]
    rows = []
    for chunk in chunks:
        filled = ["<start>", *chunk, *["<end>"] * (CHUNK - len(chunk)), "<end>"]
        rows += [_vector(word, width) + 0.1 * _vector(f"<at {i}>", width) for i, word in enumerate(filled)]
    return torch.stack(rows)


def encode_batch(texts, width: int) -> torch.Tensor:
    """Embeddings of several prompts, `(n, chunks * 77, width)`; shorter ones get empty chunks, as the host does."""
    longest = max(len(tokens(text)) for text in texts)
    n_chunks = max(1, -(-longest // CHUNK))
    empty = encode("", width)
    rows = []
    for text in texts:
        row = encode(text, width)
        missing = n_chunks - row.shape[0] // (CHUNK + 2)
        rows.append(torch.cat([row, *[empty] * missing]))
    return torch.stack(rows)


def _parts(prompt: str) -> list[tuple[str, float]]:
    parts = []
    for text in _AND.split(prompt):
        match = _WEIGHT.search(text)
        found, weight = match.groups() if match else (text, None)
        parts.append((found.strip(), float(weight) if weight is not None else 1.0))
    return parts


def _rows(model, prompts: SdConditioning, texts: list[str]) -> list:
    """One conditioning per text: a tensor `(seq, width)`, or SDXL's dict of crossattn and vector."""
    conds = model.get_learned_conditioning(SdConditioning(texts, prompts.is_negative_prompt, prompts.width,
                                                          prompts.height))
    if isinstance(conds, dict):
        return [{key: value[i] for key, value in conds.items()} for i in range(len(texts))]
    return list(conds)


def get_learned_conditioning(model, prompts: SdConditioning, steps: int, hires_steps=None, *_ignored):
    """Schedules of each negative prompt of a batch."""
    rows = [_rows(model, prompts, [prompt])[0] for prompt in prompts]
    return [[ScheduledPromptConditioning(steps, row)] for row in rows]


def get_multicond_learned_conditioning(model, prompts: SdConditioning, steps: int, hires_steps=None, *_ignored):
    """Schedules of each part of each prompt of a batch."""
    batch = []
    for prompt in prompts:
        parts = _parts(prompt)
        rows = [_rows(model, prompts, [text])[0] for text, _ in parts]
        batch.append([ComposableScheduledPromptConditioning([ScheduledPromptConditioning(steps, row)], weight)
                      for row, (_, weight) in zip(rows, parts, strict=True)])
    return MulticondLearnedConditioning(shape=(len(prompts),), batch=batch)


class DictWithShape(dict):
    """SDXL's conditioning; `shape` is that of the cross-attention rows."""

    @property
    def shape(self):
        """Shape of the cross-attention rows."""
        return self["crossattn"].shape


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Stack rows; shorter ones repeat their last vector, as the host does."""
    longest = max(t.shape[0] for t in tensors)
    return torch.stack([t if t.shape[0] == longest else torch.vstack([t, t[-1:].repeat(longest - t.shape[0], 1)])
                        for t in tensors])


def _stack_any(rows: list):
    if isinstance(rows[0], dict):
        out = DictWithShape()
        for key in rows[0]:
            values = [row[key] for row in rows]
            out[key] = _stack(values) if key == "crossattn" else torch.stack(values)
        return out
    return _stack(rows)


def _at(schedules: list[ScheduledPromptConditioning], step: int):
    return next((s.cond for s in schedules if step <= s.end_at_step), schedules[-1].cond)


def reconstruct_cond_batch(c, current_step: int):
    """The negative prompts' rows at a step, `(b, seq, width)`."""
    return _stack_any([_at(schedules, current_step) for schedules in c])


def reconstruct_multicond_batch(c: MulticondLearnedConditioning, current_step: int):
    """`(conds_list, rows)`: per picture its `(row index, weight)` pairs, and all rows, image-major."""
    rows, conds_list = [], []
    for parts in c.batch:
        conds_list.append([(len(rows) + i, part.weight) for i, part in enumerate(parts)])
        rows += [_at(part.schedules, current_step) for part in parts]
    return conds_list, _stack_any(rows)
