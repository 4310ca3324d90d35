"""A reader of torch's `data.pkl` that executes nothing; `headers` calls it.

It interprets only the instructions that `torch.save` writes and builds only dicts, lists, tuples, numbers and
strings. Of globals it knows the names in `ALLOWED`; any other is refused by name. Python's own unpickler is not used:
it can be made to allocate gigabytes by one memo instruction and to overflow the C stack by hashing nested tuples.
Opcodes: CPython `pickletools`. Tensor records: PyTorch `torch._utils._rebuild_tensor_v2`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from .errors import AdapterFileError
from .spec import TensorInfo

MAX_INSTRUCTIONS = 1_000_000
MAX_NODES = 300_000
MAX_DEPTH = 12
MAX_DIMENSIONS = 8

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


@dataclass(frozen=True)
class Storage:
    """A record of the zip that tensors are views of; `numel` counts elements of `width` bytes."""

    key: str
    dtype: str
    width: int
    numel: int


@dataclass(frozen=True)
class PickledTensor:
    """One tensor as `_rebuild_tensor_v2` describes it."""

    info: TensorInfo
    storage: Storage


class _Global:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _Opaque:
    """What an unknown global made, in lenient reading."""


_MARK = object()
_OPAQUE = _Opaque()
_INT2, _INT4, _SINT4, _INT8, _FLOAT8 = (struct.Struct(f) for f in ("<H", "<I", "<i", "<Q", ">d"))


class _Reader:
    """A stack machine for the instructions of protocol 2 that torch writes, and their later short forms."""

    def __init__(self, data: bytes, *, lenient: bool) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.lenient = lenient
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        data, end = self.data, len(self.data)
        handlers = _HANDLERS
        for _ in range(MAX_INSTRUCTIONS):
            if self.at >= end:
                raise EOFError
            code = data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                return self.stack.pop()
            handler = handlers[code]
            if handler is None:
                raise AdapterFileError(
                    f"The pickle uses instruction 0x{code:02x}, which torch never writes for weights: "
                    "refused, use the .safetensors version of the file."
                )
            handler(self)
        raise AdapterFileError(
            f"The pickle runs past {MAX_INSTRUCTIONS} instructions, more than any list of weights: refused."
        )

    # -- reading operands
    def take(self, count: int) -> bytes:
        start = self.at
        self.at = stop = start + count
        if stop > len(self.data):
            raise EOFError
        return self.data[start:stop]

    def line(self) -> str:
        stop = self.data.find(b"\n", self.at, self.at + 512)
        if stop < 0:
            raise EOFError
        text = self.data[self.at : stop].decode("utf-8", "replace")
        self.at = stop + 1
        return text

    def number(self, form: struct.Struct) -> int:
        start = self.at
        self.at = start + form.size
        if self.at > len(self.data):
            raise EOFError
        return form.unpack_from(self.data, start)[0]

    def text(self, count: int) -> None:
        self.stack.append(self.take(count).decode("utf-8", "replace"))

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def since_mark(self) -> list[Any]:
        stack = self.stack
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise IndexError
        items = stack[at + 1 :]
        del stack[at:]
        return items

    # -- what torch builds
    def find_global(self, name: str) -> None:
        if name not in ALLOWED and not self.lenient:
            raise AdapterFileError(
                f"The pickle asks for {name}, which weights do not need and which could run code: refused. "
                "Use the .safetensors version, or re-save the file as safetensors from a source you trust."
            )
        self.stack.append(_Global(name))

    def reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        self.stack[-1] = self.call(function, arguments)

    def call(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, _Global) else ""
        if name == _REBUILD:
            return _tensor(arguments)
        if name == _ORDERED_DICT:
            # No published file gives it items here, so an argument is not worth a meaning.
            return {}
        if self.lenient:
            return _OPAQUE
        raise AdapterFileError(f"The pickle calls {name or 'something that is not a function'}: refused.")

    def persistent(self) -> None:
        record = self.stack[-1]
        if not isinstance(record, tuple) or len(record) != 5 or record[0] != "storage":
            raise AdapterFileError("The pickle refers to something that is not a tensor storage: refused.")
        _, kind, key, _, numel = record
        known = STORAGES.get(kind.name) or _MORE_STORAGES.get(kind.name) if isinstance(kind, _Global) else None
        if known is None:
            if self.lenient and isinstance(kind, _Global):
                self.stack[-1] = _OPAQUE
                return
            raise AdapterFileError("The pickle has a tensor storage of an unknown type: refused.")
        if not isinstance(key, str) or not _is_count(numel):
            raise AdapterFileError(f"The pickle has a tensor storage of {numel!r} elements: the file is damaged.")
        storage = self.storages.get(key)
        if storage is None:
            storage = self.storages[key] = Storage(key, known[0], known[1], numel)
        elif (storage.dtype, storage.numel) != (known[0], numel):
            raise AdapterFileError(f"The pickle describes the storage {key!r} in two ways: the file is damaged.")
        self.stack[-1] = storage

    def set_items(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict):
            if self.lenient:
                return
            raise AdapterFileError("The pickle sets items on something that is not a dict: refused.")
        if len(items) % 2:
            raise IndexError
        for at in range(0, len(items), 2):
            key = items[at]
            if not isinstance(key, (str, int)):
                if self.lenient:
                    continue
                raise AdapterFileError("The pickle has a dict key that is neither text nor number: refused.")
            target[key] = items[at + 1]

    def append_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not self.lenient:
            raise AdapterFileError("The pickle appends to something that is not a list: refused.")

    def build(self) -> None:
        """Drop the attributes torch attaches (a state dict's `_metadata`): no object here has any."""
        self.stack.pop()
        if not self.lenient and not isinstance(self.stack[-1], dict):
            raise AdapterFileError("The pickle sets attributes on something that is not a dict: refused.")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _tensor(arguments: Any) -> Any:
    """Describe a tensor from `(storage, offset, size, stride, requires_grad, hooks[, metadata])`."""
    if not isinstance(arguments, tuple) or len(arguments) not in (6, 7):
        raise AdapterFileError("The pickle rebuilds a tensor from the wrong number of arguments: the file is damaged.")
    storage, offset, size, stride = arguments[:4]
    if storage is _OPAQUE:
        return _OPAQUE
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise AdapterFileError("The pickle rebuilds a tensor from something that is not a storage: refused.")
    if len(size) != len(stride) or len(size) > MAX_DIMENSIONS or not all(map(_is_count, (offset, *size, *stride))):
        raise AdapterFileError(f"The pickle has a tensor of shape {_short(size)}: the file is damaged.")
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.numel:
        raise AdapterFileError(
            f"A tensor of shape {_short(size)} reaches element {last} of a storage of {storage.numel}: "
            "the file is damaged, download it again."
        )
    return PickledTensor(TensorInfo(storage.dtype, size), storage)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def _pushes(make: Any) -> Any:
    def handler(reader: _Reader) -> None:
        reader.stack.append(make())

    return handler


def _counted(form: struct.Struct) -> Any:
    def handler(reader: _Reader) -> None:
        reader.text(reader.number(form))

    return handler


def _tuple_of(count: int) -> Any:
    def handler(reader: _Reader) -> None:
        if len(reader.stack) < count:
            raise IndexError
        reader.stack[-count:] = [tuple(reader.stack[-count:])]

    return handler


def _binput(reader: _Reader) -> None:
    reader.memo[reader.byte()] = reader.stack[-1]


def _long_binput(reader: _Reader) -> None:
    reader.memo[reader.number(_INT4)] = reader.stack[-1]


def _memoize(reader: _Reader) -> None:
    reader.memo[len(reader.memo)] = reader.stack[-1]


def _binget(reader: _Reader) -> None:
    reader.stack.append(reader.memo[reader.byte()])


def _long_binget(reader: _Reader) -> None:
    reader.stack.append(reader.memo[reader.number(_INT4)])


def _global(reader: _Reader) -> None:
    module = reader.line()
    reader.find_global(f"{module}.{reader.line()}")


def _stack_global(reader: _Reader) -> None:
    name, module = reader.stack.pop(), reader.stack.pop()
    reader.find_global(f"{_short(module) if not isinstance(module, str) else module}.{name!s:.200}")


def _long1(reader: _Reader) -> None:
    reader.stack.append(int.from_bytes(reader.take(reader.byte()), "little", signed=True))


def _mark_to_tuple(reader: _Reader) -> None:
    reader.stack.append(tuple(reader.since_mark()))


def _mark_to_list(reader: _Reader) -> None:
    reader.stack.append(reader.since_mark())


def _mark_to_dict(reader: _Reader) -> None:
    made: dict[Any, Any] = {}
    reader.set_items(made, reader.since_mark())
    reader.stack.append(made)


def _setitem(reader: _Reader) -> None:
    value, key = reader.stack.pop(), reader.stack.pop()
    reader.set_items(reader.stack[-1], [key, value])


def _setitems(reader: _Reader) -> None:
    items = reader.since_mark()
    reader.set_items(reader.stack[-1], items)


def _append(reader: _Reader) -> None:
    item = reader.stack.pop()
    reader.append_items([item])


_HANDLERS: list[Any] = [None] * 256
for _code, _handler in {
    0x80: lambda r: r.take(1),  # PROTO
    0x95: lambda r: r.take(8),  # FRAME
    0x28: lambda r: r.stack.append(_MARK),
    0x30: lambda r: r.stack.pop(),
    0x31: lambda r: r.since_mark(),
    0x32: lambda r: r.stack.append(r.stack[-1]),
    0x4A: lambda r: r.stack.append(r.number(_SINT4)),
    0x4B: lambda r: r.stack.append(r.byte()),
    0x4D: lambda r: r.stack.append(r.number(_INT2)),
    0x8A: _long1,
    0x47: lambda r: r.stack.append(r.number(_FLOAT8)),
    0x4E: _pushes(lambda: None),
    0x88: _pushes(lambda: True),
    0x89: _pushes(lambda: False),
    0x58: _counted(_INT4),  # BINUNICODE
    0x8C: lambda r: r.text(r.byte()),
    0x8D: _counted(_INT8),
    0x55: lambda r: r.text(r.byte()),  # SHORT_BINSTRING
    0x54: _counted(_INT4),
    0x43: lambda r: r.text(r.byte()),  # SHORT_BINBYTES
    0x42: _counted(_INT4),
    0x29: _pushes(tuple),
    0x5D: _pushes(list),
    0x7D: _pushes(dict),
    0x74: _mark_to_tuple,
    0x6C: _mark_to_list,
    0x64: _mark_to_dict,
    0x85: _tuple_of(1),
    0x86: _tuple_of(2),
    0x87: _tuple_of(3),
    0x61: _append,
    0x65: lambda r: r.append_items(r.since_mark()),
    0x73: _setitem,
    0x75: _setitems,
    0x63: _global,
    0x93: _stack_global,
    0x52: _Reader.reduce,
    0x81: _Reader.reduce,  # NEWOBJ
    0x62: _Reader.build,
    0x51: _Reader.persistent,
    0x71: _binput,
    0x72: _long_binput,
    0x94: _memoize,
    0x68: _binget,
    0x6A: _long_binget,
}.items():
    _HANDLERS[_code] = _handler


def read_pickle(data: bytes, *, lenient: bool = False) -> tuple[dict[str, PickledTensor], dict[str, Storage]]:
    """Describe the tensors of a torch zip's `data.pkl`: `(flat name -> tensor, storage key -> storage)`.

    Nested dicts are flattened with dots. Nothing is imported or called. `lenient` keeps reading past globals that
    are not in `ALLOWED`, as opaque values: for looking at a checkpoint that is not going to be loaded here.
    Raises: AdapterFileError for anything `torch.save` does not write for plain weights; EOFError when it is cut off.
    """
    reader = _Reader(data, lenient=lenient)
    try:
        top = reader.run()
    except EOFError:
        raise
    except (IndexError, KeyError, TypeError, AttributeError, struct.error, ValueError) as error:
        raise AdapterFileError("The pickle's instructions make no sense: the file is damaged.") from error
    return _flatten(top), reader.storages


def _flatten(top: Any) -> dict[str, PickledTensor]:
    flat: dict[str, PickledTensor] = {}
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
            if len(name) > 1000:
                raise AdapterFileError("The pickle has a tensor name of more than 1000 characters: refused.")
            if isinstance(value, PickledTensor):
                if name in flat:
                    raise AdapterFileError(f"The pickle names the tensor {name} twice: the file is damaged.")
                flat[name] = value
            elif isinstance(value, dict):
                pending.append((name + ".", value, depth + 1))
    return flat
