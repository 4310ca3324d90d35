"""The stand-in host keeps the rules of the real ones: callbacks, swallowed exceptions, the API, infotexts, loading."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.webui.conftest import REPOSITORY, TOYS

BATCH = ["before_process_batch", "after_extra_networks_activate", "process_batch"]
AFTER = ["post_sample", "postprocess_batch", "postprocess_batch_list"]
PICTURE = ["postprocess_image", "postprocess_maskoverlay", "postprocess_image_after_composite"]


def script_calls(record) -> list[str]:
    """The script's callbacks without those of the steps."""
    return [name for name in record.calls if name not in ("on_cfg_denoised", "on_mask_blend")]


def test_txt2img_calls_the_scripts_in_the_hosts_order(standin, record):
    standin.txt2img(n_iter=2, batch_size=2)
    expected = ["setup", "before_process", "process"]
    expected += 2 * [*BATCH, "process_before_every_sampling", *AFTER, *PICTURE, *PICTURE]
    assert script_calls(record) == [*expected, "postprocess"]


def test_hires_fix_calls_before_every_sampling_once_more_and_on_forge_twice(standin, record):
    standin.txt2img(enable_hr=True, hr_additional_modules=[], hr_cfg=7.0)
    twice = ["process_before_every_sampling"] * (2 if standin.flavour == "forge" else 1)
    assert script_calls(record) == ["setup", "before_process", "process", *BATCH, "process_before_every_sampling",
                                    "after_extra_networks_activate", "before_hr", *twice, *AFTER, *PICTURE,
                                    "postprocess"]
    steps = [(step["step"], step["total"]) for step in record.steps]
    assert steps == [(0, 2), (1, 2), (0, 2), (1, 2)], "the step restarts in the hires pass"


def test_the_initial_noise_is_handed_to_before_every_sampling(standin, record):
    standin.txt2img()
    assert record.pbes[0]["x"] is record.pbes[0]["noise"]
    assert set(record.pbes[0]) == {"x", "noise", "c", "uc"}


@pytest.mark.parametrize("name", ["before_process", "process", "process_before_every_sampling", "post_sample",
                                  "postprocess_image", "on_cfg_denoiser", "postprocess"])
def test_an_exception_in_a_callback_is_reported_and_swallowed(standin, record, name):
    record.fail_in = name
    assert len(standin.txt2img().images) == 1
    assert any(f"told to fail in {name}" in report for report in standin.reports)


def test_an_exception_in_sampling_is_500_and_skips_the_rest(standin, record):
    record.sample_error = ValueError("told to fail")
    answer = standin.post("txt2img", {"steps": 1, "width": 64, "height": 64})
    assert answer.status_code == 500
    assert answer.json()["errors"] == "told to fail"
    assert "post_sample" not in record.calls
    assert "postprocess" not in record.calls
    record.sample_error = None
    assert len(standin.txt2img().images) == 1, "the next job is fine"


def test_an_exceptions_own_attributes_make_the_answer(standin, record):
    record.sample_error = ValueError("the unit cannot run")
    record.sample_error.status_code = 422
    record.sample_error.detail = "the unit cannot run"
    answer = standin.post("txt2img", {"steps": 1, "width": 64, "height": 64})
    assert (answer.status_code, answer.json()["detail"]) == (422, "the unit cannot run")


def test_an_interrupted_job_still_runs_the_callbacks_after_it(standin, record):
    record.interrupt_at = 1
    standin.txt2img(steps=5)
    assert len(record.steps) == 2
    assert script_calls(record)[-1] == "postprocess"


def test_the_same_seed_gives_the_same_picture_and_a_batch_equals_single_pictures(standin, record):
    batch = standin.txt2img(batch_size=2, seed=5)
    assert standin.txt2img(batch_size=2, seed=5).pixels == batch.pixels
    assert standin.txt2img(seed=6, sampler_name="Euler a").pixels != standin.txt2img(seed=7).pixels
    single = standin.txt2img(seed=6).images[0]
    assert max(abs(a - b) for a, b in zip(single.tobytes(), batch.images[1].tobytes(), strict=True)) <= 1


def test_the_prompt_matters(standin, record):
    assert standin.txt2img(prompt="a dog").pixels != standin.txt2img(prompt="a cat").pixels


def test_api_arguments_are_positional_padded_and_cut(standin, record):
    for args, expected in (([], (False, "default text", 3)), ([True], (True, "default text", 3)),
                           ([True, "x", "9", "surplus"], (True, "x", "9"))):
        record.args.clear()
        standin.txt2img(alwayson_scripts={"toy RECORDER": {"args": args}})
        assert record.args == [expected]


def test_wrong_scripts_and_dict_arguments_are_refused_as_by_the_hosts(standin, record):
    assert standin.post("txt2img", {"alwayson_scripts": {"nobody": {"args": []}}}).status_code == 422
    assert standin.post("txt2img", {"alwayson_scripts": {"Toy Recorder": {"args": {"a": 1}}}}).status_code == 500


