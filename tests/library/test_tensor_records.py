"""Tensors' records that are run in one step each give what their single instructions give, error for error."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Iterable

import pytest

from lib_ipadapter.library import pickle_machine, pickles
from lib_ipadapter.library.errors import AdapterFileError

from .published import published_pickle
from .synthetic import Shapes, adapter_shapes
from .test_hostile import TENSOR
from .test_layouts import LAYOUTS


class OneByOne(pickles._TorchReader):
    """The reader without the step for whole records."""

    def run_records(self, limit: int) -> int:
        return 0


class Counting(pickles._TorchReader):
    """The reader that counts the instructions it runs in whole records."""

    ran = 0

    def run_records(self, limit: int) -> int:
        ran = super().run_records(limit)
        assert 0 <= ran <= limit
        self.ran += ran
        return ran


def outcome(reader: pickles._TorchReader) -> tuple[str, ...]:
    """All that reading leaves behind, or the error."""
    try:
        top = reader.run()
        tensors = pickles._flatten(top)
    except (AdapterFileError, EOFError, IndexError, KeyError, TypeError, AttributeError, struct.error, ValueError) as e:
        return type(e).__name__, str(e)
    left = (top, list(tensors.items()), reader.storages, reader.stack, reader.marks, sorted(reader.memo.items()))
    return tuple(re.sub(r" at 0x\w+", "", repr(part)) for part in left)


def ran_in_records(data: bytes) -> int:
    """Check that both ways end alike; return how many instructions ran in whole records."""
    for lenient in (True, False):
        reader = Counting(data, lenient=lenient)
        assert outcome(reader) == outcome(OneByOne(data, lenient=lenient))
    return reader.ran


# Forty-five records, of which the first thirty-one lie too early in the memo; then types that come late, as
# LONG_BINGET asks for, and every number of dimensions.
SHAPES: Shapes = {f"a.{number}.weight": ("F16", (8, 300)) for number in range(34)} | {
    "b.bias": ("F16", (70_000,)),
    "b.latents": ("F32", (1, 2, 3)),
    "b.weight": ("F32", (2, 300)),
    "b.norm.weight": ("F32", (300, 8)),
    "b.scalar": ("F32", ()),
    "b.kernel": ("F32", (2, 2, 2, 2)),
    "c.weight": ("BF16", (3, 3)),
    "c.weights": ("BF16", (3, 3)),
    "c.r.r": ("F16", (3, 3)),
    "c.empty": ("F16", (0, 3)),
    "c.last": ("BF16", (3, 3)),
}
DATA = published_pickle(SHAPES)
LATE = DATA.index(b"31.weight") - 5
RECORD = DATA[DATA.index(b"32.weight") - 5 : DATA.index(b"33.weight") - 5]


def test_nearly_all_of_a_faceid_file_runs_in_records() -> None:
    assert ran_in_records(published_pickle(adapter_shapes("faceid", "SDXL"))) == 39_519  # of 40,527
    assert 32 * 8 < ran_in_records(DATA) < 32 * 13


@pytest.mark.parametrize("base", ["SD1", "SDXL"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, base: str) -> None:
    shapes = LAYOUTS[layout](adapter_shapes("faceid" if base == "SD1" else "plus", base, narrow=32), base)
    assert ran_in_records(published_pickle(shapes)) > 0


def test_every_byte_of_a_record_changed() -> None:
    begin = DATA.index(RECORD)
    for at in range(begin, begin + len(RECORD)):
        byte = DATA[at]
        for other in {byte ^ 1, byte ^ 0x80, (byte + 1) % 256, (byte - 1) % 256, 0, 4, 0x68, 0x72, 0xFF} - {byte}:
            ran_in_records(DATA[:at] + bytes([other]) + DATA[at + 1 :])
        ran_in_records(DATA[:at] + DATA[at + 1 :])
        ran_in_records(DATA[:at])


@pytest.mark.parametrize("seed", range(4))
def test_random_changes_near_records(seed: int) -> None:
    chance = random.Random(seed)
    pieces = [
        RECORD, TENSOR, b"h\x04", b"j\x04\x01\0\0", b"r\x04\0\0\0", b"K\x01", b"M\x01\0", b"J\x01\0\0\0", b"(",
        b"t", b"R", b")", b"\x85", b"\x86", b"\x87", b"\x88", b"\x94", b"u", b"s", b"0", b"2", b"}",
    ]  # fmt: skip
    for _ in range(250):
        data = bytearray(DATA)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(LATE, len(data))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    data[at:at] = chance.choice(pieces)
                case 2:
                    del data[at : at + chance.randrange(1, 8)]
                case _:
                    data[at : at + 1] = data[(start := chance.randrange(LATE, len(data))) : start + 1]
        ran_in_records(bytes(data))


def replaced(*changes: tuple[bytes, bytes]) -> bytes:
    """DATA with the record of the thirty-third tensor changed."""
    record = RECORD
    for old, new in changes:
        assert old in record
        record = record.replace(old, new, 1)
    return DATA.replace(RECORD, record)


def placed(record: bytes) -> list[bytes]:
    """The places in the memo that a record takes, as they are written."""
    return re.findall(rb"r(....)", record, re.DOTALL)


def at_places(record: bytes, first: int) -> bytes:
    """The record with its places from `first` on, as far as they have 32 bits."""
    for count, place in enumerate(placed(record)):
        record = record.replace(b"r" + place, b"r" + struct.pack("<I", (first + count) % (1 << 32)))
    return record


def changed_records() -> Iterable[tuple[str, bytes]]:
    yield "two storages of one key", replaced((b"X\x02\0\0\x0032", b"X\x02\0\0\x0031"))
    yield "a key in two ways", replaced((b"X\x02\0\0\x0032", b"X\x02\0\0\x0031"), (b"M\x60\x09t", b"M\x61\x09t"))
    yield "a key in two ways, of a known form", DATA.replace(b"X\x02\0\0\x0044", b"X\x02\0\0\x0034")
    key_place = placed(RECORD)[1]
    type_there = b"ctorch\nHalfStorage\nr" + key_place + b"0"
    asking = at_places(RECORD, int.from_bytes(placed(RECORD)[0], "little") + 8).replace(
        b"h\x06X", b"j" + key_place + b"X"
    )
    yield "a type that was where the record before it has its key", DATA.replace(RECORD, type_there + RECORD + asking)
    yield "outside its storage", replaced((b"QK\x00", b"QK\x01"))
    yield "a negative offset", replaced((b"QK\x00", b"QJ\xff\xff\xff\xff"))
    yield "a negative size", replaced((b"K\x08M\x2c\x01\x86", b"K\x08J\xff\xff\xff\xff\x86"))
    yield "a negative count", replaced((b"M\x60\x09t", b"J\xff\xff\xff\xfft"))
    yield "one number too many", replaced((b"K\x08M\x2c\x01\x86", b"K\x08K\x08M\x2c\x01\x86"))
    yield "one number too few", replaced((b"K\x08M\x2c\x01\x86", b"M\x2c\x01\x86"))
    yield "more sizes than strides", replaced((b"K\x08M\x2c\x01\x86", b"K\x01K\x08M\x2c\x01\x87"))
    yield "a key of no length", replaced((b"X\x02\0\0\x0032", b"X\0\0\0\0"))
    yield "a key of text", replaced((b"X\x02\0\0\x0032", b"X\x02\0\0\x00r3"))
    yield "a name of no text", replaced((b"X\x09\0\0\x0032.weight", b"X\x09\0\0\0\xff\xfe.weight"))
    yield "a name beyond the end", replaced((b"X\x09\0\0\0", b"X\xff\xff\xff\x7f"))
    yield "another function", replaced((b"h\x04((", b"h\x0b(("))
    yield "true for a number", replaced((b"K\x08M\x2c\x01\x86", b"\x88M\x2c\x01\x86"))


@pytest.mark.parametrize(
    ("what", "data"), list(changed_records()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_records_that_are_not_as_they_should_be(what: str, data: bytes) -> None:
    assert data != DATA
    ran_in_records(data)


def test_what_records_put_in_the_memo_is_there_to_be_asked_for() -> None:
    places = placed(RECORD)
    assert len(places) == 8
    for place in places:
        data = DATA[:-2] + b"X\x01\0\0\0dj" + place + b"u."
        ran_in_records(data)
        ran_in_records(data[:-2] + b"r\x05\0\0\0j\x05\0\0\0s\x94u.")


def test_places_far_out_or_out_of_order() -> None:
    for first in (0, 255, (1 << 31) - 1, 1 << 31, (1 << 32) - 4, (1 << 32) - 8):
        for times in (1, 3):
            ran_in_records(DATA.replace(RECORD, at_places(RECORD, first) * times))


def test_instructions_are_counted_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    refused: set[bool] = set()
    for limit in range(1000, 1500, 3):
        monkeypatch.setattr(pickle_machine, "MAX_INSTRUCTIONS", limit)
        ran_in_records(DATA)
        refused.add("runs past" in outcome(Counting(DATA, lenient=False))[-1])
    assert refused == {True, False}
