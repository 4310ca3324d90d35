"""A reader of torch's `data.pkl` that executes nothing; `headers` calls it.

`pickle_machine` runs the instructions; this gives them torch's meaning. Of globals it knows the names in `ALLOWED`, any
other is refused by name. Tensor records: PyTorch `torch._utils._rebuild_tensor_v2`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

from .errors import AdapterFileError
from .pickle_machine import OPAQUE, PickleMachine
from .printable import shown
from .spec import TensorInfo
from .tensor_records import FIRST_PLACE, MAX_RECORD, PLACES, PLACES_UNIT, RECORD, Parts, places_from, read_parts

MAX_NODES = 100_000
MAX_NAME = 500
MAX_DEPTH = 12
MAX_DIMENSIONS = 8
MAX_COUNT = 1 << 48  # elements

STORAGES = {
    "torch.HalfStorage": ("F16", 2),
    "torch.FloatStorage": ("F32", 4),
    "torch.BFloat16Storage": ("BF16", 2),
    "torch.LongStorage": ("I64", 8),
}
# Only read where nothing is loaded afterwards (a checkpoint's base), never in a file that is to be used.
_MORE_STORAGES = {
    "torch.DoubleStorage": ("F64", 8),
    "torch.IntStorage": ("I32", 4),
    "torch.ByteStorage": ("U8", 1),
    "torch.CharStorage": ("I8", 1),
    "torch.ShortStorage": ("I16", 2),
    "torch.BoolStorage": ("BOOL", 1),
}
_ORDERED_DICT = "collections.OrderedDict"
_REBUILD = "torch._utils._rebuild_tensor_v2"
ALLOWED = (_ORDERED_DICT, _REBUILD, *STORAGES)


_WORD = struct.Struct("<I")

# Without the shape: a hostile value's repr can be far longer than the file.
_IMPOSSIBLE = "The pickle has a tensor of an impossible shape: the file is damaged."


@dataclass(slots=True)
class Storage:
    """A record of the zip that tensors are views of; `numel` counts elements of `width` bytes."""

    key: str
    dtype: str
    width: int
    numel: int


class _Global:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _Alike(NamedTuple):
    """What the records with the same parts have in common: all but the name, the storage's key and the places."""

    kind: Any
    device: Any
    dtype: str
    width: int
    numel: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    tensor: TensorInfo
    instructions: int


