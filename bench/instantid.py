"""What an InstantID step costs, and what it holds: `python bench/instantid.py [--quick] [--json]`.

Three steps run in turn in one process, on one ldm UNet of the published widths: the plain one; the floor, the plain one
with one diffusers `ControlNetModel` of IdentityNet's shape and weights, its residuals added as cldm adds them; and the
InstantID one, which is IdentityNet and the attention to 16 face tokens through this extension's hooks. The floor is
strict: its hint picture is embedded once, as ours, where diffusers' pipelines embed it in every step, and it sees the
16 tokens and not a prompt of 77. Each number is the median of the rounds' ratios. "Prompt only" is the unit's option to
leave the negative prompt's rows alone.

Memory is that of all tensors that are alive beyond the UNet and its inputs: the net in the job's precision, read from a
file in half precision as published; K and V; the map; and what is left when the job is over.

On CUDA float16 and the published sizes, else float32 and one thread, whose CPU time is taken. SDXL at full width needs
16 GB on the CPU, so there it is measured at half its channels unless it is asked for. `--quick` is for CI: SD1.5 with
half the channels, under half a minute, exit status 1 when both the median and the ratio of the fastest steps, InstantID
over the floor, are above 1.15.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from ldm.modules.attention import CrossAttention
from ldm.modules.diffusionmodules.util import timestep_embedding
from torch import Tensor

from bench.attention import CEILING, random_pair, seconds
from lib_ipadapter.core.attach import AttachmentScope, UnitAttention, attach
from lib_ipadapter.core.identity_net import build_identity_net, load_identity_net
from lib_ipadapter.core.layers import find_cross_attention
from lib_ipadapter.core.residuals import UNetResiduals, UnitResiduals, attach_residuals
from lib_ipadapter.core.schedule import UNetCall, Window
from lib_ipadapter.core.weighting import layer_weights
from lib_ipadapter.hosts.identity_nets import MovingNet
from lib_ipadapter.library.controlnets import read_controlnet
from lib_ipadapter.library.spec import ControlNetSpec
from tests.attention_forwards import fused
from tests.core.random_controlnets import SD15, SDXL, as_published, random_controlnet, save_controlnet
from tests.unets import cast_unet, sd15_unet, sdxl_unet, unet_inputs

TOKENS = 16
STRENGTH = 0.8
QUICK = "SD1.5, half the channels"


def halved(spec: ControlNetSpec, heads: tuple[int, ...]) -> ControlNetSpec:
    """The net with half the channels, whose heads are the UNet's."""
    return replace(spec, channels=tuple(channel // 2 for channel in spec.channels), heads=heads)


MODELS: dict[str, tuple[Callable[[], Any], ControlNetSpec]] = {
    "SD1.5": (lambda: sd15_unet(320), SD15),
    "SDXL": (lambda: sdxl_unet(320, head_dim=64), SDXL),
    QUICK: (lambda: sd15_unet(160), halved(SD15, SD15.heads)),
    "SDXL, half the channels": (lambda: sdxl_unet(160, head_dim=32), halved(SDXL, SDXL.heads)),
}
# Side of the latent by device; 64 is 512x512 pixels, 128 is 1024x1024.
LATENTS = {"cuda": {"SD1.5": 64, "SDXL": 128}, "cpu": {"SD1.5": 32, QUICK: 24}}
DEFAULTS = {"cuda": ["SD1.5", "SDXL"], "cpu": ["SD1.5", "SDXL, half the channels"]}


@dataclass(frozen=True)
class Result:
    """One model: milliseconds of a plain step, ratios of steps, and bytes."""

    model: str
    pixels: int
    dtype: str
    rounds: int
    plain_ms: float
    controlnet_ratio: float
    instantid_ratio: float
    prompt_only_ratio: float
    over_floor: float
    lowest: float
    highest: float
    fastest: float
    net_bytes: int
    kv_bytes: int
    held_bytes: int
    after_bytes: int


def main() -> int:
    """Measure, print, and say by the exit status whether the ceiling over the floor holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small model for CI, under half a minute")
    parser.add_argument("--json", action="store_true", help="print JSON instead of markdown tables")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="instead of the device's own")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of steps per model")
    parser.add_argument("--latent", type=int, help="side of the latent, instead of the device's own")
    options = parser.parse_args()
    try:
        import diffusers  # noqa: F401 - the floor
    except ImportError:
        print("diffusers is not installed (the Forge environment has it): nothing to compare with", file=sys.stderr)
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    names = options.models or DEFAULTS[device]
    if options.quick:
        names, options.rounds = [QUICK], 5
    CrossAttention.forward = fused
    results = [run(name, options.latent or LATENTS[device].get(name, 32), options.rounds, device) for name in names]
    print(json.dumps([asdict(one) for one in results], indent=2) if options.json else tables(results, device))
    return int(options.quick and any(min(one.over_floor, one.fastest) > CEILING for one in results))


class Bench:
    """One UNet with its inputs, one net's weights, a map and a face's tokens."""

    def __init__(self, model: str, size: int, device: str) -> None:
        build, self.spec = MODELS[model]
        self.device, self.dtype = device, torch.float16 if device == "cuda" else torch.float32
        unet = build()
        self.unet = (cast_unet(unet, self.dtype) if device == "cuda" else unet).to(device)
        self.layers = find_cross_attention(self.unet)
        self.inputs = {
            name: tensor.to(device, self.dtype) for name, tensor in unet_inputs(self.unet, rows=2, size=size).items()
        }
        generator = torch.Generator().manual_seed(4)
        self.hint = torch.rand(1, 3, 8 * size, 8 * size, generator=generator)
        self.context = torch.randn(2, TOKENS, self.spec.context_dim, generator=generator).to(self.dtype)

    def plain(self) -> Any:
        """The step without anything."""
        return self.unet(**self.inputs)

    def floor(self, controlnet: Any) -> Callable[[], Tensor]:
        """The step with one diffusers ControlNet."""
        extra: dict[str, Any] = {}
        if self.spec.y_dim:
            split = self.spec.y_dim - 6 * 256
            sizes = torch.full((2, 6), 512.0, device=self.device, dtype=self.dtype)
            extra["added_cond_kwargs"] = {"text_embeds": self.inputs["y"][:, :split], "time_ids": sizes}
        hint = controlnet.controlnet_cond_embedding(self.hint.to(self.device, self.dtype))
        controlnet.controlnet_cond_embedding = torch.nn.Identity()
        context = self.context.to(self.device)

        def step() -> Tensor:
            down, mid = controlnet(
                sample=self.inputs["x"],
                timestep=self.inputs["timesteps"],
                encoder_hidden_states=context,
                controlnet_cond=hint.expand(2, -1, -1, -1),
                conditioning_scale=STRENGTH,
                return_dict=False,
                **extra,
            )
            return controlled(self.unet, list(down), mid, **self.inputs)

        return step

    def attention(self) -> UnitAttention:
        """The attention to the face's tokens."""
        kv = {layer.key_id: random_pair(TOKENS, layer.width, self.device, self.dtype) for layer in self.layers}
        return UnitAttention("face", kv, layer_weights("instantid", self.layers, 0.8), Window())

    def residuals(self, net: Any, *, cond_only: bool = False) -> UnitResiduals:
        """IdentityNet's side of the unit."""
        return UnitResiduals("face", net, self.hint, self.context, STRENGTH, cond_only=cond_only)

    def attach(self, attention: UnitAttention, companion: UNetResiduals) -> AttachmentScope:
        """Both halves on the UNet."""
        return attach(self.unet, [attention], read_call, self.layers, companions=(companion,))


def read_call(_args: Any, _kwargs: Any) -> UNetCall:
    """Every call: the prompt's row, then the negative one's."""
    return UNetCall((0, 1), 0.0)


def controlled(unet: Any, down: list[Tensor], mid: Tensor, x: Tensor, timesteps: Tensor, context: Tensor,
               y: Tensor | None = None) -> Tensor:  # fmt: skip
    """The UNet's step with a ControlNet's residuals added (cldm.py, `ControlledUnetModel.forward`)."""
    emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels).to(x.dtype))
    if y is not None:
        emb = emb + unet.label_emb(y)
    skips = [x]
    for block in unet.input_blocks:
        skips.append(block(skips[-1], emb, context))
    hidden = unet.middle_block(skips[-1], emb, context) + mid
    for block in unet.output_blocks:
        hidden = block(torch.cat([hidden, skips.pop() + down.pop()], dim=1), emb, context)
    return unet.out(hidden)


