"""ONNX files as bytes, written with the standard library: protobuf fields of onnx.proto, real signatures, no packages.

The face models' files of the tests are made here; a graph's nodes are given as bytes, since headers do not need any.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

Dim = int | str | None
"""A number, a symbol, or None where nothing is said."""
Shape = Sequence[Dim]

FLOAT, INT64, FLOAT16 = 1, 7, 10
DETECTOR_OUTPUTS: dict[str, Shape] = {
    "448": (12800, 1), "471": (3200, 1), "494": (800, 1),
    "451": (12800, 4), "474": (3200, 4), "497": (800, 4),
    "454": (12800, 10), "477": (3200, 10), "500": (800, 10),
}  # fmt: skip
"""det_10g's: scores, boxes and keypoints at strides 8, 16 and 32, as they were exported at 640 x 640."""


def number(value: int) -> bytes:
    """A varint; negative numbers as protobuf writes them, in ten bytes."""
    value &= (1 << 64) - 1
    raw = bytearray()
    while value > 127:
        raw.append(value & 127 | 128)
        value >>= 7
    raw.append(value)
    return bytes(raw)


def field(at: int, value: int | bytes | str) -> bytes:
    """One field: a number as a varint, everything else with its length."""
    if isinstance(value, int):
        return number(at << 3) + number(value)
    raw = value.encode() if isinstance(value, str) else value
    return number(at << 3 | 2) + number(len(raw)) + raw


def value_info(name: str, shape: Shape | None, element: int = FLOAT) -> bytes:
    """ValueInfoProto."""
    tensor = field(1, element)
    if shape is not None:
        tensor += field(2, b"".join(field(1, _dim(dim)) for dim in shape))
    return field(1, name) + field(2, field(1, tensor))


def _dim(dim: Dim) -> bytes:
    return b"" if dim is None else field(1 if isinstance(dim, int) else 2, dim)


def weight(name: str, values: Sequence[float], shape: Sequence[int] | None = None) -> bytes:
    """TensorProto of float32, its values as raw_data."""
    dims = b"".join(field(1, extent) for extent in (shape if shape is not None else (len(values),)))
    return dims + field(2, FLOAT) + field(8, name) + field(9, struct.pack(f"<{len(values)}f", *values))


def model(
    inputs: Mapping[str, Shape | None],
    outputs: Mapping[str, Shape | None],
    *,
    nodes: Sequence[bytes] = (),
    weights: Sequence[bytes] = (),
    element: int = FLOAT,
    weights_are_inputs: Sequence[str] = (),
    operator_set: int = 11,
) -> bytes:
    """ModelProto, its fields in the order in which protobuf writes them: the signature after the weights."""
    graph = b"".join(field(1, node) for node in nodes) + field(2, "torch-jit-export")
    graph += b"".join(field(5, tensor) for tensor in weights)
    graph += b"".join(field(11, value_info(name, shape, element)) for name, shape in inputs.items())
    graph += b"".join(field(11, value_info(name, (1,))) for name in weights_are_inputs)
    graph += b"".join(field(12, value_info(name, shape, element)) for name, shape in outputs.items())
    return field(1, 6) + field(2, "pytorch") + field(3, "1.9") + field(7, graph) + field(8, field(2, operator_set))


def detector(*, seed: float = 1.0, weights: int = 16, size: tuple[Dim, Dim] = ("?", "?")) -> bytes:
    """A file with det_10g's signature."""
    tensors = [weight("w", [seed] * weights)]
    return model({"input.1": (1, 3, *size)}, DETECTOR_OUTPUTS, weights=tensors)


def recogniser(*, seed: float = 1.0, weights: int = 16, side: int = 112, width: int = 512) -> bytes:
    """A file with w600k_r50's and glintr100's signature."""
    tensors = [weight("w", [seed] * weights)]
    return model({"input.1": ("None", 3, side, side)}, {"683": (1, width)}, weights=tensors)


def write_large(path: Path, *, count: int, size: int, width: int = 512) -> Path:
    """A recogniser's file (of `width` numbers) with `count` weights of `size` bytes each, which are holes."""
    heads = [field(8, f"w{n}") + number(9 << 3 | 2) + number(size) for n in range(count)]
    records = [number(5 << 3 | 2) + number(len(head) + size) + head for head in heads]
    tail = field(11, value_info("input.1", ("None", 3, 112, 112))) + field(12, value_info("683", (1, width)))
    graph = sum(len(record) + size for record in records) + len(tail)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(field(1, 6) + number(7 << 3 | 2) + number(graph))
        for record in records:
            file.write(record)
            file.seek(size, os.SEEK_CUR)
        file.write(tail + field(8, field(2, 11)))
    return path


def landmarks(*, width: int = 3309) -> bytes:
    """A file with 1k3d68's (3309) or 2d106det's (212) signature."""
    return model({"data": ("None", 3, 192, 192)}, {"fc1": (1, width)})