class _TorchReader(PickleMachine):
    """The machine with the few globals that `torch.save` writes for plain weights."""

    def __init__(self, data: bytes, *, lenient: bool) -> None:
        super().__init__(data, lenient=lenient)
        self.storages: dict[str, Storage] = {}
        self.described: dict[tuple[str, tuple[int, ...]], TensorInfo] = {}

    def find_global(self, name: str) -> None:
        if name not in ALLOWED and not self.lenient:
            raise AdapterFileError(
                f"The pickle asks for {shown(name)}, which weights do not need and which could run code: refused. "
                "Use the .safetensors version, or re-save the file as safetensors from a source you trust."
            )
        self.stack.append(_Global(name))

    def call(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, _Global) else ""
        if name == _REBUILD:
            return self.tensor(arguments)
        if name == _ORDERED_DICT:
            # No published file gives it items here, so an argument is not worth a meaning.
            return {}
        if self.lenient:
            return OPAQUE
        raise AdapterFileError(f"The pickle calls {name or 'something that is not a function'}: refused.")

    def persistent(self, record: Any) -> Any:
        if not isinstance(record, tuple) or len(record) != 5 or record[0] != "storage":
            raise AdapterFileError("The pickle refers to something that is not a tensor storage: refused.")
        _, kind, key, _, numel = record
        known = STORAGES.get(kind.name) or _MORE_STORAGES.get(kind.name) if isinstance(kind, _Global) else None
        if known is None:
            if self.lenient and isinstance(kind, _Global):
                return OPAQUE
            raise AdapterFileError("The pickle has a tensor storage of an unknown type: refused.")
        if not isinstance(key, str) or type(numel) is not int or not 0 <= numel < MAX_COUNT:
            raise AdapterFileError("The pickle has a tensor storage of an impossible length: the file is damaged.")
        return self.storage(key, known[0], known[1], numel)

    def storage(self, key: str, dtype: str, width: int, numel: int) -> Storage:
        """The storage of this key. Raises: AdapterFileError when it was another before."""
        storage = self.storages.get(key)
        if storage is None:
            storage = self.storages[key] = Storage(key, dtype, width, numel)
        elif storage.dtype != dtype or storage.numel != numel:
            raise AdapterFileError(f"The pickle describes the storage '{shown(key)}' in two ways: the file is damaged.")
        return storage

    def tensor(self, arguments: Any) -> Any:
        """Describe a tensor from `(storage, offset, size, stride, requires_grad, hooks[, metadata])`."""
        if not isinstance(arguments, tuple) or len(arguments) not in (6, 7):
            raise AdapterFileError(
                "The pickle rebuilds a tensor from the wrong number of arguments: the file is damaged."
            )
        storage, offset, size, stride = arguments[:4]
        if storage is OPAQUE:
            return OPAQUE
        if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise AdapterFileError("The pickle rebuilds a tensor from something that is not a storage: refused.")
        _check_extent(storage, offset, size, stride)
        # A file has few shapes and many tensors; sizes are plain numbers by now, so that hashing them is safe.
        described = self.described.get((storage.dtype, size))
        if described is None:
            described = self.described[storage.dtype, size] = TensorInfo(storage.dtype, size)
        return described

    # -- many tensors
    def run_records(self, limit: int) -> int:
        """Run the tensors' records that begin here, behind a first name on the stack, in one step each.

        Their places in the memo follow each other, and they ask for none of these: what records with the same parts
        ask for is the same object each time.
        """
        data, end, at, stack, word = self.data, self.end, self.at, self.stack, _WORD.unpack_from
        first = place = word(data, at + 1)[0]
        if first < FIRST_PLACE:
            return 0
        expected, expected_step = places_from(first), PLACES * PLACES_UNIT
        match, join, number, decode = RECORD.match, b"".join, int.from_bytes, bytes.decode
        alike: dict[Parts, _Alike | None] = {}
        made: list[Any] = []
        ran = 0
        while ran + MAX_RECORD <= limit:
            found = match(data, at, end)
            if found is None:
                break
            p0, head, length, digits, p1, counted, p2, placed, p3, strides, p4, hooks, p5, p6, p7 = found.groups()
            if number(join((p0, p1, p2, p3, p4, p5, p6, p7)), "little") != expected or length[0] != len(digits):
                break
            key = decode(digits)
            parts = (head, counted, placed, strides, hooks)
            common = alike.get(parts)
            if common is None:
                common = alike[parts] = self.understand(parts, key, first)
                if common is None:
                    break
            kind, device, dtype, width, numel, offset, size, stride, tensor, instructions = common
            storage = self.storage(key, dtype, width, numel)
            backward: dict[Any, Any] = {}
            made += (
                stack[-1], key, ("storage", kind, key, device, numel), size, stride, backward,
                (storage, offset, size, stride, False, backward), tensor,
            )  # fmt: skip
            stack.append(tensor)
            place += PLACES
            expected += expected_step
            ran += instructions
            at = found.end()
            start = at + 5
            stop = start + word(data, at + 1)[0]
            if data[at] != 0x58 or stop > end:
                ran -= 1  # the next one's name, which is not there
                break
            stack.append(decode(data[start:stop], "utf-8", "replace"))
            at = stop
        self.memo.update(zip(range(first, place), made, strict=True))
        self.at = at
        return ran

    def understand(self, parts: Parts, key: str, first: int) -> _Alike | None:
        """Check what records of these parts have in common, on one of them; None leaves it to the single instructions.

        `first` is the place from which on the memo is about to change. Raises: AdapterFileError, as they would.
        """
        told = read_parts(parts)
        if told is None or told.kind >= first:
            return None
        try:
            function, word, kind, device, hooks = (self.memo[place] for place in told[:5])
        except KeyError:
            return None
        if not _is_global(function, _REBUILD) or not _is_global(hooks, _ORDERED_DICT):
            return None
        storage = self.persistent((word, kind, key, device, told.numel))
        if not isinstance(storage, Storage):
            return None
        tensor = self.tensor((storage, told.offset, told.size, told.stride, False, {}))
        return _Alike(
            kind, device, storage.dtype, storage.width, told.numel, told.offset, told.size, told.stride, tensor,
            told.instructions,
        )  # fmt: skip


