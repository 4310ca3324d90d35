"""Face packs as ONNX files with the real names, inputs and outputs, made from a seed with the `onnx` package.

Two kinds: random networks, to compare engines number by number; and a tiny world in which they mean something: its
detector finds the faces that `face_pictures` draws, where they are, and its recogniser tells the drawn people apart.
Tests, the demo and the stand-in host use them where published files would be too large.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from .face_pictures import FEATURES

PackName = Literal["buffalo_l", "antelopev2"]

FILES: dict[PackName, tuple[str, str]] = {
    "buffalo_l": ("det_10g.onnx", "w600k_r50.onnx"),
    "antelopev2": ("scrfd_10g_bnkps.onnx", "glintr100.onnx"),
}
"""Detector and recogniser of each pack, as published."""

EMBEDDING_OUTPUT: dict[PackName, str] = {"buffalo_l": "683", "antelopev2": "1333"}

STRIDES = (8, 16, 32)
ANCHORS = 2
OUTPUTS = {8: ("448", "451", "454"), 16: ("471", "474", "477"), 32: ("494", "497", "500")}
"""Scores, boxes and keypoints of each stride."""

SIZES = {8: (20.0, 72.0), 16: (64.0, 208.0), 32: (192.0, 450.0)}
"""The diameters, in pixels of what the detector is shown, that each stride finds: none is too small or too large."""


def write_face_pack(folder: Path, name: PackName = "buffalo_l", seed: int = 0) -> tuple[Path, Path]:
    """Write a pack of the tiny world into the folder; returns the detector's and the recogniser's file.

    The detectors of both packs are the same bytes, as the published ones are. The recognisers differ by pack and seed:
    embeddings of one mean nothing to the other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    detector, recogniser = (folder / file for file in FILES[name])
    detector.write_bytes(drawn_face_detector())
    recogniser.write_bytes(person_recogniser(name, seed))
    return detector, recogniser


def write_random_pack(folder: Path, name: PackName = "buffalo_l", seed: int = 0) -> tuple[Path, Path]:
    """As `write_face_pack`, with random networks: their detections and embeddings mean nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    detector, recogniser = (folder / file for file in FILES[name])
    detector.write_bytes(random_detector(seed))
    recogniser.write_bytes(random_recogniser(name, seed))
    return detector, recogniser


class _Graph:
    """Nodes and weights of one file as they are put together."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: object) -> str:
        count = len(self.nodes)
        name = output or f"{operator.lower()}_{count}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=f"node_{count}", **attributes))
        return name

    def weight(self, values: object, dtype: type = np.float32) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def bytes(self, picture: Sequence[object], outputs: Sequence[tuple[str, Sequence[int]]]) -> bytes:
        entry = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, list(picture))
        exits = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in outputs]
        graph = helper.make_graph(self.nodes, "faces", [entry], exits, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], producer_name="tests")
        model.ir_version = 6
        onnx.checker.check_model(model)
        return model.SerializeToString()


