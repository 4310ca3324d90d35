"""How much slower a UNet step gets with image prompts: `python bench/attention.py [--quick] [--json]`.

Each number is the median, over pairs of steps run in turn in one process, of (step with units) / (plain step): on
ldm's UNet with the published widths and this extension's hooks, and on diffusers' UNet with its own processors. Both
plain UNets use torch's fused attention, so nothing is gained on a slow baseline.

On CUDA: float16, SD1.5 at 512x512 and SDXL at 1024x1024, cond and uncond in one call, wall time. On the CPU such a
step takes minutes, so widths and depths stay and the latent is smaller, which makes the units' fixed costs weigh more;
one thread, CPU time of that thread, so that other work on the machine does not show. `--quick` is for CI: SD1.5 with
half the channels, one case, under a minute, exit status 1 when the median and the ratio of the fastest steps are
above 1.15.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from ldm.modules.attention import CrossAttention
from torch import Tensor, nn

from lib_ipadapter.core.attach import UnitAttention, attach
from lib_ipadapter.core.layers import find_cross_attention
from lib_ipadapter.core.schedule import UNetCall, Window
from lib_ipadapter.core.weighting import layer_weights
from tests.attention_forwards import fused
from tests.unets import cast_unet, sd15_unet, sdxl_unet, unet_inputs

CEILING = 1.15
CASES = ["4x1", "16x1", "257x1", "4x4", "16x4", "257x4"]
BUILDERS: dict[str, Callable[[], Any]] = {
    "SD1.5": lambda: sd15_unet(320),
    "SDXL": lambda: sdxl_unet(320, head_dim=64),
    "SD1.5, half the channels": lambda: sd15_unet(160),
}
QUICK = "SD1.5, half the channels"
# Side of the latent by device; 64 is 512x512 pixels, 128 is 1024x1024.
LATENTS = {"cuda": {"SD1.5": 64, "SDXL": 128, QUICK: 64}, "cpu": {"SD1.5": 32, "SDXL": 32, QUICK: 24}}


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    model: str
    pixels: int
    dtype: str
    implementation: str
    tokens: int
    units: int
    pairs: int
    plain_ms: float
    ratio: float
    lowest: float
    highest: float
    fastest_ratio: float


@dataclass
class Subject:
    """A UNet, how to call it, and how to switch image prompts on."""

    name: str
    call: Callable[[], Any]
    units: Callable[[int, int], AbstractContextManager[Any]]


def main() -> int:
    """Measure, print, and say by the exit status whether the ceiling holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small case for CI, under a minute")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a markdown table")
    parser.add_argument("--models", nargs="+", choices=list(BUILDERS), default=["SD1.5", "SDXL"])
    parser.add_argument("--cases", nargs="+", default=CASES, help="tokens x units, such as 16x1")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of steps per number")
    parser.add_argument("--latent", type=int, help="side of the latent, instead of the device's own")
    parser.add_argument("--masked", action="store_true", help="confine each unit to a half; the hooks alone")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: float16 on CUDA only")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    if options.quick:
        options.models, options.cases = [QUICK], ["16x1"]
    results = list(run(options, device))
    print(json.dumps([asdict(result) for result in results], indent=2) if options.json else table(results, device))
    # Both must say so: on a busy machine the median of a few pairs strays by a tenth, the fastest steps do not.
    return int(options.quick and any(min(r.ratio, r.fastest_ratio) > CEILING for r in results))


def run(options: argparse.Namespace, device: str) -> Iterator[Result]:
    """Every model, implementation and case in turn; one UNet is in memory at a time."""
    dtype = getattr(torch, options.dtype or ("float16" if device == "cuda" else "float32"))
    for model in options.models:
        size = options.latent or LATENTS[device][model]
        subjects = (masked_hooks,) if options.masked else (hooks,) if options.quick else (hooks, processors)
        for make_subject in subjects:
            subject = make_subject(model, size, device, dtype)
            for case in options.cases if subject else ():
                tokens, units = map(int, case.split("x"))
                samples = measure(subject, tokens, units, options.pairs, device)
                ratios = [with_units / plain for plain, with_units in samples]
                result = Result(
                    model=model,
                    pixels=size * 8,
                    dtype=str(dtype).removeprefix("torch."),
                    implementation=subject.name,
                    tokens=tokens,
                    units=units,
                    pairs=len(samples),
                    plain_ms=1000 * statistics.median(plain for plain, _ in samples),
                    ratio=statistics.median(ratios),
                    lowest=min(ratios),
                    highest=max(ratios),
                    fastest_ratio=min(with_units for _, with_units in samples) / min(plain for plain, _ in samples),
                )
                print(f"{model}, {subject.name}, {case}: {result.ratio:.3f}", file=sys.stderr, flush=True)
                yield result
            del subject


