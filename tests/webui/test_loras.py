"""A FaceID LoRA through the host's own machinery: as if it had been typed, never twice, and gone after the job.

The reference is the host: the same LoRA typed into the prompt. Units ask for the LoRA of a FaceID file beside the
adapter that they use, since their own adapters have none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_ipadapter.library.detection import inspect_file
from lib_ipadapter.library.files import fingerprint
from lib_ipadapter.session import ready as ready_module
from lib_ipadapter.session.loras import TYPED, LoraRequest
from tests.core.random_adapters import save_adapter
from tests.core.random_loras import companion_tensors, faceid_tensors, save_companion
from tests.sample_models import cross_attentions
from tests.webui.as_found import Around, host, unet
from tests.webui.prompting import BLUE, RED, WARNING, Prompting, assert_same_latents

UNIT = {"images": [RED], "weight": 0.8}
HIRES = {"enable_hr": True, "hr_scale": 2.0, "denoising_strength": 0.6, "hr_upscaler": "Latent"}
PROMPT = "a red house"


class Loras:
    """The LoRA that units ask for, by their numbers at `strengths`, and its companion where the user keeps LoRAs."""

    def __init__(self, prompting: Prompting, folder: Path) -> None:
        self.prompting, self.folder = prompting, folder
        self.strengths: dict[int, float] = {}
        self.paths: dict[int, Path] = {}
        self.use("sd15")
        prompting.patch.setattr(ready_module, "lora_request", self._request)

    def use(self, kind: str, seed: int = 7) -> None:
        """Make the files for a checkpoint; the companion is called `face`, and `other` is another LoRA."""
        from modules import shared

        widths, context = cross_attentions(self.prompting.standin.checkpoint_dir / f"{kind}.safetensors")
        base = "SDXL" if kind.startswith("sdxl") else "SD2" if kind.startswith("sd21") else "SD1"
        for name, extra in (("face", 0), ("other", 50)):
            tensors = faceid_tensors(context, widths, seed=seed + extra, dtype=torch.float32)
            self.paths[extra] = save_adapter(self.folder / f"{name}-{kind}.safetensors", tensors)
            save_companion(Path(shared.cmd_opts.lora_dir) / f"{name}.safetensors", companion_tensors(tensors, base))
        sys.modules["networks"].list_available_networks()

    def _request(self, unit: Any) -> LoraRequest:
        path = self.paths[0]
        spec = inspect_file(path).adapter
        assert spec is not None
        return LoraRequest(unit.number, self.strengths.get(unit.number, 0.0), spec, path, fingerprint(path))

    def latents(self, *units: Any, strengths: tuple[float, ...] = (), **payload: Any) -> list[Tensor]:
        """A job's latents, with these strengths for its units."""
        self.strengths = dict(enumerate(strengths, start=1))
        self.prompting.run(*(units or (UNIT,)), **payload)
        return list(self.prompting.latents)


@pytest.fixture
def loras(prompting: Prompting, tmp_path: Path) -> Loras:
    return Loras(prompting, tmp_path)