def test_ui_is_called_for_the_page_and_twice_for_the_defaults(standin, record):
    before = record.ui_calls
    standin.reload_ui()
    assert record.ui_calls - before == 2 * 3


def test_script_info_lists_the_arguments(standin, record):
    scripts = standin.client.get("/sdapi/v1/script-info").json()
    toy = next(script for script in scripts if script["name"] == "toy recorder" and not script["is_img2img"])
    assert [arg["label"] for arg in toy["args"]] == ["Toy", "Toy text", "Toy number"]
    assert (toy["args"][2]["minimum"], toy["args"][2]["value"]) == (0, 3)
    assert "toy recorder" in standin.client.get("/sdapi/v1/scripts").json()["txt2img"]


def test_infotext_values_are_quoted_and_come_back(standin, record):
    hostile = 'a, "b": c\nd ü 1x2'
    record.infotext = {"Toy text": hostile, "Toy none": None, "Toy size": "640x480", "Toy call": lambda p, **_: p.steps}
    picture = standin.txt2img()
    assert "Toy none" not in picture.infotexts[0]
    answer = standin.post("png-info", {"image": picture.answer["images"][0]}).json()
    assert answer["parameters"]["Toy text"] == hostile
    assert (answer["parameters"]["Toy size-1"], answer["parameters"]["Toy size-2"]) == ("640", "480")
    assert answer["parameters"]["Toy call"] == "2"
    assert answer["parameters"]["Prompt"] == "a red house"


def test_the_apis_infotext_sets_script_arguments_on_a1111_and_fails_on_forge(standin, record):
    infotext = "p\nSteps: 2, Sampler: Euler, CFG scale: 7, Toy text: pasted, Toy number: 5"
    answer = standin.post("txt2img", {"infotext": infotext, "width": 64, "height": 64})
    if standin.flavour == "forge":
        assert answer.status_code == 500
    else:
        assert record.args == [(False, "pasted", 5)]
        assert json.loads(answer.json()["info"])["prompt"] in ("p", "")


def test_comments_do_not_reach_the_api(standin, record):
    record.comments = ["a remark"]
    assert "a remark" not in json.dumps(standin.txt2img().answer)


def test_options_can_be_read_and_set(standin, record):
    assert standin.client.get("/sdapi/v1/options").json()["toy_option"] == 7
    standin.post("options", {"toy_option": 8})
    assert standin.client.get("/sdapi/v1/options").json()["toy_option"] == 8
    assert standin.post("options", {"sd_model_checkpoint": "nothing"}).status_code == 500


def test_loading_knows_the_folder_and_goes_on_after_a_broken_script(standin, record):
    from modules import scripts, shared

    assert record.basedirs[0] == str(TOYS / "recorder")
    assert record.sys_paths[0][0] == str(TOYS / "recorder")
    assert scripts.basedir() != str(TOYS / "recorder")
    assert (str(TOYS / "recorder") in sys.path) == (standin.flavour == "forge")
    assert shared.cmd_opts.toy_flag == "not given"
    assert "app_started" in record.events


def test_reload_drops_callbacks_and_executes_the_scripts_again(standin, record):
    from modules import script_callbacks

    before = len(script_callbacks.callback_map["cfg_denoiser"])
    loads, record.events[:] = len(record.basedirs), []
    standin.reload_ui()
    assert len(script_callbacks.callback_map["cfg_denoiser"]) == before
    assert len(record.basedirs) == loads + 1
    assert record.events == ["script_unloaded", "app_started"]
    assert any("told to fail while loading" in report for report in standin.reports)
    assert len(standin.txt2img().images) == 1


LOAD_BOTH = """
import sys
from pathlib import Path
from tests.webui.standin import StandIn
first, second, data = map(Path, sys.argv[1:])
host = StandIn(extensions=[first, second], data_dir=data)
for _ in range(2):
    from modules import scripts
    titles = {s.title(): s for s in scripts.scripts_txt2img.alwayson_scripts}
    assert titles["Forge-like"].whose == "forge-like", titles
    assert "IP-Adapter" in titles, (titles, host.reports)
    assert not host.reports, host.reports
    host.reload_ui()
"""


@pytest.mark.parametrize("order", [0, 1], ids=["ours last", "ours first"])
def test_a_namesake_package_of_another_extension_loads_beside_ours(order, tmp_path, standin):
    folders = [str(TOYS / "forge_like"), str(REPOSITORY)]
    command = [sys.executable, "-c", LOAD_BOTH, *(folders[::-1] if order else folders), str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_second_host_in_one_process_is_refused(standin, tmp_path: Path):
    from tests.webui.standin import StandIn

    with pytest.raises(RuntimeError, match="one per process"):
        StandIn(data_dir=tmp_path)