def _detector_outputs() -> list[tuple[str, tuple[int, int]]]:
    """In the published order, with the published shapes: those of 640 x 640, though any size runs."""
    widths = (1, 4, 10)
    return [
        (OUTPUTS[stride][part], ((640 // stride) ** 2 * ANCHORS, widths[part]))
        for part in range(3)
        for stride in STRIDES
    ]


def _rows(graph: _Graph, maps: str, width: int, output: str) -> str:
    """Maps `(1, anchors * width, H, W)` as rows `(H * W * anchors, width)`."""
    turned = graph.add("Transpose", maps, perm=[0, 2, 3, 1])
    return graph.add("Reshape", turned, graph.weight([-1, width], np.int64), output=output)


def random_detector(seed: int = 0, fixed: int | None = None) -> bytes:
    """SCRFD's interface around three random convolutions; fires at a small share of the anchors of any picture.

    `fixed` makes a file that takes pictures of that side only.
    """
    rng = np.random.default_rng(seed)
    graph = _Graph()

    def convolution(source: str, channels: int, wanted: int, stride: int, gain: float, bias: object = 0.0) -> str:
        weights = rng.normal(0, gain / (channels * 9) ** 0.5, (wanted, channels, 3, 3))
        biases = np.broadcast_to(np.asarray(bias, np.float32), (wanted,))
        return graph.add(
            "Conv", source, graph.weight(weights), graph.weight(biases), kernel_shape=[3, 3], strides=[stride] * 2,
            pads=[1] * 4,
        )  # fmt: skip

    features, channels = "input.1", 3
    for _ in range(2):
        features, channels = graph.add("Relu", convolution(features, channels, 8, 2, 2.0)), 8
    for stride in STRIDES:
        features = graph.add("Relu", convolution(features, channels, 8, 2, 2.0))
        scores, boxes, points = OUTPUTS[stride]
        logits = convolution(features, 8, ANCHORS, 1, 1.5, bias=-4.0)
        _rows(graph, graph.add("Sigmoid", logits), 1, scores)
        _rows(graph, convolution(features, 8, ANCHORS * 4, 1, 1.0, bias=2.5), 4, boxes)
        _rows(graph, convolution(features, 8, ANCHORS * 10, 1, 1.0), 10, points)
    edge = "?" if fixed is None else fixed
    return graph.bytes([1, 3, edge, edge], _detector_outputs())


def drawn_face_detector() -> bytes:
    """SCRFD's interface around arithmetic that finds drawn faces.

    Red and green say where in the face a pixel is, their slopes how large the face is and how it is tilted. A place
    fires when it is near the middle of such a face, upright to within 45 degrees, of a size that its stride is for,
    whose whole disc lies in what the detector is shown: so very large, very small and cropped faces are missed, as a
    real detector misses them. Tilted faces score less.
    """
    graph = _Graph()
    centre, across, down = np.zeros((3, 3)), np.zeros((3, 3)), np.zeros((3, 3))
    centre[1, 1], across[1], down[:, 1] = 1, (-0.5, 0, 0.5), (-0.5, 0, 0.5)
    kernels = np.zeros((6, 3, 3, 3))
    for channel in range(2):  # red, green
        for index, kernel in enumerate((centre, across, down)):
            kernels[channel * 3 + index, channel] = kernel
    kernels *= 128 / 255
    # u, du/dx, du/dy, v, dv/dx, dv/dy, with u and v from 0 to 1 across the face
    biases = [0.5, 0, 0, 0.5, 0, 0]
    pixels = graph.add(
        "Conv", "input.1", graph.weight(kernels), graph.weight(biases), kernel_shape=[3, 3], pads=[1] * 4
    )
    # The squares of the four slopes: even in a face, uneven in what only has such slopes on average.
    squares = graph.add("Mul", pixels, pixels)
    slopes = np.asarray([0, 1, 1, 0, 1, 1], np.float32).reshape(1, 6, 1, 1)
    energy = graph.add("Conv", squares, graph.weight(slopes), kernel_shape=[1, 1])
    maps = graph.add("Concat", pixels, energy, axis=1)
    for stride in STRIDES:
        _drawn_faces_at(graph, maps, stride)
    return graph.bytes([1, 3, "?", "?"], _detector_outputs())


def _drawn_faces_at(graph: _Graph, pixel_maps: str, stride: int) -> None:
    def number(value: float) -> str:
        return graph.weight([value])

    def below(value: str, limit: float) -> str:
        return graph.add("Less", value, number(limit))

    def every(*conditions: str) -> str:
        both = conditions[0]
        for condition in conditions[1:]:
            both = graph.add("And", both, condition)
        return both

    maps = graph.add("AveragePool", pixel_maps, kernel_shape=[stride] * 2, strides=[stride] * 2)
    split = [f"map_{stride}_{index}" for index in range(7)]
    graph.nodes.append(helper.make_node("Split", [maps], split, axis=1, name=f"split_{stride}"))
    u, u_x, u_y, v, v_x, v_y, energy = split
    half = number(0.5)
    cos = graph.add("Mul", graph.add("Add", u_x, v_y), half)  # of the tilt, over the size
    sin = graph.add("Mul", graph.add("Sub", u_y, v_x), half)
    square = graph.add("Add", graph.add("Mul", cos, cos), graph.add("Mul", sin, sin))
    slope = graph.add("Sqrt", graph.add("Add", square, number(1e-9)))
    size = graph.add("Reciprocal", slope)
    # how far this place's centre is from the face's, in pixels: the inverse of the slopes times (u, v) - (0.5, 0.5)
    area = graph.add("Mul", size, size)
    off_u, off_v = graph.add("Sub", u, half), graph.add("Sub", v, half)

    def placed(right: str, lower: str) -> tuple[str, str]:
        """(x, y) in pixels of a step (right, lower) in the face's own directions, each a share of its size."""
        x = graph.add("Sub", graph.add("Mul", cos, right), graph.add("Mul", sin, lower))
        y = graph.add("Add", graph.add("Mul", sin, right), graph.add("Mul", cos, lower))
        return graph.add("Mul", x, area), graph.add("Mul", y, area)

    off_x, off_y = placed(off_u, off_v)
    ones = graph.add("Add", graph.add("Mul", u, number(0.0)), number(1.0))
    edges = []
    for axis in (3, 2):
        index = graph.add("CumSum", ones, graph.weight(axis, np.int64), exclusive=1)
        middle = graph.add("Add", graph.add("Mul", index, number(stride)), number(stride / 2))
        count = graph.add("ReduceSum", ones, axes=[axis], keepdims=1)
        off = off_x if axis == 3 else off_y
        low = graph.add("Sub", graph.add("Sub", middle, off), graph.add("Mul", size, half))
        high = graph.add("Sub", graph.add("Add", low, size), graph.add("Mul", count, number(stride)))
        edges += [graph.add("Neg", low), high]
    mismatch = graph.add(
        "Mul",
        size,
        graph.add("Add", graph.add("Abs", graph.add("Sub", u_x, v_y)), graph.add("Abs", graph.add("Add", u_y, v_x))),
    )
    tangent = graph.add("Mul", graph.add("Abs", sin), size)
    smallest, largest = SIZES[stride]
    fires = every(
        below(graph.add("Abs", off_x), stride * 0.75),
        below(graph.add("Abs", off_y), stride * 0.75),
        below(size, largest),
        graph.add("Greater", size, number(smallest)),
        graph.add("Greater", cos, number(0.0)),
        below(tangent, 0.7071),
        below(mismatch, 0.2),
        below(graph.add("Sub", energy, graph.add("Mul", square, number(3.0))), 2e-4),
        *(below(edge, 2.0) for edge in edges),
    )
    away = graph.add("Div", graph.add("Add", graph.add("Abs", off_x), graph.add("Abs", off_y)), number(stride))
    score = graph.add("Sub", number(0.95), graph.add("Mul", away, number(0.1)))
    score = graph.add("Sub", score, graph.add("Mul", tangent, number(0.3)))
    score = graph.add("Mul", score, graph.add("Cast", fires, to=TensorProto.FLOAT))
    second = graph.add("Mul", score, number(0.98))  # the other anchor of the same place
    scores, boxes, points = OUTPUTS[stride]
    _rows(graph, graph.add("Concat", score, second, axis=1), 1, scores)

    # From the anchor, which is the place's top left corner, to the face's centre.
    to_x = graph.add("Sub", number(stride / 2), off_x)
    to_y = graph.add("Sub", number(stride / 2), off_y)
    radius = graph.add("Mul", size, half)
    sides = [graph.add("Sub", radius, to_x), graph.add("Sub", radius, to_y)]
    sides += [graph.add("Add", radius, to_x), graph.add("Add", radius, to_y)]
    offsets: list[str] = []
    for x, y in FEATURES:
        right = graph.add("Add", graph.add("Mul", ones, number(x - 0.5)), number(0.0))
        lower = graph.add("Add", graph.add("Mul", ones, number(y - 0.5)), number(0.0))
        step_x, step_y = placed(right, lower)
        offsets += [graph.add("Add", to_x, step_x), graph.add("Add", to_y, step_y)]
    for values, width, output in ((sides, 4, boxes), (offsets, 10, points)):
        stacked = graph.add("Concat", *values, *values, axis=1)
        _rows(graph, graph.add("Div", stacked, number(stride)), width, output)


def person_recogniser(name: PackName = "buffalo_l", seed: int = 0, weights: float = 1.0) -> bytes:
    """ArcFace's interface around arithmetic that tells drawn people apart: a random view of the pattern in blue.

    The norm is about 20, as the published recognisers' are. The same person in another picture has a cosine near 1,
    two persons one below 0.5. `weights` multiplies its weights: not a number makes a damaged file.
    """
    rng = np.random.default_rng([seed, sorted(FILES).index(name)])
    graph = _Graph()
    blue = np.zeros((1, 3, 8, 8))
    blue[0, 2] = 1 / 64
    pooled = graph.add("Conv", "input.1", graph.weight(blue), kernel_shape=[8, 8], strides=[8, 8])
    places = np.mgrid[:14, :14] - 6.5
    inside = (places**2).sum(axis=0) < 5.5**2
    flat = graph.add("Flatten", pooled)
    view = rng.normal(0, 1, (196, 512)) * inside.reshape(-1, 1)
    view -= view.sum(axis=0) / inside.sum() * inside.reshape(-1, 1)  # blind to how bright all of it is
    graph.add(
        "Gemm", flat, graph.weight(view * 0.35 * weights), graph.weight(np.zeros(512)), output=EMBEDDING_OUTPUT[name]
    )
    return graph.bytes(["None", 3, 112, 112], [(EMBEDDING_OUTPUT[name], (1, 512))])


def random_recogniser(name: PackName = "buffalo_l", seed: int = 0) -> bytes:
    """ArcFace's interface around random convolutions: every pixel and every channel counts."""
    rng = np.random.default_rng([seed, 5])
    graph = _Graph()
    features, channels = "input.1", 3
    for wanted in (8, 16, 16, 16):
        weights = graph.weight(rng.normal(0, 1.4 / (channels * 9) ** 0.5, (wanted, channels, 3, 3)))
        features = graph.add("Conv", features, weights, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        features = graph.add("PRelu", features, graph.weight(rng.uniform(0, 0.5, (wanted, 1, 1))))
        channels = wanted
    flat = graph.add("Flatten", features)
    weights, biases = rng.normal(0, 0.05, (channels * 49, 512)), rng.normal(0, 0.1, 512)
    graph.add("Gemm", flat, graph.weight(weights), graph.weight(biases), output=EMBEDDING_OUTPUT[name])
    return graph.bytes(["None", 3, 112, 112], [(EMBEDDING_OUTPUT[name], (1, 512))])


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Of two embeddings."""
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