def differ(one: list[Tensor], other: list[Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def told(prompting: Prompting, number: int = 1) -> str | None:
    return json.loads(prompting.jobs[-1].extra_generation_params[f"IP-Adapter unit {number}"])["ran"].get("lora")


JOBS: dict[str, dict[str, Any]] = {
    "one pass": {},
    "batches": {"n_iter": 2, "batch_size": 2},
    "hires": HIRES,
    "second order": {"sampler_name": "Heun"},
    "img2img": {"route": "img2img"},
}


@pytest.mark.parametrize("name", JOBS)
def test_it_is_as_if_it_had_been_typed(prompting: Prompting, loras: Loras, name: str) -> None:
    without = loras.latents(**JOBS[name])
    ours = loras.latents(strengths=(0.6,), **JOBS[name])
    typed = loras.latents(prompt=f"{PROMPT}<lora:face:0.6>", **JOBS[name])
    assert_same_latents(ours, typed)
    assert all(differ([a], [b]) for a, b in zip(ours, without, strict=True)), "in every pass"
    assert not differ(loras.latents(**JOBS[name]), without)


def test_it_grows_with_its_strength(loras: Loras) -> None:
    plain = loras.latents()[0]
    distances = [float((loras.latents(strengths=(s,))[0] - plain).norm()) for s in (0.1, 0.3, 0.6)]
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_on_sdxl(prompting: Prompting, loras: Loras) -> None:
    prompting.provide("sdxl")
    prompting.standin.select("sdxl")
    loras.use("sdxl")
    ours = loras.latents(strengths=(0.6,))
    assert_same_latents(ours, loras.latents(prompt=f"{PROMPT}<lora:face:0.6>"))
    assert differ(ours, loras.latents())


def test_it_is_on_whatever_the_window(prompting: Prompting, loras: Loras) -> None:
    half = UNIT | {"start": 0.5}
    assert_same_latents(loras.latents(half, strengths=(0.6,), steps=4),
                        loras.latents(half, prompt=f"{PROMPT}<lora:face:0.6>", steps=4))  # fmt: skip


def test_one_that_was_typed_is_not_put_on_twice(prompting: Prompting, loras: Loras) -> None:
    prompt = f"{PROMPT}<lora:face:0.4>"
    typed = loras.latents(prompt=prompt)
    both = loras.latents(strengths=(0.6,), prompt=prompt)
    assert not differ(both, typed)
    assert told(prompting) == TYPED
    other = loras.latents(strengths=(0.6,), prompt=f"{PROMPT}<lora:other:0.4>")
    assert told(prompting) != TYPED
    assert_same_latents(other, loras.latents(prompt=f"{PROMPT}<lora:face:0.6><lora:other:0.4>"))


def test_typed_in_the_hires_prompt_alone(prompting: Prompting, loras: Loras) -> None:
    """On from the units in the first pass, from the prompt in the second."""
    ours = loras.latents(strengths=(0.6,), **HIRES, hr_prompt=f"{PROMPT}<lora:face:0.4>")
    said = told(prompting)
    assert said is not None
    assert said.endswith(f" at 0.6, then {TYPED}"), "each pass is told of"
    prompts = {"prompt": f"{PROMPT}<lora:face:0.6>", "hr_prompt": f"{PROMPT}<lora:face:0.4>"}
    assert_same_latents(ours, loras.latents(**HIRES, **prompts))


def test_two_units_bring_it_once_at_the_larger_strength(prompting: Prompting, loras: Loras) -> None:
    units = (UNIT, {"images": [BLUE], "weight": 0.3})
    ours = loras.latents(*units, strengths=(0.3, 0.6))
    assert_same_latents(ours, loras.latents(*units, prompt=f"{PROMPT}<lora:face:0.6>"))
    loras.latents(*units, strengths=(0.3, 0.6))
    assert told(prompting, 1) == told(prompting, 2)


def test_a_unit_with_weight_0_brings_none(prompting: Prompting, loras: Loras) -> None:
    units = (UNIT, {"images": [BLUE], "weight": 0.0})
    assert not differ(loras.latents(*units, strengths=(0.0, 0.6)), loras.latents())


def test_the_infotext_says_it(prompting: Prompting, loras: Loras) -> None:
    loras.strengths = {1: 0.6}
    result = prompting.run(UNIT)
    assert " at 0.6" in result.infotexts[0]
    assert "<lora" not in result.infotexts[0]
    assert result.info["prompt"] == PROMPT
    assert "ipadapter-" not in result.infotexts[0]


def test_the_jobs_random_numbers_stay_its_own(prompting: Prompting, loras: Loras) -> None:
    """Making the host's modules draws none."""
    states: list[Tensor] = []
    handle = unet().register_forward_pre_hook(lambda *_: states.append(torch.random.get_rng_state()))
    try:
        for strength in (0.0, 0.6):
            torch.manual_seed(5)
            loras.latents(strengths=(strength,), steps=1)
    finally:
        handle.remove()
    assert len(states) == 2
    assert torch.equal(*states)


# -- afterwards


def weights() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in unet().state_dict().items()}


@pytest.mark.parametrize("name", JOBS)
def test_after_success(loras: Loras, around: Around, name: str) -> None:
    before = weights()
    around(lambda: loras.latents(strengths=(0.6,), **JOBS[name]))
    after = weights()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert on() == []


def on() -> list[str]:
    """What of ours is on the host's list, or in the place of the UNet's patcher."""
    from modules import shared

    names = [net.name for net in sys.modules["networks"].loaded_networks]
    if hasattr(shared.sd_model, "forge_objects"):
        names += [key[0] for key in shared.sd_model.forge_objects.unet.lora_patches]
    return [name for name in names if name.startswith("ipadapter-")]


def test_the_weights_are_merged_and_not_computed_in_each_call(loras: Loras) -> None:
    before, merged = weights(), []
    handle = unet().register_forward_hook(lambda *_: merged.append(weights()))
    try:
        loras.latents(strengths=(0.6,), steps=1)
    finally:
        handle.remove()
    changed = [name for name, tensor in merged[0].items() if not torch.equal(tensor, before[name])]
    assert len(changed) == 128


@pytest.mark.parametrize("how", ["interrupt", "skip"])
def test_after_stopping_the_job(prompting: Prompting, loras: Loras, around: Around, how: str) -> None:
    from modules import script_callbacks, shared

    def stop(_params: Any) -> None:
        getattr(shared.state, how)()

    def job() -> None:
        script_callbacks.on_cfg_after_cfg(stop, name="stop")
        try:
            loras.latents(strengths=(0.6,), steps=4)
        finally:
            script_callbacks.remove_callbacks_for_function(stop)
        assert on() == []

    around(job)


@pytest.mark.parametrize("call", [1, 2])
def test_after_an_error_inside_the_unet(prompting: Prompting, loras: Loras, around: Around, call: int) -> None:
    calls: list[Any] = []

    def fail(module: Any, _args: Any, _output: Any) -> None:
        calls.append(module)
        if len(calls) == call:
            raise RuntimeError("told to fail")

    def job() -> None:
        loras.strengths = {1: 0.6}
        handle = unet().get_submodule("middle_block.0").register_forward_hook(fail)
        try:
            assert prompting.post(UNIT).status_code == 500
        finally:
            handle.remove()
        assert on() == []

    around(job)


def test_after_another_scripts_error(prompting: Prompting, loras: Loras, around: Around, record: Any) -> None:
    def job() -> None:
        loras.strengths = {1: 0.6}
        record.fail_in = "process_before_every_sampling"
        assert prompting.post(UNIT).status_code == 200
        record.fail_in = ""

    around(job)


def test_after_a_unit_that_failed_in_mid_pass_the_rest_has_no_lora(
    prompting: Prompting, loras: Loras, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after the failure is what it would be with neither the picture nor its LoRA."""
    from modules import shared

    from lib_ipadapter.hosts.forge import OptionsReader
    from lib_ipadapter.hosts.rows import SequenceReader

    merged: list[bool] = []
    before = weights()

    def fail_later(method: Callable[..., Any]) -> Callable[..., Any]:
        def read(self: Any, *args: Any) -> Any:
            if len(merged) == 2:
                raise RuntimeError("told to fail")
            return method(self, *args)

        return read

    shared.opts.set("ipadapter_on_failure", "continue with a warning")
    name = next(key for key in before if key.endswith("attn1.to_q.weight"))
    handle = unet().register_forward_hook(
        lambda module, *_: merged.append(not torch.equal(module.state_dict()[name], before[name]))
    )
    for reader in (OptionsReader, SequenceReader):
        monkeypatch.setattr(reader, "__call__", fail_later(reader.__call__))
    try:
        loras.latents(strengths=(0.6,), steps=4)
    finally:
        handle.remove()
    assert WARNING in prompting.jobs[-1].extra_generation_params
    assert merged == [True, True, False, False]


def test_two_jobs_with_different_strengths(loras: Loras) -> None:
    first = loras.latents(strengths=(0.6,))
    second = loras.latents(strengths=(0.2,))
    assert differ(first, second)
    assert not differ(loras.latents(strengths=(0.6,)), first)


# -- other checkpoints in one job


def test_a_refiner_takes_it_over(prompting: Prompting, loras: Loras) -> None:
    """The first checkpoint's weights are put right as well. A refiner's pass has its own, merged in mid-pass."""
    first, second = ("sd15", "sd15-b") if prompting.is_forge else ("sd15-inpainting", "sd15")
    prompting.provide(first, second)
    prompting.standin.select(first)
    loras.use(first)
    refiner = {"refiner_checkpoint": f"{second}.safetensors", "refiner_switch_at": 0.5, "steps": 4}
    without = loras.latents(**refiner)
    merged: list[bool] = []
    plain: dict[int, Tensor] = {}

    def note(module: Any, *_: Any) -> None:
        weight = module.get_submodule("input_blocks.1.1.transformer_blocks.0.attn1.to_q").weight
        if id(module) not in plain:
            plain[id(module)] = plain_weight(prompting, module.in_channels, len(plain))
        merged.append(not torch.equal(weight, plain[id(module)]))

    files = [first, second]

    def plain_weight(prompting: Prompting, _channels: int, number: int) -> Tensor:
        from safetensors.torch import load_file

        path = prompting.standin.checkpoint_dir / f"{files[number]}.safetensors"
        key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
        return load_file(path)[key]

    nets: list[torch.nn.Module] = []
    method = type(host()).unet

    def watched(self: Any, p: Any) -> Any:
        net = method(self, p)
        if not any(net is seen for seen in nets):
            nets.append(net)
            net.register_forward_hook(note)
        return net

    prompting.patch.setattr(type(host()), "unet", watched)
    ours = loras.latents(strengths=(0.6,), **refiner)
    for net in nets:
        net._forward_hooks.clear()
    assert merged == [True] * 4
    assert differ(ours, without)
    assert told(prompting).endswith(" at 0.6")  # type: ignore[union-attr]
    prompting.patch.undo()


def test_a_hires_checkpoint_of_the_same_layout(prompting: Prompting, loras: Loras) -> None:
    prompting.provide("sd15", "sd15-b")
    how = HIRES | {"hr_checkpoint_name": "sd15-b.safetensors"}
    ours = loras.latents(strengths=(0.6,), **how)
    assert_same_latents(ours, loras.latents(prompt=f"{PROMPT}<lora:face:0.6>", **how))
    assert not differ(loras.latents(**how), loras.latents(**how))


# -- what cannot be done


def test_without_the_lora_extension(prompting: Prompting, loras: Loras, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Forge the machinery is the host's own; on A1111 it is the extension."""
    loras.strengths = {1: 0.6}
    monkeypatch.delitem(sys.modules, "networks")
    if prompting.is_forge:
        prompting.run(UNIT)
        assert told(prompting).endswith(" at 0.6")  # type: ignore[union-attr]
    else:
        sentence = prompting.refused(UNIT)
        assert "built-in Lora extension" in sentence
        assert "LoRA strength to 0" in sentence


def test_a_lora_of_other_widths(prompting: Prompting, loras: Loras) -> None:
    widths, context = cross_attentions(prompting.standin.checkpoint_dir / "sd15.safetensors")
    save_adapter(loras.paths[0], faceid_tensors(context, [2 * width for width in widths]))
    loras.strengths = {1: 0.6}
    sentence = prompting.refused(UNIT)
    assert "changes 128 layers, and 128 of them do not fit" in sentence


def test_where_the_host_fails_to_merge(prompting: Prompting, loras: Loras) -> None:
    """A1111 counts a layer's failure and goes on without it; Forge raises by itself."""
    if prompting.is_forge:
        pytest.skip("Forge raises by itself")
    import network_lora

    def fail(*_: Any) -> Any:
        raise RuntimeError("told to fail")

    merged = loras.latents(strengths=(0.6,))
    prompting.run()
    loras.strengths = {1: 0.6}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_lora.NetworkModuleLora, "calc_updown", fail)
        answer = prompting.post(UNIT)
    assert answer.status_code == 422
    assert "could not merge the adapter's LoRA into 128 of 128 layers" in answer.json()["detail"]
    assert not differ(loras.latents(strengths=(0.6,)), merged), "it is tried again"


def test_where_nothing_merges(prompting: Prompting, loras: Loras, monkeypatch: pytest.MonkeyPatch) -> None:
    """A1111: the extension was switched off and the page reloaded. Forge: another script put a UNet in its place."""
    prompting.run()
    loras.strengths = {1: 0.6}
    if prompting.is_forge:
        from modules import scripts, shared

        runner = scripts.scripts_txt2img
        after = runner.process_before_every_sampling

        def replacing(p: Any, **kwargs: Any) -> None:
            after(p, **kwargs)
            p.sd_model.forge_objects.unet = p.sd_model.forge_objects_original.unet

        monkeypatch.setattr(runner, "process_before_every_sampling", replacing)
        assert shared.sd_model is not None
        expected = "Another script replaced the UNet"
    else:
        import networks

        monkeypatch.setattr(torch.nn.Linear, "forward", networks._plain_forward)
        expected = "did not merge"
    answer = prompting.post(UNIT)
    assert answer.status_code == 422
    assert expected in answer.json()["detail"]


def test_the_functional_way_of_a1111(prompting: Prompting, loras: Loras) -> None:
    """A compatibility setting with which LoRAs are computed in each call."""
    from modules import shared

    merged = loras.latents(strengths=(0.6,))
    shared.opts.data["lora_functional"] = True
    ours = loras.latents(strengths=(0.6,))
    assert_same_latents(ours, loras.latents(prompt=f"{PROMPT}<lora:face:0.6>"))
    assert_same_latents(ours, merged)


def test_the_other_familys_patches(prompting: Prompting, loras: Loras, monkeypatch: pytest.MonkeyPatch) -> None:
    """reForge and Classic: patches have no name, and their reader answers with the patches alone, or with a pair."""
    if not prompting.is_forge:
        pytest.skip("of the Forge family")
    from backend.patcher.base import ModelPatcher

    from lib_ipadapter.hosts import forge_loras

    forge = loras.latents(strengths=(0.6,))
    named = ModelPatcher.add_patches

    def add_patches(self: Any, patches: Any, strength_patch: float = 1.0, strength_model: float = 1.0) -> list[str]:
        self.patches = {key: [(strength_patch, patch, strength_model)] for key, patch in patches.items()}
        name = str(id(next(iter(patches.values()))))
        return list(named(self, filename=name, patches=patches, strength_patch=strength_patch))

    monkeypatch.setattr(ModelPatcher, "add_patches", add_patches)
    machinery = forge_loras._machinery()
    both = machinery.load_lora
    monkeypatch.setattr(machinery, "load_lora", lambda *args: both(*args)[0])
    assert not differ(loras.latents(strengths=(0.6,)), forge)
