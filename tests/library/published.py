"""Torch files as they are published: every tensor in a storage of its own and every instruction `torch.save` writes."""

from __future__ import annotations

import struct
from pathlib import Path

from .synthetic import BYTES, STORAGES, Shapes, write_zip


class _Pickle:
    """The instructions of CPython's pickler at protocol 2: each new object is followed by its place in the memo."""

    def __init__(self) -> None:
        self.parts: list[bytes] = [b"\x80\x02"]
        self.memo: dict[object, int] = {}
        self.places = 0

    def put(self, what: object = None) -> None:
        """Remember the object just made; `what` is given for those that are asked for again."""
        place, self.places = self.places, self.places + 1
        if what is not None:
            self.memo[what] = place
        self.parts.append(b"q" + bytes([place]) if place < 256 else b"r" + struct.pack("<I", place))

    def shared(self, what: str, instructions: bytes) -> None:
        place = self.memo.get(what)
        if place is None:
            self.parts.append(instructions)
            self.put(what)
        else:
            self.parts.append(b"h" + bytes([place]) if place < 256 else b"j" + struct.pack("<I", place))

    def text(self, text: str) -> bytes:
        return b"X" + struct.pack("<I", len(text)) + text.encode()

    def number(self, value: int) -> bytes:
        if value < 256:
            return b"K" + bytes([value])
        return b"M" + struct.pack("<H", value) if value < 65536 else b"J" + struct.pack("<i", value)

    def numbers(self, values: tuple[int, ...]) -> None:
        numbers = b"".join(map(self.number, values))
        if not values:
            self.parts.append(b")")
            return
        self.parts.append(numbers + bytes([0x84 + len(values)]) if len(values) < 4 else b"(" + numbers + b"t")
        self.put()

    def tensor(self, key: int, dtype: str, shape: tuple[int, ...]) -> None:
        strides = tuple(_count(shape[at + 1 :]) for at in range(len(shape)))
        self.shared("rebuild", b"ctorch._utils\n_rebuild_tensor_v2\n")
        self.parts.append(b"((")
        self.shared("storage", self.text("storage"))
        self.shared(dtype, b"ctorch\n" + STORAGES[dtype].encode() + b"\n")
        self.parts.append(self.text(str(key)))
        self.put()
        self.shared("cpu", self.text("cpu"))
        self.parts.append(self.number(_count(shape)) + b"t")
        self.put()
        self.parts.append(b"QK\x00")
        self.numbers(shape)
        self.numbers(strides)
        self.parts.append(b"\x89")
        self.shared("odict", b"ccollections\nOrderedDict\n")
        for instructions in (b")R", b"t", b"R"):
            self.parts.append(instructions)
            self.put()


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def published_pickle(shapes: Shapes) -> bytes:
    """The `data.pkl` of `torch.save({"image_proj": {...}, "ip_adapter": {...}})`, or whatever comes before the dots."""
    pickle, key = _Pickle(), 0
    names = dict.fromkeys(name.partition(".")[0] for name in shapes)
    groups = {group: {n: i for n, i in shapes.items() if n.startswith(group + ".")} for group in names}
    pickle.parts.append(b"}")
    pickle.put()
    pickle.parts.append(b"(")
    for group, tensors in groups.items():
        pickle.parts.append(pickle.text(group))
        pickle.put()
        pickle.parts.append(b"}")
        pickle.put()
        pickle.parts.append(b"(")
        for name, (dtype, shape) in tensors.items():
            pickle.parts.append(pickle.text(name[len(group) + 1 :]))
            pickle.put()
            pickle.tensor(key, dtype, shape)
            key += 1
        pickle.parts.append(b"u")
    return b"".join(pickle.parts) + b"u."


def write_published(path: Path, shapes: Shapes) -> Path:
    """Write a sparse torch zip with `published_pickle`."""
    storages = {str(key): _count(shape) * BYTES[dtype] for key, (dtype, shape) in enumerate(shapes.values())}
    return write_zip(path, published_pickle(shapes), storages)
