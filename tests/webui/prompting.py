"""Jobs with image prompts on the stand-in host, and what their UNets really did; the fixture `prompting` hands one out.

`watching` has the two instruments: `watch` for what each row of each UNet call got, `reference` for the same job
computed row by row without our hooks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_ipadapter.session import ready as ready_module
from lib_ipadapter.session.prepare import PreparedUnit
from tests.e2e.client import encoded, picture
from tests.sample_models import write_sample_models
from tests.webui.standin import StandIn
from tests.webui.standin.host import DEFAULTS, Result
from tests.webui.toys.record import record
from tests.webui.watching import COND, NEITHER, UNCOND, Call, RowByRow, Watch

RED, BLUE, GREEN = (encoded(picture(colour)) for colour in ((220, 20, 20), (20, 20, 220), (20, 200, 60)))
LONG = "a picture of " + ", ".join(f"thing {number}" for number in range(60))
TITLE = "IP-Adapter"
WARNING = "IP-Adapter warning"


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
        process, prepare = api.process_images, ready_module.prepare_unit

        def process_images(p: Any) -> Any:
            self.jobs.append(p)
            return process(p)

        def prepare_unit(*args: Any, **kwargs: Any) -> PreparedUnit:
            made = prepare(*args, **kwargs)
            self.prepared[:] = [unit for unit in self.prepared if unit.number != made.number] + [made]
            return made

        self.patch.setattr(api, "process_images", process_images)
        self.patch.setattr(ready_module, "prepare_unit", prepare_unit)

    def post(self, *units: Any, route: str = "txt2img", **payload: Any) -> Any:
        """The host's raw answer to a job with these units."""
        for kept in (self.latents, self.prepared, self.jobs, record.steps, self.standin.reports):
            kept.clear()
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
        with Watch(self.kind) as watch:
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
        units = list(self.prepared)

        def attention(*args: Any) -> Tensor:
            self.prepared[:] = units
            return self.image_attention(*args)

        with RowByRow(self.kind, attention):
            answer = self.post(route=route, **payload)
        assert answer.status_code == 200, answer.text
        return list(self.latents)


def assert_sentence(text: str) -> None:
    """One or two sentences for people: no traceback, not empty, ended."""
    assert text
    assert "Traceback" not in text
    assert "\n" not in text
    assert text.rstrip().endswith((".", ")", "?"))


def assert_same_latents(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
    """Equal to 1e-4 of the latents' own size."""
    assert len(ours) == len(reference) > 0
    for one, other in zip(ours, reference, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-4 * max(1.0, float(other.abs().max()))
