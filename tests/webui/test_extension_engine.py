"""IdentityNet run by the ControlNet extension on the stand-in host: the built-in engine's picture, or a sentence."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from lib_ipadapter.hosts import a1111_controlnet_units
from lib_ipadapter.library.headers import read_header
from tests.core.random_controlnets import ldm_controlnet, random_controlnet, save_controlnet
from tests.sample_models import IDENTITY_NET, identity_net_of
from tests.webui.prompting import LONG, WARNING, Prompting, assert_same_latents
from tests.webui.test_faces import ANNA, BERT, NOBODY, half_mask
from tests.webui.test_instantid import POSE

UNIT = {"intent": "instantid", "images": [ANNA], "weight": 0.9, "net_weight": 0.7}
THROUGH = {**UNIT, "net_engine": "controlnet"}
JOBS: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "batch": {"batch_size": 2, "n_iter": 2},
    "hires": {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7},
    "inpaint only masked": {
        "route": "img2img", "denoising_strength": 0.8, "mask": half_mask(), "inpaint_full_res": True,
    },
    "long prompt": {"prompt": LONG},
    "cfg 1": {"cfg_scale": 1.0},
}  # fmt: skip


class Extended:
    """The host with its ControlNet extension; `script` is A1111's, None on Forge."""

    def __init__(self, prompting: Prompting, script: Any, depth: str) -> None:
        self.prompting, self.script, self.depth = prompting, script, depth


@pytest.fixture
def extended(prompting: Prompting, monkeypatch: pytest.MonkeyPatch) -> Iterator[Extended]:
    """Beside InstantID's halves there is a depth ControlNet; on Forge all of them in ldm's layout."""
    folder = prompting.standin.data_dir / "models" / "ipadapter"
    spec = identity_net_of(prompting.standin.checkpoint_dir / "sd15.safetensors")
    net = folder / IDENTITY_NET.format("sd15")
    kept = net.with_suffix(".kept")
    shutil.copy(net, kept)
    depth = save_controlnet(folder / "control_depth_sd15.safetensors", ldm_controlnet(spec, random_controlnet(spec, 9)))
    script = None
    if prompting.is_forge:
        save_controlnet(net, ldm_controlnet(spec, random_controlnet(spec, 0)))
    else:
        from tests.webui.standin import controlnet_a1111

        monkeypatch.setattr(a1111_controlnet_units, "WIDTHS", {spec.channels})
        monkeypatch.setattr(a1111_controlnet_units, "HINT_WIDTHS", spec.hint_widths)
        script = controlnet_a1111.install(prompting.standin, monkeypatch, [folder])
    yield Extended(prompting, script, depth.stem)
    kept.replace(net)
    depth.unlink()


def test_the_fixture_has_both_layouts(extended: Extended) -> None:
    folder = extended.prompting.standin.data_dir / "models" / "ipadapter"
    names = read_header(folder / IDENTITY_NET.format("sd15")).tensors
    assert any(name.startswith("control_model.") for name in names) == extended.prompting.is_forge


@pytest.mark.parametrize("job", JOBS)
def test_both_engines_make_the_same_picture(extended: Extended, job: str) -> None:
    prompting = extended.prompting
    plain = prompting.run(**JOBS[job]).pixels
    builtin = prompting.run(UNIT, **JOBS[job])
    ours = list(prompting.latents)
    through = prompting.run(THROUGH, **JOBS[job])
    assert_same_latents(ours, prompting.latents)
    count = len(builtin.images)
    sizes = [image.size for image in through.images[count:]]
    assert sizes == [(64, 64), (96, 96)][: 2 if job == "hires" else 1], "its map appears among the extension's"
    assert all(image.getextrema()[0] == (0, 255) for image in through.images[count:])
    assert "ControlNet" not in through.infotexts[0].replace('\\"net_engine\\":\\"controlnet\\"', "")
    assert WARNING not in through.infotexts[0]
    assert prompting.run(**JOBS[job]).pixels == plain


