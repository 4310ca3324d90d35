"""Windows over the steps of a pass."""

from __future__ import annotations

import pytest

from lib_ipadapter.core.schedule import Window


@pytest.mark.parametrize(
    ("window", "steps", "acting"),
    [
        (Window(), 4, [0, 1, 2, 3]),
        (Window(0.25, 0.75), 4, [1, 2]),
        (Window(0.0, 0.5), 5, [0, 1, 2]),
        (Window(0.5, 1.0), 5, [3, 4]),
        (Window(0.3, 0.3), 10, []),
        (Window(0.8, 0.2), 10, []),
        (Window(1.0, 1.0), 10, []),
    ],
)
def test_steps_in_a_window(window: Window, steps: int, acting: list[int]) -> None:
    assert [step for step in range(steps) if window.active(step / steps)] == acting


def test_an_end_of_one_includes_a_call_after_the_last_step() -> None:
    assert Window(0.5, 1.0).active(1.0)
    assert not Window(0.5, 0.999).active(1.0)


def test_neighbouring_windows_never_overlap_and_leave_no_gap() -> None:
    first, second = Window(0.0, 0.35), Window(0.35, 1.0)
    assert all(first.active(step / 20) != second.active(step / 20) for step in range(20))
