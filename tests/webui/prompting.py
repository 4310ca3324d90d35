"""Jobs with image prompts on the stand-in host, and what their UNets really did; the fixture `prompting` hands one out.

`Watch` looks from outside, through torch's global hooks, so that nothing is attached to the UNet under test: per UNet
call the text of each row and what was added to each cross-attention. `RowByRow` is the reference: the same job without
our units, its UNet called once per row, with the image attention written down a second time, in plain softmax.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from lib_ipadapter.session import job as job_module
from lib_ipadapter.session.prepare import PreparedUnit
from tests.e2e.client import encoded, picture
from tests.sample_models import write_sample_models
from tests.webui.standin import StandIn
from tests.webui.standin.host import DEFAULTS, Result
from tests.webui.toys.record import record

RED, BLUE, GREEN = (encoded(picture(colour)) for colour in ((220, 20, 20), (20, 20, 220), (20, 200, 60)))
COND, UNCOND, NEITHER = 0, 1, -1
LONG = "a picture of " + ", ".join(f"thing {number}" for number in range(60))
TITLE = "IP-Adapter"
WARNING = "IP-Adapter warning"


@dataclass
class Call:
    """One call of a UNet: the kind of each row by its text, the step's fraction, and per attn2 (query, added, heads)."""

    unet: int
    kinds: list[int] = field(default_factory=list)
    fraction: float = 0.0
    layers: dict[int, tuple[Tensor, Tensor, int]] = field(default_factory=dict)