def test_its_strength_and_window_are_ours(extended: Extended) -> None:
    prompting = extended.prompting
    whole = prompting.run(THROUGH, steps=4).pixels[0]
    for fields in ({"net_start": 0.5}, {"net_end": 0.5}, {"net_weight": 1.6}):
        prompting.run({**UNIT, **fields}, steps=4)
        ours = list(prompting.latents)
        assert prompting.run({**THROUGH, **fields}, steps=4).pixels[0] != whole
        assert_same_latents(ours, prompting.latents)


def controlnet_job(extended: Extended, *units: Any) -> list[Any]:
    """Latents of a job with one depth unit of the extension's own: a unit in its first place, or on Forge a patcher."""
    prompting = extended.prompting
    if not prompting.is_forge:
        picture = [[[16 * (x // 8), 16 * (y // 8), 128] for x in range(64)] for y in range(64)]
        unit = {"enabled": True, "model": depth_name(extended), "image": picture, "weight": 0.6}
        scripts = {"ControlNet": {"args": [unit]}}
        if units:
            scripts["IP-Adapter"] = {"args": list(units)}
        answer = prompting.post(alwayson_scripts=scripts)
        assert answer.status_code == 200, answer.text
        assert not prompting.standin.reports
        return list(prompting.latents)
    with depth_on_forge(extended):
        prompting.run(*units)
    return list(prompting.latents)


def depth_name(extended: Extended) -> str:
    return next(name for name in extended.script.models if name.startswith(extended.depth))


def depth_on_forge(extended: Extended) -> Any:
    """The host's own ControlNet script runs before ours in `process_before_every_sampling`."""
    from contextlib import contextmanager

    import torch
    from backend.patcher.controlnet import apply_controlnet_advanced
    from modules import scripts
    from modules_forge.shared import try_load_supported_control_model

    path = extended.prompting.standin.data_dir / "models" / "ipadapter" / f"{extended.depth}.safetensors"
    model = try_load_supported_control_model(str(path)).model_patcher
    hint = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))

    class Depth(scripts.Script):
        alwayson, filename, args_from, args_to = True, __file__, 0, 0

        def title(self) -> str:
            return "Depth"

        def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
            objects = p.sd_model.forge_objects
            objects.unet = apply_controlnet_advanced(objects.unet, model, hint, 0.6, 0.0, 1.0)

    @contextmanager
    def put() -> Iterator[None]:
        runner = scripts.scripts_txt2img
        runner.alwayson_scripts.insert(0, Depth())
        try:
            yield
        finally:
            del runner.alwayson_scripts[0]

    return put()


def test_a_controlnet_unit_beside_either_engine_does_what_it_does(extended: Extended) -> None:
    prompting = extended.prompting
    alone = controlnet_job(extended)
    prompting.run()
    assert not (alone[0] - prompting.latents[0]).abs().max() < 1e-3
    both = controlnet_job(extended, UNIT)
    assert_same_latents(both, controlnet_job(extended, THROUGH))
    assert not (both[0] - alone[0]).abs().max() < 1e-3
    again = controlnet_job(extended)
    assert all((one == other).all() for one, other in zip(alone, again, strict=True))


def test_what_it_cannot_do_is_said_before_sampling(extended: Extended) -> None:
    prompting = extended.prompting
    plain = prompting.run().pixels
    assert "prompt and negative" in prompting.refused({**THROUGH, "net_rows": "cond"})
    assert "regions" in prompting.refused({**THROUGH, "region": "left"})
    prompting.provide("sd15-b")
    refiner = {"refiner_checkpoint": "sd15-b.safetensors", "refiner_switch_at": 0.5}
    assert "second one" in prompting.refused(THROUGH, **refiner)
    assert prompting.run({**THROUGH, "keypoints": "none"}).pixels == prompting.run({**UNIT, "keypoints": "none"}).pixels
    assert prompting.run().pixels == plain


def test_several_people(extended: Extended) -> None:
    """They blend: a part of the picture for each is nothing that the extension's net can keep to."""
    prompting = extended.prompting
    ours, theirs = ({**fields, "region": "everywhere"} for fields in (UNIT, THROUGH))
    others = {**ours, "images": [BERT]}, {**theirs, "images": [BERT]}
    prompting.run(ours, others[0])
    expected = list(prompting.latents)
    if prompting.is_forge:
        prompting.run(theirs, others[1])
        assert_same_latents(expected, prompting.latents)
    else:
        assert "takes one person" in prompting.refused(theirs, others[1])
    prompting.run(theirs, others[0])
    assert_same_latents(expected, prompting.latents)
    people = {**THROUGH, "pose": [POSE]}, {**UNIT, "images": [BERT], "pose": [POSE]}
    assert "cannot keep to one" in prompting.refused(*people)


def test_a_file_that_forge_cannot_read_is_named(extended: Extended) -> None:
    if not extended.prompting.is_forge:
        pytest.skip("A1111's extension is asked for names")
    folder = extended.prompting.standin.data_dir / "models" / "ipadapter"
    (folder / IDENTITY_NET.format("sd15")).with_suffix(".kept").replace(folder / IDENTITY_NET.format("sd15"))
    shutil.copy(folder / IDENTITY_NET.format("sd15"), folder / "control_instant_id_sd15.kept")
    plain = extended.prompting.run().pixels
    assert "ldm's layout" in extended.prompting.refused(THROUGH)
    assert extended.prompting.run().pixels == plain


def test_forge_is_left_as_it_was(extended: Extended) -> None:
    if not extended.prompting.is_forge:
        pytest.skip("the Forge family's patcher")
    from backend import memory_management
    from modules import shared

    with_net: list[int] = []
    load = memory_management.load_models_gpu

    def note(models: Any, *args: Any, **kwargs: Any) -> None:
        with_net.append(sum(type(one.model).__name__ == "ControlModel" for one in models))
        load(models, *args, **kwargs)

    extended.prompting.patch.setattr(memory_management, "load_models_gpu", note)
    extended.prompting.run(THROUGH)
    assert sum(with_net) == 1, "the host loads the net with the UNet"
    assert shared.sd_model.forge_objects.unet.controlnet_linked_list is None
    assert not any(type(one.model).__name__ == "ControlModel" for one in memory_management.current_loaded_models)


@pytest.mark.parametrize("place", ["middle_block", "output_blocks"])
def test_forge_with_a_reshaped_unet_is_refused(extended: Extended, place: str) -> None:
    """The host would leave the residual out and print a line (Kohya HRFix)."""
    if not extended.prompting.is_forge:
        pytest.skip("the Forge family's UNet")
    from modules import shared

    unet = shared.sd_model.forge_objects.unet.model.diffusion_model
    if place == "middle_block":
        layer = unet.middle_block[len(unet.middle_block) - 1]
        handle = layer.register_forward_hook(lambda module, args, out: out[..., :1])
    else:
        layer = unet.output_blocks[4][0]
        handle = layer.register_forward_pre_hook(lambda module, args: (args[0][..., :1], *args[1:]))
    try:
        answer = extended.prompting.post(THROUGH, width=128, height=128)
    finally:
        handle.remove()
    assert answer.status_code == 422, answer.status_code
    assert answer.json()["detail"].startswith(place)
    assert "Kohya HRFix" in answer.json()["detail"]


class TestA1111:
    """The extension's units."""

    @pytest.fixture(autouse=True)
    def only_there(self, extended: Extended) -> None:
        if extended.prompting.is_forge:
            pytest.skip("sd-webui-controlnet is A1111's")

    def job(self, extended: Extended, unit: Any, *of_controlnet: Any) -> Any:
        scripts = {"ControlNet": {"args": list(of_controlnet)}, "IP-Adapter": {"args": [unit]}}
        return extended.prompting.post(alwayson_scripts=scripts)

    def sentence(self, extended: Extended, unit: Any, *of_controlnet: Any) -> str:
        answer = self.job(extended, unit, *of_controlnet)
        assert answer.status_code == 422, answer.text
        return answer.json()["detail"]

    def depth(self, extended: Extended, **fields: Any) -> dict[str, Any]:
        return {"enabled": True, "model": depth_name(extended), "image": [[[0, 99, 0]] * 64] * 64, **fields}

    def test_the_users_units_keep_their_places(
        self, extended: Extended, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[list[str]] = []
        made = type(extended.script)
        process = made.process

        def note(script: Any, p: Any, *args: Any) -> None:
            seen.append([(unit if isinstance(unit, dict) else vars(unit))["model"].split(" ")[0] for unit in args])
            process(script, p, *args)

        monkeypatch.setattr(made, "process", note)
        depth, off = self.depth(extended), {"enabled": False}
        halves = ["ip-adapter_instant_id_sd15", "control_instant_id_sd15"]
        for given, expected in (
            ([], ["None", *halves]),
            ([depth], [extended.depth, *halves]),
            ([off | {"model": "None"}, off | {"model": "None"}, depth], [*halves, extended.depth]),
        ):
            answer = self.job(extended, THROUGH, *given)
            assert answer.status_code == 200, answer.text
            assert seen.pop() == expected
            p = extended.prompting.jobs[-1]
            script = extended.script
            now = p.script_args[script.args_from : script.args_to]
            assert [unit for unit in now if isinstance(unit, dict)] == given, "the job has its own units again"
            text = answer.json()["info"]
            assert ("ControlNet 0: " in text) == (depth in given)
            assert "ControlNet 1" not in text
        depth_last = [off | {"model": "None"}, depth, off | {"model": "None"}]
        assert "neighbouring" in self.sentence(extended, THROUGH, *depth_last)
        assert "2 of its 3 are in use" in self.sentence(extended, THROUGH, depth, depth)

    def test_nothing_of_ours_stays_in_the_extension(self, extended: Extended) -> None:
        from modules import shared

        cache = type(extended.script).model_cache
        self.job(extended, THROUGH, self.depth(extended))
        assert [name.split(" ")[0] for name in cache] == [extended.depth]
        assert extended.script.latest_network is None
        assert "forward" not in vars(shared.sd_model.model.diffusion_model)

    def test_a_failure_leaves_the_unet_too(self, extended: Extended, monkeypatch: pytest.MonkeyPatch) -> None:
        from modules import shared

        from lib_ipadapter.hosts.extension_nets import FaceRows

        plain = extended.prompting.run().pixels

        def fail(*_args: Any) -> Any:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(FaceRows, "context", fail)
            assert self.job(extended, THROUGH).status_code >= 400
        assert "forward" not in vars(shared.sd_model.model.diffusion_model)
        extended.prompting.standin.reports.clear()
        assert extended.prompting.run().pixels == plain

    def test_going_on_without_leaves_the_extensions_own_units(self, extended: Extended) -> None:
        from modules import shared

        depth = self.depth(extended)
        self.job(extended, {**UNIT, "enabled": False}, depth)
        alone = list(extended.prompting.latents)
        shared.opts.set("ipadapter_on_failure", "continue with a warning")
        self.job(extended, {**THROUGH, "pose": [NOBODY]}, depth)
        assert_same_latents(alone, extended.prompting.latents)

    def test_a_unit_that_fails_there_stops_the_job(self, extended: Extended) -> None:
        assert "dropped its units" in self.sentence(extended, THROUGH, self.depth(extended, model="nowhere"))
        extended.prompting.standin.reports.clear()

    @pytest.mark.parametrize("half", [0, 1])
    def test_halves_it_does_not_list_or_know(
        self, extended: Extended, half: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        models, api = extended.script.models, a1111_controlnet_units.sys.modules[a1111_controlnet_units.API]
        name = sorted((one for one in models if "instant_id_sd15" in one), reverse=True)[half]
        listed = api.global_state.cn_models
        with monkeypatch.context() as patch:
            patch.delitem(listed, name)
            sentence = self.sentence(extended, THROUGH)
            assert "does not list" in sentence
            assert name.split(" ")[0] in sentence
        with monkeypatch.context() as patch:
            patch.setattr(a1111_controlnet_units, "MARK", "other_mark")
            assert "rename the file" in self.sentence(extended, THROUGH)

    def test_widths_and_the_batch_option(self, extended: Extended, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(a1111_controlnet_units, "WIDTHS", {(320, 640, 1280, 1280)})
            assert "SD1.5 and SDXL only" in self.sentence(extended, THROUGH)
        monkeypatch.setattr(
            extended.script, "ui_batch_option_state", ["Each ControlNet unit for each image in a batch", False]
        )
        assert "batch option" in self.sentence(extended, THROUGH)

    def test_without_the_extension(self, extended: Extended, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(a1111_controlnet_units.sys.modules, a1111_controlnet_units.API)
        assert "not installed" in self.sentence(extended, THROUGH)
