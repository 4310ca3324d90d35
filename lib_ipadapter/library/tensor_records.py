"""A tensor's instructions as `torch.save` writes them at protocol 2, found as one piece; `pickles` runs them as one.

A FaceID file has a thousand tensors of 32 instructions that differ in a few numbers. Nothing is decided here: this
tells what a piece consists of, and what does not look exactly like this is left to the machine. Form: PyTorch
`torch.serialization` and `torch._utils._rebuild_tensor_v2`, each new object followed by its place in the memo.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

# A record takes eight places in the memo: name, key, persistent id, size, stride, hooks, arguments, tensor.
PLACES = 8
# From here on places are asked for with LONG_BINGET, so that a BINGET never means an object of a record.
FIRST_PLACE = 256
# All instructions from behind a tensor's name to the next one's; each number of the size and of the stride is one more.
_INSTRUCTIONS = 28
MAX_RECORD = _INSTRUCTIONS + 2 * 3

_NUMBER = rb"(?:K.|M..|J....)"
_NUMBERS = _NUMBER + rb"{1,3}[\x85-\x87]"
# Its groups are the eight places, the storage's key with the length it claims, and the five `Parts`.
RECORD = re.compile(
    rb"r(....)(h.\(\(h.(?:h.|j....))"  # the name's place; the function, "storage" and the storage's type
    rb"X(.)\0\0\0([0-9]{1,255})r(....)"  # the storage's key
    rb"(h." + _NUMBER + rb")tr(....)Q"  # device and number of elements, which end the persistent id
    rb"(" + _NUMBER + _NUMBERS + rb")r(....)"  # offset and size
    rb"(" + _NUMBERS + rb")r(....)"  # stride
    rb"\x89(h.)\)Rr(....)"  # requires_grad and an empty OrderedDict of hooks
    rb"tr(....)Rr(....)",
    re.DOTALL,
)
# The bytes of a record's places, read as one number, are this many times the first one, plus this.
PLACES_UNIT, _PLACES_REST = (
    int.from_bytes(struct.pack(f"<{PLACES}I", *row), "little") for row in ([1] * PLACES, range(PLACES))
)
_FORMS = {0x4B: struct.Struct("<B"), 0x4D: struct.Struct("<H"), 0x4A: struct.Struct("<i")}

# What stays the same in many records: head, device and count, offset and size, stride, hooks.
Parts = tuple[bytes, bytes, bytes, bytes, bytes]


def places_from(first: int) -> int:
    """The bytes of a record's places, read as one number, when they follow each other from `first` on.

    More than any bytes can say when the last place has no 32 bits.
    """
    return first * PLACES_UNIT + _PLACES_REST


class Contents(NamedTuple):
    """What a record's parts say. The first five are places in the memo; sizes and strides count elements."""

    function: int
    word: int
    kind: int
    device: int
    hooks: int
    numel: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    instructions: int


def read_parts(parts: Parts) -> Contents | None:
    """Read a record's parts; None when a tuple does not take exactly the numbers before it."""
    head, counted, placed, strides, hooks = parts
    kind = head[7] if head[6] == 0x68 else int.from_bytes(head[7:], "little")
    (numel,), (offset, *size), stride = _numbers(counted[2:]), _numbers(placed[:-1]), _numbers(strides[:-1])
    if len(size) != placed[-1] - 0x84 or len(stride) != strides[-1] - 0x84:
        return None
    count = _INSTRUCTIONS + len(size) + len(stride)
    return Contents(head[1], head[5], kind, counted[1], hooks[1], numel, offset, tuple(size), tuple(stride), count)


def _numbers(instructions: bytes) -> list[int]:
    """The numbers that BININT1, BININT2 and BININT instructions push."""
    found: list[int] = []
    at = 0
    while at < len(instructions):
        form = _FORMS[instructions[at]]
        found += form.unpack_from(instructions, at + 1)
        at += 1 + form.size
    return found
