"""Rows of UNet calls, for every way A1111's denoiser and Forge's sampler split a step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lib_ipadapter.core.schedule import COND, UNCOND
from lib_ipadapter.hosts.forge import OptionsReader
from lib_ipadapter.hosts.rows import SequenceReader, rows_by_context
from lib_ipadapter.library.errors import UnexplainedRowsError, UnsupportedHostStateError

C, U = COND, UNCOND


def step(cond: int, uncond: int, *, tokens=77, uncond_tokens=77, at=0, total=4, dicts=False):
    """A denoiser's parameters with distinguishable text rows."""
    text = torch.arange(cond * tokens * 8, dtype=torch.float32).view(cond, tokens, 8)
    negative = -1 - torch.arange(uncond * uncond_tokens * 8, dtype=torch.float32).view(uncond, uncond_tokens, 8)
    wrap = (lambda t: {"crossattn": t, "vector": t[:, 0]}) if dicts else (lambda t: t)
    denoiser = SimpleNamespace(step=at, total_steps=total, sampler=SimpleNamespace(funcname="sample_euler"))
    x = torch.zeros(uncond, 4, 8, 8)  # Forge announces a row per picture
    return SimpleNamespace(x=x, text_cond=wrap(text), text_uncond=wrap(negative), denoiser=denoiser)


def reader(*, skips: bool = False, edits: bool = False) -> SequenceReader:
    made = SequenceReader(lambda params: skips, lambda params: edits)
    made.forget()
    return made


def call(read, batch: int, context: torch.Tensor | None = None):
    x = torch.zeros(batch, 4, 8, 8)
    return read((x,), {"timesteps": torch.full((batch,), 500.0), "context": context}).rows


@pytest.mark.parametrize(
    ("cond", "uncond", "batches", "expected"),
    [
        (1, 1, [2], [(C, U)]),
        (2, 2, [4], [(C, C, U, U)]),
        (2, 2, [2, 2], [(C, C), (U, U)]),
        (1, 1, [1, 1], [(C,), (U,)]),
        (4, 2, [6], [(C, C, C, C, U, U)]),
        (4, 2, [4, 2], [(C, C, C, C), (U, U)]),
        (4, 2, [2, 2, 2], [(C, C), (C, C), (U, U)]),
        (3, 1, [1, 1, 1, 1], [(C,), (C,), (C,), (U,)]),
        (3, 1, [2, 2], [(C, C), (C, U)]),
    ],
)
@pytest.mark.parametrize("dicts", [False, True])
def test_calls_are_slices_of_the_steps_sequence(cond, uncond, batches, expected, dicts):
    read = reader()
    for at in range(3):
        read.begin_step(step(cond, uncond, at=at, dicts=dicts))
        assert [call(read, batch) for batch in batches] == expected


def test_a_step_without_negative_rows_is_prompt_only():
    read = reader(skips=True)
    read.begin_step(step(2, 2))
    assert call(read, 2) == (C, C)


def test_instruct_pix2pix_runs_the_negative_rows_twice():
    read = reader(edits=True)
    read.begin_step(step(1, 1))
    assert call(read, 3) == (C, U, U)


def test_parameters_replaced_by_a_later_callback_count():
    read = reader()
    params = step(1, 1)
    read.begin_step(params)
    params.text_cond = torch.cat([params.text_cond] * 2)
    assert call(read, 3) == (C, C, U)


def test_an_extra_call_is_told_by_its_text():
    read = reader()
    params = step(1, 1)
    read.begin_step(params)
    call(read, 2)
    assert call(read, 1, params.text_uncond) == (U,)
    assert call(read, 2, torch.cat([params.text_uncond, params.text_cond])) == (U, C)


def test_expanded_rows_are_told_by_their_text():
    read = reader()
    params = step(1, 1)
    read.begin_step(params)
    context = torch.cat([params.text_cond, params.text_uncond, params.text_cond, params.text_uncond])
    assert call(read, 4, context) == (C, U, C, U)