@torch.no_grad()
def run(model: str, size: int, rounds: int, device: str) -> Result:
    """Time one model's steps, then weigh a job's tensors."""
    bench = Bench(model, size, device)
    times = measure(bench, rounds)
    plain, floor, whole, prompt_only = (list(column) for column in zip(*times, strict=True))

    def ratio(above: list[float], below: list[float]) -> float:
        return statistics.median(one / other for one, other in zip(above, below, strict=True))

    over = [one / other for one, other in zip(whole, floor, strict=True)]
    result = Result(
        model=model,
        pixels=8 * size,
        dtype=str(bench.dtype).removeprefix("torch."),
        rounds=rounds,
        plain_ms=1000 * statistics.median(plain),
        controlnet_ratio=ratio(floor, plain),
        instantid_ratio=ratio(whole, plain),
        prompt_only_ratio=ratio(prompt_only, plain),
        over_floor=statistics.median(over),
        lowest=min(over),
        highest=max(over),
        fastest=min(whole) / min(floor),
        **weigh(bench),
    )
    print(f"{model}: {result.instantid_ratio:.3f}, over the floor {result.over_floor:.3f}", file=sys.stderr, flush=True)
    return result


def measure(bench: Bench, rounds: int) -> list[tuple[float, ...]]:
    """Seconds of (plain, floor, InstantID, InstantID on the prompt's rows), round by round, in turning order."""
    from tests.parity.diffusers_unets import diffusers_controlnet

    tensors = {name: one.to(bench.device, bench.dtype) for name, one in random_controlnet(bench.spec).items()}
    floor = bench.floor(diffusers_controlnet(bench.spec, tensors, size_width=256, shared=True))
    net = build_identity_net(bench.spec, tensors, dtype=bench.dtype).to(bench.device)
    check_same_work(bench, floor, net)
    attention = bench.attention()
    # Kept through the rounds: a pass embeds its map once, here in the round that warms up.
    units = {
        place: UNetResiduals(bench.unet, [bench.residuals(net, cond_only=cond_only)])
        for place, cond_only in ((2, False), (3, True))
    }
    samples: list[tuple[float, ...]] = []
    for number in range(-1, rounds):
        found = [0.0] * 4
        for place in range(4):
            which = (place + number) % 4
            if which in units:
                with bench.attach(attention, units[which]):
                    found[which] = seconds(bench.plain, bench.device)
            else:
                found[which] = seconds(floor if which else bench.plain, bench.device)
        if number >= 0:  # the first round warms up
            samples.append(tuple(found))
    return samples


