"""The text that says which face of each picture counts."""

from __future__ import annotations

import pytest

from lib_ipadapter.units.face_choice import FaceChoice, choice_for, parse_face_choices, write_face_choices

CHOICES = (FaceChoice(), FaceChoice("best"), FaceChoice("index", index=12), FaceChoice("point", point=(0.25, 1.0)))


def test_what_is_written_reads_as_itself() -> None:
    assert parse_face_choices(write_face_choices(CHOICES)) == CHOICES
    for choice in CHOICES:
        assert parse_face_choices(str(choice)) == (choice,)


def test_one_choice_is_for_every_picture() -> None:
    assert choice_for(CHOICES[1:2], 7) == FaceChoice("best")


def test_of_several_each_is_for_its_own_picture_and_the_rest_take_the_largest() -> None:
    assert [choice_for(CHOICES, place) for place in range(6)] == [*CHOICES, FaceChoice(), FaceChoice()]


def test_a_part_that_is_no_choice_is_named() -> None:
    with pytest.raises(ValueError, match="'nobody'"):
        parse_face_choices("largest; nobody")
