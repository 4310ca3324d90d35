"""A stack machine for pickle instructions that builds plain containers only; `pickles` gives it torch's meaning.

Python's own unpickler is not used: besides calling what a file names, it can be made to allocate gigabytes by one memo
instruction and to overflow the C stack by hashing nested tuples. Here every instruction costs one step of a budget.
Instructions: CPython `pickletools`; those that `torch.save` never writes are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import repeat
from operator import length_hint
from typing import Any

from .errors import AdapterFileError

MAX_INSTRUCTIONS = 1_000_000
_CONSTANTS: dict[int, Any] = {0x29: (), 0x4E: None, 0x88: True, 0x89: False}


class OpaqueValue:
    """What an unknown global made, where reading goes on past it."""


OPAQUE = OpaqueValue()
_INT4, _SINT4, _INT8, _FLOAT8 = (struct.Struct(form) for form in ("<I", "<i", "<Q", ">d"))


class PickleMachine:
    """A stack machine for the instructions of protocol 2 that torch writes, and their later short forms.

    `lenient` turns what it would refuse into OPAQUE. Subclasses say what globals, calls and persistent ids mean.
    """

    def __init__(self, data: bytes, *, lenient: bool) -> None:
        # Padded, so that an operand cut off at the end reads zeros and the next step finds the end.
        self.data = data + bytes(8)
        self.end = len(data)
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.lenient = lenient

    def run(self) -> Any:  # noqa: PLR0912, PLR0915
        """Run to the end and give the object on top. Raises: EOFError when cut off, AdapterFileError.

        The instructions that make up a list of tensors are handled in the loop itself, the commonest first: a FaceID
        file has forty thousand of them, and a call for each would cost more than all the rest of reading it. Most of
        those run many at once in `run_records`, and count as many.
        """
        data, stack, marks, memo, end, at = self.data, self.stack, self.marks, self.memo, self.end, self.at
        push, pop, call, resolve = stack.append, stack.pop, self.call, self.persistent
        word, constants = _INT4.unpack_from, _CONSTANTS
        left = MAX_INSTRUCTIONS
        while left:
            steps, left = repeat(None, left), 0
            for _ in steps:
                code = data[at]
                at += 1
                if code == 0x72:  # LONG_BINPUT
                    memo[word(data, at)[0]] = stack[-1]
                    at += 4
                elif code == 0x68:  # BINGET
                    push(memo[data[at]])
                    at += 1
                elif code == 0x4B:  # BININT1
                    push(data[at])
                    at += 1
                elif code == 0x28:  # MARK
                    marks.append(len(stack))
                elif code == 0x58:  # BINUNICODE
                    start = at + 4
                    at = start + word(data, at)[0]
                    if at > end:
                        raise EOFError
                    push(data[start:at].decode("utf-8", "replace"))
                    if data[at] == 0x72:  # as behind a tensor's name
                        self.at = at
                        ran = self.run_records(length_hint(steps))
                        if ran:
                            at, left = self.at, length_hint(steps) - ran
                            break
                elif code == 0x74:  # TUPLE
                    mark = marks.pop()
                    items = tuple(stack[mark:])
                    del stack[mark:]
                    push(items)
                elif code == 0x52:  # REDUCE
                    arguments = pop()
                    stack[-1] = call(stack[-1], arguments)
                elif code == 0x86:  # TUPLE2
                    second = pop()
                    stack[-1] = (stack[-1], second)
                elif code == 0x4D:  # BININT2
                    push(data[at] | data[at + 1] << 8)
                    at += 2
                elif code == 0x51:  # BINPERSID
                    stack[-1] = resolve(stack[-1])
                elif code in constants:
                    push(constants[code])
                elif code == 0x4A:  # BININT
                    push(_SINT4.unpack_from(data, at)[0])
                    at += 4
                elif code == 0x2E:  # STOP
                    return pop()
                else:
                    self.at = at
                    self.step(code)
                    at = self.at
        raise AdapterFileError(
            f"The pickle runs past {MAX_INSTRUCTIONS} instructions, more than any list of weights: refused."
        )

    def step(self, code: int) -> None:
        """Run one of the rarer instructions, whose operands begin at `at`."""
        # Only the padding behind the end is reached here: operands are read from it, instructions are not.
        if self.at > self.end:
            raise EOFError
        handler = _HANDLERS[code]
        if handler is None:
            raise AdapterFileError(
                f"The pickle uses instruction 0x{code:02x}, which torch never writes for weights: "
                "refused, use the .safetensors version of the file."
            )
        handler(self)

    # -- reading operands
    def take(self, count: int) -> bytes:
        start = self.at
        self.at = stop = start + count
        if stop > self.end:
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
        if self.at > self.end:
            raise EOFError
        return form.unpack_from(self.data, start)[0]

    def text(self, count: int) -> None:
        self.stack.append(self.take(count).decode("utf-8", "replace"))

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    # -- meaning, by the subclass
    def find_global(self, name: str) -> None:
        """Push what the global `module.name` stands for. Raises: AdapterFileError when it is not allowed."""
        raise NotImplementedError

    def call(self, function: Any, arguments: Any) -> Any:
        """What calling a global gives."""
        raise NotImplementedError

    def persistent(self, record: Any) -> Any:
        """What a persistent id refers to."""
        raise NotImplementedError

    def run_records(self, limit: int) -> int:
        """Run instructions that are frequent together, at most `limit`, faster than one by one; return their number.

        Called at a LONG_BINPUT behind a text. Nothing but time may depend on which instructions are run here.
        """
        raise NotImplementedError

    # -- containers
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


def _pushes(make: Callable[[], Any]) -> Callable[[PickleMachine], None]:
    def handler(reader: PickleMachine) -> None:
        reader.stack.append(make())

    return handler


def _counted(form: struct.Struct) -> Callable[[PickleMachine], None]:
    def handler(reader: PickleMachine) -> None:
        reader.text(reader.number(form))

    return handler


def _tuple_of(count: int) -> Callable[[PickleMachine], None]:
    def handler(reader: PickleMachine) -> None:
        if len(reader.stack) < count:
            raise IndexError
        reader.stack[-count:] = [tuple(reader.stack[-count:])]

    return handler


def _new_object(reader: PickleMachine) -> None:
    arguments = reader.stack.pop()
    reader.stack[-1] = reader.call(reader.stack[-1], arguments)


def _binput(reader: PickleMachine) -> None:
    reader.memo[reader.byte()] = reader.stack[-1]


def _memoize(reader: PickleMachine) -> None:
    reader.memo[len(reader.memo)] = reader.stack[-1]


def _global(reader: PickleMachine) -> None:
    module = reader.line()
    reader.find_global(f"{module}.{reader.line()}")


def _stack_global(reader: PickleMachine) -> None:
    name, module = reader.stack.pop(), reader.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise TypeError
    reader.find_global(f"{module[:200]}.{name[:200]}")


def _long1(reader: PickleMachine) -> None:
    reader.stack.append(int.from_bytes(reader.take(reader.byte()), "little", signed=True))


def _mark_to_list(reader: PickleMachine) -> None:
    reader.stack.append(reader.since_mark())


def _mark_to_dict(reader: PickleMachine) -> None:
    made: dict[Any, Any] = {}
    reader.set_items(made, reader.since_mark())
    reader.stack.append(made)


def _setitem(reader: PickleMachine) -> None:
    value, key = reader.stack.pop(), reader.stack.pop()
    reader.set_items(reader.stack[-1], [key, value])


def _setitems(reader: PickleMachine) -> None:
    items = reader.since_mark()
    reader.set_items(reader.stack[-1], items)


def _append(reader: PickleMachine) -> None:
    item = reader.stack.pop()
    reader.append_items([item])


Handler = Callable[[PickleMachine], Any]
_HANDLERS: list[Handler | None] = [None] * 256
for _code, _handler in {
    0x80: lambda r: r.take(1),  # PROTO
    0x95: lambda r: r.take(8),  # FRAME
    0x30: lambda r: r.stack.pop(),
    0x31: lambda r: r.since_mark(),
    0x32: lambda r: r.stack.append(r.stack[-1]),
    0x6A: lambda r: r.stack.append(r.memo[r.number(_INT4)]),  # LONG_BINGET
    0x8A: _long1,
    0x47: lambda r: r.stack.append(r.number(_FLOAT8)),
    0x8C: lambda r: r.text(r.byte()),
    0x8D: _counted(_INT8),
    0x55: lambda r: r.text(r.byte()),  # SHORT_BINSTRING
    0x54: _counted(_INT4),
    0x43: lambda r: r.text(r.byte()),  # SHORT_BINBYTES
    0x42: _counted(_INT4),
    0x5D: _pushes(list),
    0x7D: _pushes(dict),
    0x6C: _mark_to_list,
    0x64: _mark_to_dict,
    0x85: _tuple_of(1),
    0x87: _tuple_of(3),
    0x61: _append,
    0x65: lambda r: r.append_items(r.since_mark()),
    0x73: _setitem,
    0x75: _setitems,
    0x63: _global,
    0x93: _stack_global,
    0x81: _new_object,
    0x62: PickleMachine.build,
    0x71: _binput,
    0x94: _memoize,
}.items():
    _HANDLERS[_code] = _handler