def check_same_work(bench: Bench, floor: Callable[[], Tensor], net: Any) -> None:
    """Without the attention both add the same to the UNet; with a `y`, of which the floor makes its own part, not."""
    if bench.spec.y_dim or bench.dtype != torch.float32:
        return
    with attach_residuals(bench.unet, [bench.residuals(net)], read_call):
        torch.testing.assert_close(bench.plain(), floor(), atol=1e-3, rtol=1e-3)


def weigh(bench: Bench) -> dict[str, int]:
    """Bytes of a job's tensors while it samples, of which the net's and K and V's, and what is left after it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        half = {name: one.half() for name, one in random_controlnet(bench.spec).items()}
        save_controlnet(path, as_published(bench.spec, half))
        del half
        before = living_bytes()
        spec = replace(read_controlnet(path), heads=bench.spec.heads)
        net = MovingNet(load_identity_net(spec, path, dtype=bench.dtype))
    read = living_bytes()
    attention = bench.attention()
    with_kv = living_bytes()
    with bench.attach(attention, UNetResiduals(bench.unet, [bench.residuals(net)])):
        bench.plain()
        held = living_bytes()
    net.release()
    del net, attention
    return {
        "net_bytes": read - before,
        "kv_bytes": with_kv - read,
        "held_bytes": held - before,
        "after_bytes": living_bytes() - before,
    }


def living_bytes() -> int:
    """Bytes of all tensors' memory, each counted once."""
    gc.collect()
    memory = (one.untyped_storage() for one in gc.get_objects() if issubclass(type(one), Tensor))
    return sum({storage.data_ptr(): storage.nbytes() for storage in memory}.values())


def tables(results: list[Result], device: str) -> str:
    """The results as two markdown tables."""
    name = torch.cuda.get_device_name() if device == "cuda" else "one CPU thread"
    lines = [
        f"A step's time ÷ the plain step's; torch {torch.__version__}, {name}",
        "",
        "| model | pixels | dtype | plain ms | one ControlNet | InstantID | prompt only | InstantID ÷ ControlNet "
        "| lowest-highest | fastest | rounds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {r.model} | {r.pixels} | {r.dtype} | {r.plain_ms:.1f} | {r.controlnet_ratio:.3f} "
            f"| {r.instantid_ratio:.3f} | {r.prompt_only_ratio:.3f} | {r.over_floor:.3f} "
            f"| {r.lowest:.3f}-{r.highest:.3f} | {r.fastest:.3f} | {r.rounds} |"
            for r in results
        ),
        "",
        "| model | IdentityNet MB | K and V MB | all that is held MB | after the job MB |",
        "|---|---|---|---|---|",
        *(
            f"| {r.model} | {megabytes(r.net_bytes)} | {megabytes(r.kv_bytes)} | {megabytes(r.held_bytes)} "
            f"| {megabytes(r.after_bytes)} |"
            for r in results
        ),
    ]
    return "\n".join(lines)


def megabytes(count: int) -> str:
    """Millions of bytes, with a digit behind the point."""
    return f"{count / 1e6:.1f}"


if __name__ == "__main__":
    sys.exit(main())