def test_tokens_before_the_text_do_not_hide_it():
    params = step(1, 1)
    marked = torch.cat([torch.full((1, 1, 8), 1024.0), params.text_cond], dim=1)
    assert rows_by_context(marked, params.text_cond, params.text_uncond, 1) == (C,)


def test_text_of_neither_kind_is_refused():
    read = reader()
    params = step(1, 1)
    read.begin_step(params)
    call(read, 2)
    with pytest.raises(UnexplainedRowsError, match="neither prompt nor negative"):
        call(read, 1, params.text_cond + 0.5)
    with pytest.raises(UnexplainedRowsError, match="1 in this call"):
        call(read, 1, None)


def test_text_that_fits_both_is_refused():
    read = reader()
    params = step(1, 1)
    params.text_uncond = params.text_cond.clone()
    read.begin_step(params)
    call(read, 2)
    with pytest.raises(UnexplainedRowsError, match="both"):
        call(read, 1, params.text_cond)


def test_a_call_outside_any_step_is_refused():
    with pytest.raises(UnsupportedHostStateError, match="outside the sampler"):
        call(reader(), 2)


def test_the_fraction_follows_the_denoisers_own_counter():
    read = reader()
    fractions = []
    for at in range(6):
        read.begin_step(step(1, 1, at=at, total=4))
        fractions.append(read((torch.zeros(2, 4, 8, 8), torch.zeros(2)), {}).fraction)
    assert fractions == [0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_sampler_without_a_total_is_measured_by_its_timesteps():
    read = reader()

    def fraction(timestep: float) -> float:
        params = step(1, 1, at=99, total=4)
        params.denoiser.sampler.funcname = "sample_dpm_adaptive"
        read.begin_step(params)
        return read((torch.zeros(2, 4, 8, 8), torch.full((2,), timestep)), {}).fraction

    assert [fraction(t) for t in (800.0, 400.0, 600.0, 0.0)] == [0.0, 0.5, 0.25, 1.0]
    read.forget()
    assert fraction(400.0) == 0.0


def test_a_second_order_samplers_two_calls_are_of_one_step():
    read, fractions = reader(), []
    for at in range(7):
        params = step(1, 1, at=at, total=8)
        params.denoiser.sampler.config = SimpleNamespace(options={"second_order": True})
        read.begin_step(params)
        fractions.append(read((torch.zeros(2, 4, 8, 8), torch.zeros(2)), {}).fraction)
    assert fractions == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75]


@pytest.mark.parametrize(
    ("pictures", "chunks", "expected"),
    [(1, [1, 0], (U, C)), (2, [1, 0], (U, U, C, C)), (1, [1, 0, 0], (U, C, C)), (1, [0], (C,)), (1, [0, 1], (C, U))],
)
def test_forge_names_its_chunks(pictures, chunks, expected):
    read = OptionsReader()
    read.begin_step(step(pictures, pictures))
    batch = len(expected)
    args = (torch.zeros(batch, 4, 8, 8), torch.zeros(batch))
    assert read(args, {"transformer_options": {"cond_or_uncond": chunks}}).rows == expected


def test_forge_tiles_repeat_the_call_and_are_told_by_their_text():
    read = OptionsReader()
    params = step(1, 1)
    read.begin_step(params)
    text = torch.cat([params.text_uncond, params.text_cond] * 2)
    kwargs = {"context": text, "transformer_options": {"cond_or_uncond": [1, 0]}}
    assert read((torch.zeros(4, 4, 8, 8), torch.zeros(4)), kwargs).rows == (U, C, U, C)


@pytest.mark.parametrize("options", [None, {}, {"cond_or_uncond": [1, 0]}])
def test_forge_rows_without_a_known_text_are_refused(options):
    read = OptionsReader()
    read.begin_step(step(1, 1))
    with pytest.raises(UnexplainedRowsError, match="3 in this call"):
        read((torch.zeros(3, 4, 8, 8), torch.zeros(3)), {"transformer_options": options})


def test_forge_without_a_negative_prompt_knows_the_prompt_alone():
    read = OptionsReader()
    params = step(1, 1)
    params.text_uncond = None
    read.begin_step(params)
    assert read((torch.zeros(1, 4, 8, 8), torch.zeros(1)), {"context": params.text_cond}).rows == (C,)