@torch.no_grad()
def measure(subject: Subject, tokens: int, units: int, pairs: int, device: str) -> list[tuple[float, float]]:
    """Seconds of (plain step, step with units), pair by pair, the order swapped each time."""
    samples: list[tuple[float, float]] = []
    for pair in range(-1, pairs):
        times = [0.0, 0.0]
        for with_units in (0, 1) if pair % 2 else (1, 0):
            if with_units:
                with subject.units(tokens, units):
                    times[1] = seconds(subject.call, device)
            else:
                times[0] = seconds(subject.call, device)
        if pair >= 0:  # the first pair warms up
            samples.append((times[0], times[1]))
    return samples


def seconds(call: Callable[[], Any], device: str) -> float:
    """Seconds of one call; on CUDA the mean of five after one that is not counted, as kernels run behind."""
    if device == "cpu":
        start = time.thread_time()
        call()
        return time.thread_time() - start
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(5):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / 5


def masked_hooks(model: str, size: int, device: str, dtype: torch.dtype) -> Subject:
    """This extension on ldm's UNet, each unit in a half of the picture."""
    half = torch.zeros(8 * size, 8 * size)
    half[:, : 4 * size] = 1
    return hooks(model, size, device, dtype, half)


def hooks(model: str, size: int, device: str, dtype: torch.dtype, mask: Tensor | None = None) -> Subject:
    """This extension on ldm's UNet."""
    CrossAttention.forward = fused
    unet = BUILDERS[model]()
    if dtype != torch.float32:
        unet = cast_unet(unet, dtype)
    unet = unet.to(device)
    inputs = {name: tensor.to(device, dtype) for name, tensor in unet_inputs(unet, rows=2, size=size).items()}
    layers = find_cross_attention(unet)

    def units(tokens: int, count: int) -> AbstractContextManager[Any]:
        made = [
            UnitAttention(
                f"unit {number}",
                {layer.key_id: random_pair(tokens, layer.width, device, dtype) for layer in layers},
                layer_weights("image", layers, 0.5),
                Window(),
                mask,
            )
            for number in range(count)
        ]
        return attach(unet, made, lambda _args, _kwargs: UNetCall((0, 1), 0.0))

    return Subject("hooks" if mask is None else "hooks, masked", lambda: unet(**inputs), units)


def processors(model: str, size: int, device: str, dtype: torch.dtype) -> Subject | None:
    """diffusers' UNet and its IP-Adapter processors, where diffusers is installed."""
    try:
        from diffusers import UNet2DConditionModel
        from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    except ImportError:
        print("diffusers is not installed: its processors are left out", file=sys.stderr)
        return None
    from tests.parity.diffusers_unets import diffusers_inputs, twin_options

    with torch.device("meta"):
        layout = BUILDERS[model]()
    unet = UNet2DConditionModel(**twin_options(layout)).eval().requires_grad_(False).to(device, dtype)
    arguments = to_device(diffusers_inputs(unet, unet_inputs(layout, rows=2, size=size)), device, dtype)
    width = unet.config["cross_attention_dim"]

    @contextmanager
    def units(tokens: int, count: int) -> Iterator[None]:
        plain = unet.attn_processors
        replaced = dict(plain)
        for path in plain:
            attention = unet.get_submodule(path.removesuffix(".processor"))
            if path.endswith("attn2.processor"):
                made = IPAdapterAttnProcessor2_0(
                    attention.to_q.out_features, width, num_tokens=[tokens] * count, scale=0.5
                )
                replaced[path] = made.to(device, dtype)
        text = arguments["encoder_hidden_states"]
        unet.set_attn_processor(replaced)
        arguments["encoder_hidden_states"] = (text, [text.new_zeros(2, tokens, width).normal_() for _ in range(count)])
        try:
            yield
        finally:
            unet.set_attn_processor(plain)
            arguments["encoder_hidden_states"] = text

    return Subject("diffusers processors", lambda: unet(**arguments), units)


def random_pair(tokens: int, width: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """K and V `(2, tokens, width)`."""
    key, value = (nn.init.normal_(torch.empty(2, tokens, width, device=device, dtype=dtype)) for _ in range(2))
    return key, value


def to_device(value: Any, device: str, dtype: torch.dtype) -> Any:
    """Move the tensors of a call's arguments."""
    if isinstance(value, dict):
        return {name: to_device(item, device, dtype) for name, item in value.items()}
    return value.to(device, dtype)


def table(results: list[Result], device: str) -> str:
    """The results as a markdown table."""
    name = torch.cuda.get_device_name() if device == "cuda" else "one CPU thread"
    lines = [
        f"UNet step with image prompts ÷ without; torch {torch.__version__}, {name}",
        "",
        "| model | pixels | dtype | code | tokens | units | plain ms | ratio | lowest-highest | fastest | pairs |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.model} | {r.pixels} | {r.dtype} | {r.implementation} | {r.tokens} | {r.units} | {r.plain_ms:.1f} "
        f"| {r.ratio:.3f} | {r.lowest:.3f}-{r.highest:.3f} | {r.fastest_ratio:.3f} | {r.pairs} |"
        for r in results
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
