"""Jobs beside each other and after each other: threads share no state, results are kept within a bound and reused."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from lib_ipadapter.session import features, job, prepare
from tests.e2e.client import encoded, picture
from tests.webui.prompting import BLUE, GREEN, RED, Prompting
from tests.webui.standin.host import DEFAULTS

UNITS: dict[str, list[Any]] = {
    "plain": [],
    "red": [{"images": [RED]}],
    "blue, weak": [{"images": [BLUE], "weight": 0.4}],
    "two": [{"images": [GREEN], "end": 0.5}, {"images": [RED, BLUE], "adapter": "ip-adapter_sd15"}],
    "broken": [{"images": ["sha256:" + "1" * 64]}],
}


def from_api(prompting: Prompting, units: list[Any]) -> Any:
    scripts = {"alwayson_scripts": {"IP-Adapter": {"args": units}}} if units else {}
    answer = prompting.standin.post("txt2img", DEFAULTS | scripts)
    return answer.json()["images"] if answer.status_code == 200 else answer.json()["detail"]


def from_page(units: list[Any]) -> Any:
    """What a click on Generate calls: the flat values of the page, under the queue's lock."""
    from modules import scripts, ui
    from modules.call_queue import wrap_gradio_gpu_call

    from lib_ipadapter.units.unit import Unit, page_values
    from lib_ipadapter.webui import settings

    runner = scripts.scripts_txt2img
    values = [0, *(control.value for control in runner.inputs[1:])]
    script = next(script for script in runner.scripts if script.title() == "IP-Adapter")
    shown = page_values([Unit.from_dict(unit) for unit in units], settings.max_units(), enabled=bool(units))
    assert len(shown) == script.args_to - script.args_from
    values[script.args_from : script.args_to] = shown
    own = [DEFAULTS[key] for key in ("prompt", "negative_prompt", "steps", "sampler_name", "cfg_scale", "seed")]
    call = wrap_gradio_gpu_call(ui._generate_txt2img, extra_outputs=[None, "", "", ""])
    images, *_, log = call(*own, 64, 64, 1, 1, False, None, *values)
    return [image.tobytes() for image in images] if images else log.split("</div>")[0]


def test_jobs_from_several_threads_share_no_state(prompting: Prompting) -> None:
    from lib_ipadapter.webui.page import page_services
    from lib_ipadapter.webui.process import services

    jobs = {("api", name): (lambda units=units: from_api(prompting, units)) for name, units in UNITS.items()}
    jobs |= {("page", name): (lambda units=units: from_page(units)) for name, units in UNITS.items()}
    alone = {key: run() for key, run in jobs.items()}
    assert "not in" in str(alone["api", "broken"])
    assert "BadImageError" in str(alone["page", "broken"])
    services().cache.clear()
    found: dict[Any, list[Any]] = {key: [] for key in jobs}
    troubles: list[Exception] = []

    def worker(keys: list[Any]) -> None:
        try:
            for key in keys:
                found[key].append(jobs[key]())
        except Exception as error:
            troubles.append(error)

    def onlooker() -> None:
        """The page asks while jobs run."""
        try:
            for _ in range(20):
                page_services().explain("auto", "image", "auto")
                page_services().refresh_models()
                page_services().preview([RED], "centre", "auto", "image")
        except Exception as error:
            troubles.append(error)

    keys = list(jobs)
    threads = [threading.Thread(target=worker, args=(keys[n:] + keys[:n],)) for n in (0, 3, 7)]
    threads.append(threading.Thread(target=onlooker))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not troubles, troubles
    for key, results in found.items():
        assert results == [alone[key]] * 3, key


def test_a_second_job_with_the_same_reference_encodes_nothing(prompting: Prompting) -> None:
    fresh = {"images": [encoded(picture((99, 17, 203)))], "weight": 0.7}
    loads: list[str] = []
    for owner, name in ((features, "load_vision_encoder"), (prepare, "load_adapter")):
        original = getattr(owner, name)

        def loading(*args: Any, _original: Any = original, _name: str = name, **kwargs: Any) -> Any:
            loads.append(_name)
            return _original(*args, **kwargs)

        prompting.patch.setattr(owner, name, loading)
    spent: list[float] = []
    prepare_job = job.Job._prepare

    def timed(one: Any) -> Any:
        started = time.perf_counter()
        try:
            return prepare_job(one)
        finally:
            spent.append(time.perf_counter() - started)

    prompting.patch.setattr(job.Job, "_prepare", timed)
    first = prompting.run(fresh).pixels
    assert sorted(set(loads)) == ["load_adapter", "load_vision_encoder"]
    loads.clear()
    assert [prompting.run(fresh).pixels for _ in range(5)] == [first] * 5
    assert loads == []
    # The budget is 50 ms; a busy machine gets room, a second encoder run would still show.
    assert min(spent[1:]) < 0.2, spent
    # Another weight or window needs no preparation; another crop does.
    prompting.run({**fresh, "weight": 0.2, "start": 0.5})
    assert loads == []
    prompting.run({**fresh, "crop": "pad"})
    assert "load_vision_encoder" in loads


def test_a_changed_file_is_not_taken_for_the_old_one(prompting: Prompting) -> None:
    from tests.sample_models import write_sample_models

    folder = prompting.standin.data_dir / "models" / "ipadapter"
    unit = {"images": [RED], "adapter": "ip-adapter_sd15"}
    path = folder / "ip-adapter_sd15.safetensors"
    before, data = prompting.run(unit).pixels, path.read_bytes()
    other = prompting.standin.data_dir / "other"
    write_sample_models(prompting.standin.checkpoint_dir / "sd15.safetensors", other, seed=5)
    try:
        path.write_bytes((other / path.name).read_bytes())
        assert prompting.run(unit).pixels != before
    finally:
        path.write_bytes(data)
    assert prompting.run(unit).pixels == before


@pytest.mark.parametrize("megabytes", [0, 1, 64])
def test_the_cache_keeps_to_its_setting(prompting: Prompting, megabytes: int) -> None:
    from modules import shared

    from lib_ipadapter.webui.process import services

    shared.opts.set("ipadapter_cache_mb", megabytes)
    services().cache.clear()
    pixels = [prompting.run({"images": [encoded(picture((n, 90, 200 - n)))]}).pixels for n in (1, 60, 120, 1)]
    assert pixels[0] == pixels[3]
    assert services().cache.held_bytes <= megabytes * 1024 * 1024
    assert (services().cache.held_bytes > 0) == (megabytes > 0)
