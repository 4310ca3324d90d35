"""What goes into an ONNX model and what comes out: names, types and shapes, without reading its weights.

`face_models` tells detectors and recognisers of faces by it. The graph's inputs and outputs stand behind its weights,
so the file is walked field by field and the weights are skipped: a few KB of 260 MB are read. Time and memory are
bounded whatever the file says of itself. Formats: onnx/onnx onnx.proto (ModelProto, GraphProto, TensorProto,
ValueInfoProto), protobuf's wire format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .errors import AdapterFileError
from .headers import refuse_foreign
from .printable import shown
from .streams import Forward

MAX_FIELDS = 50_000
MAX_BYTES = 16 << 20
"""Of names and numbers, not of weights; a face model has 2,000 fields in 100 KB."""
MAX_NAME = 4096
MAX_VALUES = 10_000
MAX_DIMENSIONS = 32
_VARINT, _MESSAGE = 0, 2
_WIRES = {_VARINT: 0, 1: 8, _MESSAGE: 0, 5: 4}
"""How a field can be written, and how many bytes that takes where it says nothing of it itself."""
# A field's number and how it is written, as they stand before it.
_IR_VERSION, _PRODUCER, _GRAPH, _OPERATOR_SET = 1 << 3, 2 << 3 | _MESSAGE, 7 << 3 | _MESSAGE, 8 << 3 | _MESSAGE
_WEIGHT, _INPUT, _OUTPUT = 5 << 3 | _MESSAGE, 11 << 3 | _MESSAGE, 12 << 3 | _MESSAGE
_WEIGHT_NAME, _WEIGHT_LOCATION = 8 << 3 | _MESSAGE, 14 << 3
_NAME, _TYPE = 1 << 3 | _MESSAGE, 2 << 3 | _MESSAGE
_TENSOR, _ELEMENT, _SHAPE = 1 << 3 | _MESSAGE, 1 << 3, 2 << 3 | _MESSAGE
_DIMENSION, _EXTENT, _SYMBOL = 1 << 3 | _MESSAGE, 1 << 3, 2 << 3 | _MESSAGE
_ELEMENTS = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64", 16: "bfloat16"}
_EXTERNAL = 1
_CHUNK = 512
"""Read at once: small, since between two weights' descriptions lie the weights, which are skipped."""
_WORD = (1 << 64) - 1

FaceRole = Literal["detector", "recogniser", ""]


@dataclass(frozen=True)
class OnnxValue:
    """One input or output. A dimension is a number, a symbol's name, or "" where nothing is said of it; `shape` is
    None where there is none. `element` is float32, float16, int64, ..., "" for what is not a tensor.
    """

    name: str
    element: str
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True)
class OnnxHeader:
    """A model's signature. `external`: weights lie in another file beside it. `inputs` are what a caller must give:
    old files list their weights among them, these are left out.
    """

    ir_version: int
    producer: str
    inputs: tuple[OnnxValue, ...]
    outputs: tuple[OnnxValue, ...]
    external: bool


def read_onnx_header(stream: Forward) -> OnnxHeader:
    """Read the signature of the ONNX model in a stream that stands at its start.

    Raises: AdapterFileError, one sentence, for an empty, cut off, damaged, hostile or foreign file.
    """
    start = stream.read(min(_CHUNK, stream.size))
    refuse_foreign(start, stream.size)
    if start[0] != _IR_VERSION:  # every writer puts it first
        raise AdapterFileError(f"Not an ONNX model: it starts with '{shown(start[:24].decode('latin-1'))}'.")
    return _Walk(stream, start).model()