def _is_global(value: Any, name: str) -> bool:
    return isinstance(value, _Global) and value.name == name


def _check_extent(storage: Storage, offset: Any, size: tuple[Any, ...], stride: tuple[Any, ...]) -> None:
    """Check that a view consists of plain numbers and stays inside its storage."""
    if len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise AdapterFileError(_IMPOSSIBLE)
    if type(offset) is not int or not 0 <= offset < MAX_COUNT:
        raise AdapterFileError(_IMPOSSIBLE)
    last, count = offset, 1
    for extent, step in zip(size, stride, strict=True):
        if type(extent) is not int or type(step) is not int:
            raise AdapterFileError(_IMPOSSIBLE)
        if not 0 <= extent < MAX_COUNT or not 0 <= step < MAX_COUNT:
            raise AdapterFileError(_IMPOSSIBLE)
        last += (extent - 1) * step
        count *= extent
    if count and (last >= storage.numel or count > storage.numel):
        raise AdapterFileError(
            f"A tensor of shape {list(size)} reaches element {last} of a storage of {storage.numel}: "
            "the file is damaged, download it again."
        )


def read_pickle(data: bytes, *, lenient: bool = False) -> tuple[dict[str, TensorInfo], dict[str, Storage]]:
    """Describe the tensors of a torch zip's `data.pkl`: `(flat name -> tensor, storage key -> storage)`.

    Nested dicts are flattened with dots. Nothing is imported or called. `lenient` keeps reading past globals that
    are not in `ALLOWED`, as opaque values: for looking at a checkpoint that is not going to be loaded here.
    Raises: AdapterFileError for anything `torch.save` does not write for plain weights; EOFError when it is cut off.
    """
    reader = _TorchReader(data, lenient=lenient)
    try:
        top = reader.run()
    except EOFError:
        raise
    except (IndexError, KeyError, TypeError, AttributeError, struct.error, ValueError) as error:
        raise AdapterFileError("The pickle's instructions make no sense: the file is damaged.") from error
    return _flatten(top), reader.storages


def _flatten(top: Any) -> dict[str, TensorInfo]:
    flat: dict[str, TensorInfo] = {}
    pending: list[tuple[str, Any, int]] = [("", top, 0)]
    nodes = 0
    while pending:
        prefix, node, depth = pending.pop()
        if not isinstance(node, dict):
            continue
        if depth > MAX_DEPTH:
            raise AdapterFileError(f"The pickle nests dicts more than {MAX_DEPTH} deep: refused.")
        for key, value in node.items():
            nodes += 1
            if nodes > MAX_NODES:
                raise AdapterFileError(f"The pickle holds more than {MAX_NODES} entries: refused.")
            name = f"{prefix}{key}"
            if len(name) > MAX_NAME:
                raise AdapterFileError(f"The pickle has a tensor name of more than {MAX_NAME} characters: refused.")
            if isinstance(value, TensorInfo):
                if name in flat:
                    raise AdapterFileError(f"The pickle names the tensor {shown(name)} twice: the file is damaged.")
                flat[name] = value
            elif isinstance(value, dict):
                pending.append((name + ".", value, depth + 1))
    return flat