def test_tiles_of_a_call_that_fits_the_sequence_by_its_size_alone():
    """Two tiles of the prompt's call have as many rows as the prompt's and the negative prompt's."""
    read = reader()
    for at in range(3):
        params = step(1, 1, at=at)
        read.begin_step(params)
        assert call(read, 2, torch.cat([params.text_cond] * 2)) == (C, C)
        assert call(read, 2, torch.cat([params.text_uncond] * 2)) == (U, U)


def test_tiles_one_by_one_are_not_taken_for_the_next_row():
    read = reader()
    for at in range(3):
        params = step(1, 1, at=at)
        read.begin_step(params)
        rows = [call(read, 1, text) for text in (*[params.text_cond] * 2, *[params.text_uncond] * 2)]
        assert rows == [(C,), (C,), (U,), (U,)]


def test_a_text_of_somebody_elses_does_not_disturb_the_sequence():
    read = reader()
    params = step(1, 1)
    read.begin_step(params)
    assert call(read, 2, torch.full((2, 77, 8), 0.25)) == (C, U)


def test_text_is_compared_in_the_calls_dtype():
    params = step(1, 1)
    text = params.text_cond / 3
    assert rows_by_context(text.half(), text, params.text_uncond, 1) == (C,)


def test_padding_after_the_text_does_not_hide_it():
    params = step(1, 1)
    padded = torch.cat([params.text_uncond, torch.zeros(1, 77, 8)], dim=1)
    assert rows_by_context(padded, params.text_cond, params.text_uncond, 1) == (U,)
    assert rows_by_context(params.text_uncond[:, :60], params.text_cond, params.text_uncond, 1) == (U,)


def test_forge_guidance_that_passes_the_negative_as_a_prompt_is_told_by_its_text():
    read = OptionsReader()
    params = step(1, 1)
    params.x = torch.zeros(1, 4, 8, 8)
    read.begin_step(params)
    options = {"cond_or_uncond": [0]}

    def rows(text: torch.Tensor) -> tuple[int, ...]:
        args = (torch.zeros(1, 4, 8, 8), torch.zeros(1))
        return read(args, {"context": text, "transformer_options": options}).rows

    assert rows(params.text_uncond) == (U,)
    assert rows(params.text_cond) == (C,)


def forge_call(read: OptionsReader, chunks: list[int], text: torch.Tensor) -> tuple[int, ...]:
    args = (torch.zeros(len(text), 4, 8, 8), torch.zeros(len(text)))
    return read(args, {"context": text, "transformer_options": {"cond_or_uncond": chunks}}).rows


def test_forge_texts_are_compared_once_for_calls_that_repeat(monkeypatch):
    """A comparison makes the device wait for all that was asked of it."""
    read, compared, equal = OptionsReader(), [], torch.equal
    monkeypatch.setattr(torch, "equal", lambda *tensors: compared.append(1) or equal(*tensors))
    for at in range(4):
        params = step(1, 1, at=at)
        read.begin_step(params)
        assert forge_call(read, [0], params.text_cond) == (C,)
        assert forge_call(read, [1], params.text_uncond) == (U,)
        assert bool(compared) == (at == 0)
        compared.clear()


def test_forge_texts_are_compared_again_when_the_calls_change():
    read = OptionsReader()
    for at in range(3):
        params = step(1, 1, at=at)
        read.begin_step(params)
        assert forge_call(read, [0], params.text_cond) == (C,)
        if at:
            assert forge_call(read, [0], params.text_uncond) == (U,)
            assert forge_call(read, [0], params.text_cond) == (C,)


def test_forge_kinds_that_nobody_knows_are_told_by_their_text():
    read = OptionsReader()
    params = step(1, 1)
    read.begin_step(params)
    text = torch.cat([params.text_cond, params.text_uncond, params.text_cond])
    assert forge_call(read, [2, 1, 0], text) == (C, U, C)
    with pytest.raises(UnexplainedRowsError, match="row 1 is neither"):
        forge_call(read, [2, 1, 0], text + 0.5)