def face_role(header: OnnxHeader) -> FaceRole:
    """Tell a face detector with keypoints and a face recogniser from every other model.

    Detector: SCRFD, `(1, 3, any, any)` to three outputs each of scores, boxes and keypoints, 1, 4 and 10 wide.
    Recogniser: ArcFace, a square picture of at least 112 and a multiple of 16 to 512 numbers. Source: insightface
    model_zoo/model_zoo.py, get_model, which asks less.
    """
    if len(header.inputs) != 1 or header.inputs[0].element != "float32":
        return ""
    shape = header.inputs[0].shape
    if shape is None or len(shape) != 4 or shape[1] != 3:
        return ""
    height, width = shape[2:]
    last = [output.shape[-1] if output.shape else "" for output in header.outputs]
    if len(last) == 9:
        pairs = zip(last, (1, 1, 1, 4, 4, 4, 10, 10, 10), strict=True)
        fits = all(isinstance(found, str) or found == expected for found, expected in pairs)
        any_size = isinstance(height, str) and isinstance(width, str)
        return "detector" if fits and any_size and (shape[0] == 1 or isinstance(shape[0], str)) else ""
    square = isinstance(height, int) and height == width and height >= 112 and height % 16 == 0
    return "recogniser" if square and last == [512] else ""


class _Walk:
    """One pass over a model's fields, with what has been read of `MAX_BYTES` and `MAX_FIELDS`."""

    def __init__(self, stream: Forward, start: bytes) -> None:
        self._stream = stream
        self._chunk, self._from, self._next = start, 0, len(start)  # what was read, where in it, where it ends
        self._fields_left, self._bytes_left = MAX_FIELDS, MAX_BYTES
        self._weights: set[str] = set()
        self._external = False

    # -- bytes and fields

    @property
    def _at(self) -> int:
        return self._next - len(self._chunk) + self._from

    def _fill(self, count: int) -> None:
        """Have `count` bytes at hand, or as many as there are."""
        missing = count - (len(self._chunk) - self._from)
        if missing <= 0:
            return
        more = min(max(missing, _CHUNK), self._stream.size - self._next)
        self._bytes_left -= more
        if self._bytes_left < 0:
            raise AdapterFileError(
                f"The ONNX model has more than {MAX_BYTES} bytes of names and numbers beside its weights: refused."
            )
        self._chunk, self._from = self._chunk[self._from :] + self._stream.read(more), 0
        self._next += more

    def _skip_to(self, stop: int) -> None:
        if stop <= self._next:
            self._from += stop - self._at
        else:
            self._stream.skip(stop - self._next)
            self._chunk, self._from, self._next = b"", 0, stop

    def _number(self) -> int:
        """A varint of up to 64 bits."""
        self._fill(10)
        value = 0
        for place, byte in enumerate(self._chunk[self._from : self._from + 10]):
            value |= (byte & 127) << (7 * place)
            if byte < 128:
                self._from += place + 1
                return value & _WORD
        if len(self._chunk) - self._from < 10:
            raise AdapterFileError(f"Truncated: the ONNX model breaks off after {self._stream.size} bytes.")
        raise _damaged(f"a number at byte {self._at} has no end")

    def _fields(self, end: int) -> Iterator[tuple[int, int]]:
        """(tag, value or end) of each field up to `end`; what a caller leaves of a message is skipped."""
        while self._at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise AdapterFileError(f"The ONNX model has more than {MAX_FIELDS} fields: refused.")
            tag = self._number()
            wire = tag & 7
            if tag >> 3 == 0 or wire not in _WIRES:
                raise _damaged(f"byte {self._at} begins a field that protobuf does not have")
            if wire == _VARINT:
                yield tag, self._number()
                continue
            length = self._number() if wire == _MESSAGE else _WIRES[wire]
            stop = self._at + length
            if stop > self._stream.size:
                raise AdapterFileError(
                    f"Truncated: the ONNX model should reach byte {stop} at least and has {self._stream.size}; "
                    "download it again."
                )
            if stop > end:
                raise _damaged(f"a field at byte {self._at} reaches over the end of what it is in")
            if wire == _MESSAGE:
                yield tag, stop
            self._skip_to(stop)
        if self._at != end:
            raise _damaged(f"a number at byte {self._at} reaches over the end of what it is in")

    def _text(self, stop: int) -> str:
        if stop - self._at > MAX_NAME:
            raise AdapterFileError(f"The ONNX model has a name of {stop - self._at} bytes: refused.")
        length = stop - self._at
        self._fill(length)
        self._from += length
        return self._chunk[self._from - length : self._from].decode("utf-8", "replace")

    # -- messages

    def model(self) -> OnnxHeader:
        """ModelProto: ir_version 1, producer_name 2, graph 7, opset_import 8."""
        version, producer, opsets = 0, "", 0
        inputs: list[OnnxValue] = []
        outputs: list[OnnxValue] = []
        for tag, value in self._fields(self._stream.size):
            if tag == _IR_VERSION:
                version = value
            elif tag == _PRODUCER:
                producer = shown(self._text(value))
            elif tag == _GRAPH:
                self._graph(value, inputs, outputs)
            elif tag == _OPERATOR_SET:
                opsets += 1
        if not (0 < version < 1000 and inputs and outputs):
            raise AdapterFileError(
                f"Not an ONNX model: {self._stream.size} bytes without a graph that has inputs and outputs."
            )
        if not opsets:
            raise AdapterFileError(
                f"Truncated: the ONNX model's list of operator sets, which stands behind its graph, is missing in its "
                f"{self._stream.size} bytes; download it again."
            )
        needed = tuple(value for value in inputs if value.name not in self._weights)
        return OnnxHeader(version, producer, needed, tuple(outputs), self._external)

    def _graph(self, end: int, inputs: list[OnnxValue], outputs: list[OnnxValue]) -> None:
        """GraphProto: initializer 5, input 11, output 12."""
        for tag, value in self._fields(end):
            if tag == _WEIGHT:
                self._weight(value)
            elif tag == _INPUT:
                inputs.append(self._value(value))
            elif tag == _OUTPUT:
                outputs.append(self._value(value))
            if len(inputs) + len(outputs) > MAX_VALUES:
                raise AdapterFileError(f"The ONNX model has more than {MAX_VALUES} inputs and outputs: refused.")

    def _weight(self, end: int) -> None:
        """TensorProto: name 8, data_location 14."""
        for tag, value in self._fields(end):
            if tag == _WEIGHT_NAME:
                self._weights.add(self._text(value))
            elif tag == _WEIGHT_LOCATION and value == _EXTERNAL:
                self._external = True

    def _value(self, end: int) -> OnnxValue:
        """ValueInfoProto: name 1, type 2; TypeProto: tensor_type 1; its elem_type 1, shape 2."""
        name, element = "", ""
        shape: tuple[int | str, ...] | None = None
        for tag, value in self._fields(end):
            if tag == _NAME:
                name = self._text(value)
            elif tag == _TYPE:
                for kind, inner in self._fields(value):
                    if kind == _TENSOR:
                        element, shape = self._tensor(inner)
        return OnnxValue(name, element, shape)

    def _tensor(self, end: int) -> tuple[str, tuple[int | str, ...] | None]:
        element = ""
        shape: tuple[int | str, ...] | None = None
        for tag, value in self._fields(end):
            if tag == _ELEMENT:
                element = _ELEMENTS.get(value, f"type {value}")
            elif tag == _SHAPE:
                shape = self._shape(value)
        return element, shape

    def _shape(self, end: int) -> tuple[int | str, ...]:
        """TensorShapeProto: dim 1, each a dim_value 1 or a dim_param 2."""
        dims: list[int | str] = []
        for tag, value in self._fields(end):
            if tag != _DIMENSION:
                continue
            if len(dims) == MAX_DIMENSIONS:
                raise _damaged(f"a shape has more than {MAX_DIMENSIONS} dimensions")
            found: int | str = ""
            for kind, inner in self._fields(value):
                if kind == _EXTENT:
                    found = inner - (1 << 64) if inner >> 63 else inner
                elif kind == _SYMBOL:
                    found = self._text(inner)
            dims.append(found)
        return tuple(dims)


def _damaged(what: str) -> AdapterFileError:
    return AdapterFileError(f"The ONNX model is damaged ({what}); download it again.")
