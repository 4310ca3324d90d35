"""The directory of a zip file, read without unpacking anything; `headers` finds a torch file's pickle with it.

Hand-written rather than `zipfile` because a hostile or huge directory must be refused before it is read, and
because a torch file with a thousand records is listed ten times faster this way. Format: PKWARE APPNOTE 6.3.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import BinaryIO, NamedTuple

from .errors import AdapterFileError
from .printable import shown

LOCAL_MAGIC = b"PK\x03\x04"
MAX_DIRECTORY_BYTES = 32 << 20
MAX_ENTRIES = 200_000
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
# magic, method, crc, packed and full size, lengths of name, extra and comment, offset; what is not read is skipped
_CENTRAL = struct.Struct("<4s6xH4x3L3H8xL")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


class Entry(NamedTuple):
    """One record of a zip: where its local header starts, its sizes in bytes, method (0 stored, 8 deflated)."""

    name: str
    offset: int
    size: int
    packed: int
    method: int
    crc: int


def read_directory(file: BinaryIO, total: int) -> list[Entry] | None:
    """List a zip's records; None when the directory at the end is missing, as in a cut-off download.

    Raises: AdapterFileError when the directory contradicts itself or is absurdly large.
    """
    tail_at = max(0, total - (_END.size + _FULL16))
    file.seek(tail_at)
    tail = file.read(_END.size + _FULL16)
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or found + _END.size > len(tail):
        return None
    fields = _END.unpack_from(tail, found)
    count, length, start = fields[4], fields[5], fields[6]
    wide = _wide_end(file, tail_at + found, total)
    if wide is not None:
        count, length, start = wide
    if length > MAX_DIRECTORY_BYTES or count > MAX_ENTRIES:
        raise AdapterFileError(
            f"The zip lists {count} records in {length} bytes, more than any model file; download it again."
        )
    if start + length > tail_at + found:
        raise AdapterFileError(
            f"The zip's directory should span bytes {start} to {start + length} of a file of {total}: "
            "the file is damaged, download it again."
        )
    file.seek(start)
    return _entries(file.read(length), count)


def _wide_end(file: BinaryIO, end_at: int, total: int) -> tuple[int, int, int] | None:
    """Read the zip64 end record when there is one (torch always writes it)."""
    if end_at < _END64_LOCATOR.size:
        return None
    file.seek(end_at - _END64_LOCATOR.size)
    magic, _, offset, _ = _END64_LOCATOR.unpack(file.read(_END64_LOCATOR.size))
    if magic != b"PK\x06\x07" or offset + _END64.size > total:
        return None
    file.seek(offset)
    record = _END64.unpack(file.read(_END64.size))
    if record[0] != b"PK\x06\x06":
        return None
    return record[7], record[8], record[9]


def _entries(directory: bytes, count: int) -> list[Entry]:
    entries: list[Entry] = []
    at, last = 0, len(directory) - _CENTRAL.size
    for _ in range(count):
        if at > last:
            break
        magic, method, crc, packed, size, name_len, extra_len, comment_len, offset = _CENTRAL.unpack_from(directory, at)
        if magic != b"PK\x01\x02":
            break
        start = at + _CENTRAL.size
        stop = start + name_len
        at = stop + extra_len + comment_len
        name = directory[start:stop].decode("utf-8", "replace")
        if _FULL32 in (size, packed, offset):
            size, packed, offset = _wide_sizes(directory[stop : stop + extra_len], size, packed, offset)
        entries.append(Entry(name, offset, size, packed, method, crc))
    if len(entries) != count:
        raise AdapterFileError(
            f"The zip's directory names {count} records but holds {len(entries)}: the file is damaged, "
            "download it again."
        )
    return entries


def _wide_sizes(extra: bytes, *values: int) -> tuple[int, int, int]:
    """Take the 64-bit size, packed size and offset from the extra field, in that order, where 32 bits overflow."""
    at = 0
    wide: list[int] = []
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        if tag == 1:
            whole = min(length, len(extra) - at - 4) // 8
            wide = list(struct.unpack_from(f"<{whole}Q", extra, at + 4))
            break
        at += 4 + length
    rest = iter(wide)
    size, packed, offset = (next(rest, value) if value == _FULL32 else value for value in values)
    return size, packed, offset


def data_start(file: BinaryIO, offset: int) -> tuple[str, int]:
    """Where a record's bytes begin: `(name, position)` from its local header.

    Raises: AdapterFileError when there is no local header at `offset`.
    """
    raw = b""
    if offset < file.seek(0, os.SEEK_END):  # a position of 2**63 or more cannot even be sought
        file.seek(offset)
        raw = file.read(_LOCAL.size)
    if len(raw) < _LOCAL.size or not raw.startswith(LOCAL_MAGIC):
        raise AdapterFileError(f"The zip has no record at byte {offset}: the file is damaged, download it again.")
    record = _LOCAL.unpack(raw)
    name = file.read(record[9]).decode("utf-8", "replace")
    return name, offset + _LOCAL.size + record[9] + record[10]


def first_name(file: BinaryIO) -> str:
    """The name of the record that a zip starts with, "" when it is cut off there."""
    try:
        return data_start(file, 0)[0]
    except AdapterFileError:
        return ""


def read_entry(file: BinaryIO, entry: Entry, limit: int) -> bytes:
    """Read one whole record of at most `limit` bytes, checked against its CRC.

    Raises: AdapterFileError when it is larger, cut off, packed in an unknown way or does not match its checksum.
    """
    what = shown(entry.name)
    if max(entry.size, entry.packed) > limit:
        raise AdapterFileError(
            f"{what} in the zip is {entry.size} bytes, more than the {limit} a list of tensors can need."
        )
    _, start = data_start(file, entry.offset)
    file.seek(start)
    raw = file.read(entry.packed)
    if entry.method == 8:
        try:
            raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, limit)
        except zlib.error as error:
            raise AdapterFileError(f"{what} in the zip does not unpack: the file is damaged.") from error
    elif entry.method != 0:
        raise AdapterFileError(f"{what} in the zip is packed with method {entry.method}, which torch never uses.")
    if len(raw) != entry.size or zlib.crc32(raw) != entry.crc:
        raise AdapterFileError(
            f"{what} in the zip does not match its checksum ({len(raw)} of {entry.size} bytes): "
            "the file is damaged, download it again."
        )
    return raw