class Prompting:
    """The host with sample models, and the last jobs' latents, prepared units, `p` objects and answers."""

    def __init__(self, standin: StandIn, patch: pytest.MonkeyPatch) -> None:
        self.standin, self.patch = standin, patch
        self.is_forge = standin.flavour == "forge"
        self.latents: list[Tensor] = []
        self.prepared: list[PreparedUnit] = []
        self.jobs: list[Any] = []
        self._texts: list[tuple[str, int]] = []
        self.provide("sd15")
        self._spy()

    def provide(self, *kinds: str) -> None:
        """Make the checkpoints of these kinds, and adapters and an encoder that fit them."""
        self.standin.add_checkpoints(*kinds)
        for kind in kinds:
            checkpoint = self.standin.checkpoint_dir / f"{kind}.safetensors"
            folder = self.standin.data_dir / "models" / "ipadapter"
            suffix = "sdxl" if kind.startswith("sdxl") else "sd21" if kind.startswith("sd21") else "sd15"
            if not (folder / f"ip-adapter_{suffix}.safetensors").is_file():
                write_sample_models(checkpoint, folder)

    def _spy(self) -> None:
        from modules import processing_loop, processing_txt2img
        from modules.api import api

        for module in (processing_loop, processing_txt2img):
            decode = module.decode_latent_batch

            def keep(model: Any, batch: Tensor, *args: Any, _decode: Any = decode, **kwargs: Any) -> Any:
                self.latents.append(batch.detach().clone())
                return _decode(model, batch, *args, **kwargs)

            self.patch.setattr(module, "decode_latent_batch", keep)
        process, prepare = api.process_images, job_module.prepare_unit

        def process_images(p: Any) -> Any:
            self.jobs.append(p)
            return process(p)

        def prepare_unit(*args: Any, **kwargs: Any) -> PreparedUnit:
            made = prepare(*args, **kwargs)
            self.prepared[:] = [unit for unit in self.prepared if unit.number != made.number] + [made]
            return made

        self.patch.setattr(api, "process_images", process_images)
        self.patch.setattr(job_module, "prepare_unit", prepare_unit)

    def post(self, *units: Any, route: str = "txt2img", **payload: Any) -> Any:
        """The host's raw answer to a job with these units."""
        self.latents.clear(), self.prepared.clear(), self.jobs.clear(), record.steps.clear()
        payload = DEFAULTS | payload
        if route == "img2img":
            payload.setdefault("init_images", [GREEN])
        if self.is_forge and payload.get("enable_hr"):
            payload = {"hr_additional_modules": ["Use same choices"], "hr_cfg": payload["cfg_scale"]} | payload
        if units:
            payload["alwayson_scripts"] = {TITLE: {"args": list(units)}}
        texts = [payload["prompt"], payload.get("hr_prompt") or payload["prompt"]]
        self._texts = [(part.strip(), COND) for text in texts for part in text.split("AND")]
        self._texts.append((payload["negative_prompt"], UNCOND))
        return self.standin.post(route, payload)

    def run(self, *units: Any, **payload: Any) -> Result:
        """A job that must succeed."""
        answer = self.post(*units, **payload)
        assert answer.status_code == 200, answer.text
        assert not self.standin.reports, self.standin.reports
        return Result(answer.json())

    def refused(self, *units: Any, status: int = 422, **payload: Any) -> str:
        """A job that must be stopped before any block of a UNet ran; the sentence that says why."""
        with self.watch() as calls:
            answer = self.post(*units, **payload)
        assert answer.status_code == status, answer.text
        sentence = answer.json()["detail"]
        assert not any(call.layers for call in calls), "the UNet ran"
        assert_sentence(sentence)
        return sentence

    def kind(self, context: Tensor) -> int:
        """Whether a row's text `(tokens, width)` is the job's prompt or its negative prompt."""
        from modules.prompt_parser import encode_batch

        found = {
            kind
            for text, kind in self._texts
            if torch.equal(encode_batch([text], context.shape[-1])[0][:77], context[:77].float())
        }
        return found.pop() if len(found) == 1 else NEITHER

    @contextmanager
    def watch(self) -> Iterator[list[Call]]:
        """Collect the UNet calls made inside the block."""
        with _Watch(self) as watch:
            yield watch.calls

    def check_rows(self, calls: Sequence[Call]) -> None:
        """Every row of every call got, in every layer, what its text and the step's fraction ask for."""
        assert calls
        for call in calls:
            assert NEITHER not in call.kinds
            assert call.layers
            for key_id, (query, added, heads) in call.layers.items():
                expected = self.image_attention(key_id, query, call.kinds, call.fraction, heads)
                torch.testing.assert_close(added, expected, atol=2e-5, rtol=1e-4)

    def image_attention(self, key_id: int, query: Tensor, kinds: list[int], fraction: float, heads: int) -> Tensor:
        """What the prepared units add to the rows' attention `(rows, seq, width)`: the paper's formula, written out."""
        total = torch.zeros_like(query)
        rows, width = len(kinds), query.shape[-1]

        def split(tensor: Tensor) -> Tensor:
            return tensor.float().view(rows, -1, heads, width // heads).transpose(1, 2)

        for unit in self.prepared:
            start, end = unit.unit.start, unit.unit.end
            key, value = unit.kv.get(key_id, (torch.empty(0),) * 2)
            if key.shape[-1] != width or not start <= fraction or (fraction >= end and end < 1.0):
                continue
            scores = split(query) @ split(key[kinds]).transpose(2, 3) / (width // heads) ** 0.5
            attention = torch.softmax(scores, dim=-1) @ split(value[kinds])
            total += unit.unit.weight * attention.transpose(1, 2).reshape(query.shape)
        return total

    def reference(self, *, route: str = "txt2img", **payload: Any) -> list[Tensor]:
        """Latents of the same job computed row by row, with the last job's units and without our hooks."""
        prepared = list(self.prepared)
        with _RowByRow(self, prepared):
            answer = self.post(route=route, **payload)
        assert answer.status_code == 200, answer.text
        return list(self.latents)


class _GlobalHooks:
    """Base: hooks on every module of the process for a while; subclasses know a UNet's cross-attentions by identity."""

    def __init__(self, prompting: Prompting) -> None:
        self.prompting = prompting
        self.roles: dict[nn.Module, tuple[str, int, int]] = {}
        self._known: set[nn.Module] = set()

    def learn(self, unet: nn.Module) -> None:
        from lib_ipadapter.core.layers import find_cross_attention

        if unet in self._known:
            return
        self._known.add(unet)
        for layer in find_cross_attention(unet):
            for role in ("to_q", "to_k"):
                self.roles[layer.module.get_submodule(role)] = (role, layer.key_id, layer.module.heads)
            self.roles[layer.module.get_submodule("to_out.0")] = ("to_out", layer.key_id, layer.module.heads)

    def __enter__(self) -> Any:
        self._handles = [register_module_forward_pre_hook(self.before), register_module_forward_hook(self.after)]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def before(self, module: nn.Module, args: Any) -> Any:
        raise NotImplementedError

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        raise NotImplementedError


def _is_unet(module: nn.Module) -> bool:
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    return isinstance(module, UNetModel)


def step_fraction() -> float:
    """How much of the pass was done before the step under way, by the denoiser's own count."""
    return record.steps[-1]["step"] / record.steps[-1]["total"]


class _Watch(_GlobalHooks):
    def __init__(self, prompting: Prompting) -> None:
        super().__init__(prompting)
        self.calls: list[Call] = []
        self._query = self._before = None

    def before(self, module: nn.Module, args: Any) -> None:
        if _is_unet(module):
            self.learn(module)
            self.calls.append(Call(id(module), fraction=step_fraction() if record.steps else 0.0))
        elif self.roles.get(module, ("",))[0] == "to_out":
            self._before = args[0]

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        if module not in self.roles:
            return
        role, key_id, heads = self.roles[module]
        call = self.calls[-1]
        if role == "to_k" and not call.kinds:
            call.kinds = [self.prompting.kind(row) for row in args[0]]
        elif role == "to_q":
            self._query = output
        elif role == "to_out":
            call.layers[key_id] = (self._query, args[0] - self._before, heads)


class _RowByRow(_GlobalHooks):
    def __init__(self, prompting: Prompting, prepared: list[PreparedUnit]) -> None:
        super().__init__(prompting)
        self.units, self.kind, self.query = prepared, NEITHER, None

    def __enter__(self) -> Any:
        from ldm.modules.diffusionmodules.openaimodel import UNetModel

        whole = UNetModel.forward

        def by_row(unet: Any, x: Tensor, timesteps: Any = None, context: Any = None, y: Any = None, **more: Any) -> Any:
            self.learn(unet)
            rows = []
            for row in range(x.shape[0]):
                self.kind = self.prompting.kind(context[row])
                assert self.kind != NEITHER
                one = slice(row, row + 1)
                given = {} if y is None else {"y": y[one]}
                rows.append(whole(unet, x[one], timesteps[one], context=context[one], **given, **more))
            return torch.cat(rows)

        self.prompting.patch.setattr(UNetModel, "forward", by_row)
        self._restore = lambda: self.prompting.patch.setattr(UNetModel, "forward", whole)
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        self._restore()
        super().__exit__()

    def before(self, module: nn.Module, args: Any) -> Any:
        role, key_id, heads = self.roles.get(module, ("", 0, 0))
        if role != "to_out":
            return None
        self.prompting.prepared[:] = self.units
        added = self.prompting.image_attention(key_id, self.query, [self.kind], step_fraction(), heads)
        return (args[0] + added,)

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.roles.get(module, ("",))[0] == "to_q":
            self.query = output


def assert_sentence(text: str) -> None:
    """One or two sentences for people: no traceback, not empty, ended."""
    assert text
    assert "Traceback" not in text
    assert "\n" not in text
    assert text.rstrip().endswith((".", ")"))


def assert_same_latents(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
    """Equal to 1e-4 of the latents' own size."""
    assert len(ours) == len(reference) > 0
    for one, other in zip(ours, reference, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-4 * max(1.0, float(other.abs().max()))
