"""Bytes read forwards, whatever they lie in: a file, or a stored or deflated record of a zip. `onnx_headers` and
`face_models` read models through these.

What is skipped is sought over where that can be done, and unpacked and dropped where it cannot; memory stays at a few
blocks whatever the sizes are.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from . import archives
from .errors import AdapterFileError
from .printable import shown

BLOCK = 1 << 20
_PACKED_BLOCK = 1 << 16


class Forward(Protocol):
    """`size` bytes in all, `at` of them behind."""

    size: int
    at: int

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises: AdapterFileError when there are fewer."""
        ...

    def skip(self, count: int) -> None:
        """Leave `count` bytes out. Raises: AdapterFileError when there are fewer."""
        ...


class Span:
    """A stretch of a file: the whole of it, or a stored record."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self.size, self.at = file, start, size, 0
        file.seek(start)

    def read(self, count: int) -> bytes:
        raw = self._file.read(count) if self.at + count <= self.size else b""
        if len(raw) != count:
            raise _cut(self.at + len(raw), self.size)
        self.at += count
        return raw

    def skip(self, count: int) -> None:
        if self.at + count > self.size:
            raise _cut(self.at, self.size)
        self.at += count
        self._file.seek(self._start + self.at)


class Inflated:
    """A deflated record."""

    def __init__(self, file: BinaryIO, start: int, entry: archives.Entry) -> None:
        self._file, self._left, self.size, self.at = file, entry.packed, entry.size, 0
        self._name = shown(entry.name)
        self._unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        self._block, self._from, self._unpacked = b"", 0, 0
        file.seek(start)

    def read(self, count: int) -> bytes:
        parts: list[bytes] = []
        self._take(count, parts)
        return b"".join(parts)

    def skip(self, count: int) -> None:
        self._take(count, None)

    def _take(self, count: int, parts: list[bytes] | None) -> None:
        if self.at + count > self.size:
            raise _cut(self.at, self.size)
        while count:
            if self._from == len(self._block):
                self._unpack()
            used = min(count, len(self._block) - self._from)
            if parts is not None:
                parts.append(self._block[self._from : self._from + used])
            self._from += used
            self.at += used
            count -= used

    def _unpack(self) -> None:
        """Unpack the next block of at most `BLOCK` bytes."""
        block = b""
        while not block:
            packed = self._unpacker.unconsumed_tail
            if not packed:
                packed = self._file.read(min(_PACKED_BLOCK, self._left))
                self._left -= len(packed)
            if not packed or self._unpacker.eof:
                raise _cut(self._unpacked, self.size)
            try:
                block = self._unpacker.decompress(packed, BLOCK)
            except zlib.error as error:
                raise AdapterFileError(
                    f"{self._name} in the zip does not unpack: the file is damaged, download it again."
                ) from error
        self._unpacked += len(block)
        if self._unpacked > self.size:
            raise AdapterFileError(
                f"{self._name} in the zip unpacks to more than its {self.size} bytes: the file is damaged."
            )
        self._block, self._from = block, 0


def open_record(file: BinaryIO, total: int, entry: archives.Entry) -> Forward:
    """Open one record of a zip of `total` bytes, stored or deflated.

    Raises: AdapterFileError when it is cut off, lies about its size or is packed in another way.
    """
    what = shown(entry.name)
    _, start = archives.data_start(file, entry.offset)
    if start + entry.packed > total:
        raise AdapterFileError(
            f"{what} should reach byte {start + entry.packed} of the zip, which has {total}: download it again."
        )
    if entry.method == 8:
        return Inflated(file, start, entry)
    if entry.method != 0:
        raise AdapterFileError(f"{what} in the zip is packed with method {entry.method}: unpack the zip by hand.")
    if entry.packed != entry.size:
        raise AdapterFileError(
            f"{what} is stored in {entry.packed} bytes of the zip and should have {entry.size}: the file is damaged, "
            "download it again."
        )
    return Span(file, start, entry.size)


def blocks(stream: Forward) -> Iterator[bytes]:
    """Everything that is left of a stream, in blocks."""
    while stream.at < stream.size:
        yield stream.read(min(BLOCK, stream.size - stream.at))


def _cut(at: int, size: int) -> AdapterFileError:
    return AdapterFileError(f"Truncated: it ends after {at} of {size} bytes; download it again.")
