"""Model files with real keys and shapes and no data, for tests: names and shapes per kind, and two sparse writers.

Stdlib only. The shapes follow from the published classes; `narrow` makes a small net with the same ids and context
width. The writers leave holes where tensors would be, so a file of gigabytes costs nothing.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

Shapes = dict[str, tuple[str, tuple[int, ...]]]

CONTEXTS = {"SD1": 768, "SD2": 1024, "SDXL": 2048, "Kolors": 2048}
WIDTHS = {
    "SD1": (320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320, 1280),
    "SDXL": (640,) * 4 + (1280,) * 50 + (640,) * 6 + (1280,) * 10,
}
WIDTHS["SD2"], WIDTHS["Kolors"] = WIDTHS["SD1"], WIDTHS["SDXL"]
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "F64": 8, "F8_E4M3": 1}
STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage", "I64": "LongStorage"}

_PLUS_DIMS = {"SD1": (768, 12), "SD2": (1024, 12), "SDXL": (1280, 20), "Kolors": (2048, 12)}
_FACE_PLUS_DIMS = {"SD1": (768, 12), "SD2": (1024, 16), "SDXL": (2048, 32)}


def adapter_shapes(
    kind: str,
    base: str,
    *,
    narrow: int | None = None,
    encoder_width: int | None = None,
    tokens: int | None = None,
    dtype: str = "F16",
    projector_dtype: str | None = None,
    lora_rank: int | None = None,
    depth: int | None = None,
) -> Shapes:
    """Name, type and shape of every tensor of an adapter, official flat names.

    `narrow` is the width of the narrowest attention layer instead of 320 (the others follow in proportion, and a
    projector's inner width is 64); token and context widths stay. `encoder_width` is what feeds the projector
    (default: ViT-H's). `lora_rank` defaults to 128 for FaceID and 4 when narrow, 0 leaves the LoRA out.
    """
    context = CONTEXTS[base]
    projector = _projector(kind, base, narrow, encoder_width, tokens, depth)
    found = {f"image_proj.{name}": (projector_dtype or dtype, shape) for name, shape in projector.items()}
    widths = [width if narrow is None else width * narrow // 320 for width in WIDTHS[base]]
    if lora_rank is None:
        lora_rank = (128 if narrow is None else 4) if kind in ("faceid", "faceid_plus", "faceid_plus_v2") else 0
    for index, width in enumerate(widths):
        if lora_rank:
            for number in (2 * index, 2 * index + 1):
                for part in ("q", "k", "v", "out"):
                    source = context if number % 2 and part in ("k", "v") else width
                    name = f"ip_adapter.{number}.to_{part}_lora"
                    found[f"{name}.down.weight"] = (dtype, (lora_rank, source))
                    found[f"{name}.up.weight"] = (dtype, (width, lora_rank))
        for part in ("k", "v"):
            found[f"ip_adapter.{2 * index + 1}.to_{part}_ip.weight"] = (dtype, (width, context))
    return found


def _affine(name: str, rows: int, columns: int | None = None) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows,) if columns is None else (rows, columns), f"{name}.bias": (rows,)}


def _layers(prefix: str, dim: int, heads: int, depth: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    inner = heads * 64
    for number in range(depth):
        layer = f"{prefix}layers.{number}"
        found |= _affine(f"{layer}.0.norm1", dim) | _affine(f"{layer}.0.norm2", dim) | _affine(f"{layer}.1.0", dim)
        found |= {f"{layer}.0.to_q.weight": (inner, dim), f"{layer}.0.to_kv.weight": (2 * inner, dim)}
        found |= {f"{layer}.0.to_out.weight": (dim, inner), f"{layer}.1.1.weight": (4 * dim, dim)}
        found |= {f"{layer}.1.3.weight": (dim, 4 * dim)}
    return found


def _projector(
    kind: str, base: str, narrow: int | None, encoder_width: int | None, tokens: int | None, depth: int | None
) -> dict[str, tuple[int, ...]]:
    context = CONTEXTS[base]
    depth = depth or (4 if narrow is None else 1)
    if kind == "base":
        rows = (tokens or 4) * context
        return _affine("proj", rows, encoder_width or 1024) | _affine("norm", context)
    if kind == "full_face":
        width = encoder_width or 1280
        return _affine("proj.0", width, width) | _affine("proj.2", context, width) | _affine("proj.3", context)
    if kind in ("plus", "instantid", "faceid_portrait_unnorm"):
        dim, heads = (64, 1) if narrow is not None else _PLUS_DIMS[base]
        width = encoder_width or (1024 if base == "Kolors" else 1280)
        width = 512 if kind != "plus" else width
        found = {"latents": (1, tokens or 16, dim)} | _affine("proj_in", dim, width)
        found |= _affine("proj_out", context, dim) | _affine("norm_out", context)
        return found | _layers("", dim, heads, depth)
    count = tokens or (16 if kind == "faceid_portrait" else 4)
    hidden = 1024 if narrow is None else 64
    face = _affine("proj.0", hidden, 512) | _affine("proj.2", count * context, hidden) | _affine("norm", context)
    if kind in ("faceid", "faceid_portrait"):
        return face
    heads = 1 if narrow is not None else _FACE_PLUS_DIMS[base][1]
    prefix = "perceiver_resampler."
    face |= _affine(f"{prefix}proj_in", context, encoder_width or 1280)
    face |= _affine(f"{prefix}proj_out", context, context) | _affine(f"{prefix}norm_out", context)
    return face | _layers(prefix, context, heads, depth)


def vision_shapes(
    *,
    hidden: int = 1280,
    depth: int = 32,
    mlp: int | None = None,
    patch: int = 14,
    positions: int = 257,
    projected: int = 1024,
    layout: str = "transformers",
    prefix: str = "",
    dtype: str = "F32",
    text: bool = False,
) -> Shapes:
    """The tensors of a CLIP vision tower; `text` adds a few of the text half, as full CLIP files have them."""
    mlp = mlp or 4 * hidden
    found: dict[str, tuple[int, ...]] = {}
    if layout == "transformers":
        base = f"{prefix}vision_model."
        found[f"{base}embeddings.class_embedding"] = (hidden,)
        found[f"{base}embeddings.patch_embedding.weight"] = (hidden, 3, patch, patch)
        found[f"{base}embeddings.position_embedding.weight"] = (positions, hidden)
        found |= _affine(f"{base}pre_layrnorm", hidden) | _affine(f"{base}post_layernorm", hidden)
        for number in range(depth):
            layer = f"{base}encoder.layers.{number}"
            for part in ("q", "k", "v", "out"):
                found |= _affine(f"{layer}.self_attn.{part}_proj", hidden, hidden)
            found |= _affine(f"{layer}.layer_norm1", hidden) | _affine(f"{layer}.layer_norm2", hidden)
            found |= _affine(f"{layer}.mlp.fc1", mlp, hidden) | _affine(f"{layer}.mlp.fc2", hidden, mlp)
        if projected:
            found[f"{prefix}visual_projection.weight"] = (projected, hidden)
        if text:
            found[f"{prefix}text_model.embeddings.token_embedding.weight"] = (49408, 1024)
            found[f"{prefix}text_projection.weight"] = (1024, 1024)
            found["logit_scale"] = ()
    else:
        base = f"{prefix}visual."
        found[f"{base}class_embedding"] = (hidden,)
        found[f"{base}positional_embedding"] = (positions, hidden)
        found[f"{base}conv1.weight"] = (hidden, 3, patch, patch)
        found |= _affine(f"{base}ln_pre", hidden) | _affine(f"{base}ln_post", hidden)
        for number in range(depth):
            layer = f"{base}transformer.resblocks.{number}"
            found |= {f"{layer}.attn.in_proj_weight": (3 * hidden, hidden), f"{layer}.attn.in_proj_bias": (3 * hidden,)}
            found |= _affine(f"{layer}.attn.out_proj", hidden, hidden)
            found |= _affine(f"{layer}.ln_1", hidden) | _affine(f"{layer}.ln_2", hidden)
            found |= _affine(f"{layer}.mlp.c_fc", mlp, hidden) | _affine(f"{layer}.mlp.c_proj", hidden, mlp)
        if projected:
            found[f"{base}proj"] = (hidden, projected)
        if text:
            found["token_embedding.weight"] = (49408, 1024)
            found["transformer.resblocks.0.ln_1.weight"] = (1024,)
            found["logit_scale"] = ()
    return {name: (dtype, shape) for name, shape in found.items()}


def controlnet_tensors(base: str = "SDXL", *, narrow: int = 320, depth: int | None = None) -> Shapes:
    """A ControlNet in diffusers' layout, as `ControlNetModel` names and shapes it; `depth` makes SDXL's shallower."""
    levels = {"SDXL": ((1, 0), (2, 2), (4, 10)), "SD1": ((1, 1), (2, 1), (4, 1), (4, 0))}[base]
    context, time = CONTEXTS[base], 4 * narrow
    found = _affine("time_embedding.linear_1", time, narrow) | _affine("time_embedding.linear_2", time, time)
    if base == "SDXL":
        found |= _affine("add_embedding.linear_1", time, 2816) | _affine("add_embedding.linear_2", time, time)
    hint, widths = "controlnet_cond_embedding", (16, 16, 16, 32, 32, 96, 96, 256)
    found |= _conv("conv_in", narrow, 4) | _conv(f"{hint}.conv_in", 16, 3) | _conv(f"{hint}.conv_out", narrow, 256)
    for number in range(6):
        found |= _conv(f"{hint}.blocks.{number}", widths[number + 2], widths[number + 1])
    width, residuals = narrow, [narrow]
    for level, (factor, blocks) in enumerate(levels):
        for place in (0, 1):
            found |= _controlnet_resnet(f"down_blocks.{level}.resnets.{place}", width, factor * narrow, time)
            width = factor * narrow
            if blocks:
                name = f"down_blocks.{level}.attentions.{place}"
                found |= _controlnet_transformer(name, width, min(blocks, depth or blocks), context)
            residuals.append(width)
        if level < len(levels) - 1:
            found |= _conv(f"down_blocks.{level}.downsamplers.0.conv", width, width)
            residuals.append(width)
    blocks = 10 if base == "SDXL" else 1
    found |= _controlnet_transformer("mid_block.attentions.0", width, min(blocks, depth or blocks), context)
    for place in (0, 1):
        found |= _controlnet_resnet(f"mid_block.resnets.{place}", width, width, time)
    for number, residual in enumerate(residuals):
        found |= _conv(f"controlnet_down_blocks.{number}", residual, residual, 1)
    found |= _conv("controlnet_mid_block", width, width, 1)
    return {name: ("F16", shape) for name, shape in found.items()}


def _conv(name: str, out: int, width: int, side: int = 3) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width, side, side), f"{name}.bias": (out,)}


def _controlnet_resnet(name: str, width: int, out: int, time: int) -> dict[str, tuple[int, ...]]:
    found = _affine(f"{name}.norm1", width) | _affine(f"{name}.norm2", out)
    found |= _affine(f"{name}.time_emb_proj", out, time)
    found |= _conv(f"{name}.conv1", out, width) | _conv(f"{name}.conv2", out, out)
    return found | ({} if width == out else _conv(f"{name}.conv_shortcut", out, width, 1))


def _controlnet_transformer(name: str, width: int, depth: int, context: int) -> dict[str, tuple[int, ...]]:
    found = _affine(f"{name}.norm", width)
    for part in ("proj_in", "proj_out"):
        found |= _conv(f"{name}.{part}", width, width, 1) if context == 768 else _affine(f"{name}.{part}", width, width)
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for attention, source in ((1, width), (2, context)):
            for part in ("q", "k", "v"):
                shape = (width, width if part == "q" else source)
                found[f"{block}.attn{attention}.to_{part}.weight"] = shape
            found |= _affine(f"{block}.attn{attention}.to_out.0", width, width)
        for norm in (1, 2, 3):
            found |= _affine(f"{block}.norm{norm}", width)
        found |= _affine(f"{block}.ff.net.0.proj", 8 * width, width) | _affine(f"{block}.ff.net.2", width, 4 * width)
    return found


def lora_shapes(base: str = "SD1", *, rank: int = 128, alpha: bool = False) -> Shapes:
    """The LoRA published beside a FaceID adapter: every attention's q, k, v and out."""
    found: Shapes = {}
    if base == "SDXL":
        blocks = [("down_blocks_1", 2, 2), ("down_blocks_2", 2, 10), ("up_blocks_0", 3, 10), ("up_blocks_1", 3, 2)]
    else:
        blocks = [(f"down_blocks_{number}", 2, 1) for number in (0, 1, 2)]
        blocks += [(f"up_blocks_{number}", 3, 1) for number in (1, 2, 3)]
    blocks += [("mid_block", 1, 10 if base == "SDXL" else 1)]
    places = [(b, a, t) for b, attentions, depth in blocks for a in range(attentions) for t in range(depth)]
    for (block, attention, layer), width in zip(places, WIDTHS[base], strict=True):
        for number in (1, 2):
            for part in ("to_q", "to_k", "to_v", "to_out_0"):
                source = CONTEXTS[base] if number == 2 and part in ("to_k", "to_v") else width
                name = f"lora_unet_{block}_attentions_{attention}_transformer_blocks_{layer}_attn{number}_{part}"
                found[f"{name}.lora_down.weight"] = ("F16", (rank, source))
                found[f"{name}.lora_up.weight"] = ("F16", (width, rank))
                if alpha:
                    found[f"{name}.alpha"] = ("I64", ())
    return found


def _count(shape: Iterable[int]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def write_safetensors(
    path: Path, shapes: Shapes, *, metadata: Mapping[str, str] | None = None, size: int | None = None
) -> Path:
    """Write a sparse safetensors file; `size` stretches it with metadata to an exact length."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name in sorted(shapes, key=lambda name: (-BYTES[shapes[name][0]], name)):
        dtype, shape = shapes[name]
        length = _count(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if size is not None and size != 8 + len(text) + at:
        header = {"__metadata__": {"padding": ""}} | header
        room = size - 8 - at - len(json.dumps(header, separators=(",", ":")))
        header["__metadata__"] = {"padding": "x" * room}
        text = json.dumps(header, separators=(",", ":")).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return path


# -- torch zips


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def _numbers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def pickled_tensor(
    key: str, dtype: str, numel: int, offset: int, shape: tuple[int, ...], memo: dict[bytes, int] | None = None
) -> bytes:
    """The instructions that `torch.save` writes for one tensor; `memo` lets tensors of one file share parts."""
    memo = {} if memo is None else memo
    storage = b"ctorch\n" + STORAGES[dtype].encode() + b"\n"
    record = b"(" + _text("storage") + storage + _text(key) + _text("cpu") + _number(numel) + b"tQ"
    rebuild = _shared(b"ctorch._utils\n_rebuild_tensor_v2\n", memo)
    arguments = b"(" + _shared(record, memo) + _number(offset) + _numbers(shape) + _numbers(_strides(shape))
    return rebuild + arguments + b"\x89" + _shared(b"ccollections\nOrderedDict\n", memo) + b")RtR"


def _shared(instructions: bytes, memo: dict[bytes, int]) -> bytes:
    if instructions in memo:
        return b"j" + struct.pack("<I", memo[instructions])
    memo[instructions] = len(memo)
    return instructions + b"r" + struct.pack("<I", memo[instructions])


def pickled_dict(items: Mapping[str, object]) -> bytes:
    """The instructions for nested dicts whose leaves are instructions already."""
    body = b"".join(
        _text(name) + (value if isinstance(value, bytes) else pickled_dict(value))  # type: ignore[arg-type]
        for name, value in items.items()
    )
    return b"}(" + body + b"u"


def write_torch(
    path: Path, shapes: Shapes, *, nested: bool = True, flat_storage: bool = True, size: int | None = None
) -> Path:
    """Write a sparse torch zip; nested as published files are, all tensors of a type in one storage if `flat_storage`.

    `size` pads the zip to an exact length (when it is not already longer).
    """
    storages: dict[str, int] = {}
    leaves: dict[str, bytes] = {}
    total: dict[str, int] = {}
    for dtype, shape in shapes.values():
        total[dtype] = total.get(dtype, 0) + _count(shape)
    at = dict.fromkeys(total, 0)
    keys = {dtype: str(number) for number, dtype in enumerate(total)}
    memo: dict[bytes, int] = {}
    for number, (name, (dtype, shape)) in enumerate(shapes.items()):
        if flat_storage:
            leaves[name] = pickled_tensor(keys[dtype], dtype, total[dtype], at[dtype], shape, memo)
            at[dtype] += _count(shape)
            storages[keys[dtype]] = total[dtype] * BYTES[dtype]
        else:
            leaves[name] = pickled_tensor(str(number), dtype, _count(shape), 0, shape, memo)
            storages[str(number)] = _count(shape) * BYTES[dtype]
    top: dict[str, object] = dict(leaves)
    if nested:
        top = {}
        for name, leaf in leaves.items():
            group, dot, rest = name.partition(".")
            if dot:
                top.setdefault(group, {})[rest] = leaf  # type: ignore[index]
            else:
                top[name] = leaf
    return write_zip(path, b"\x80\x02" + pickled_dict(top) + b".", storages, size=size)


def write_zip(path: Path, pickle: bytes, storages: Mapping[str, int], *, size: int | None = None) -> Path:
    """Write a torch zip from its `data.pkl` and its storages' lengths in bytes, which stay holes."""
    root = path.stem
    records: list[tuple[str, bytes | int]] = [(f"{root}/data.pkl", pickle), (f"{root}/version", b"3\n")]
    records[1:1] = [(f"{root}/data/{key}", length) for key, length in storages.items()]
    if size is not None:
        name = f"{root}/padding"
        overhead = sum(76 + 2 * len(n) + (len(b) if isinstance(b, bytes) else b) for n, b in records)
        room = size - overhead - 22 - 76 - 2 * len(name)
        if room >= 0:
            records.append((name, room))
    central = b""
    with path.open("wb") as file:
        for name, body in records:
            length, crc = (len(body), zlib.crc32(body)) if isinstance(body, bytes) else (body, 0)
            raw = name.encode()
            offset = file.tell()
            common = struct.pack("<5H3L2H", 20, 0, 0, 0, 0, crc, length, length, len(raw), 0)
            file.write(b"PK\x03\x04" + common + raw)
            central += b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<3H2L", 0, 0, 0, 0, offset) + raw
            if isinstance(body, bytes):
                file.write(body)
            else:
                file.seek(length, 1)
        start = file.tell()
        file.write(central)
        count = len(records)
        file.write(b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, count, count, len(central), start, 0))
    return path
