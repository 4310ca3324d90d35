"""What is said to help with InstantID, and for which checkpoints."""

from __future__ import annotations

from lib_ipadapter.session.advice import instantid_advice


def test_every_range_holds_what_its_chip_sets() -> None:
    ranges = {one.field: one for one in instantid_advice("SDXL").ranges}
    assert (ranges["cfg_scale"].low, ranges["cfg_scale"].high, ranges["cfg_scale"].value) == (4.0, 5.0, 4.5)
    assert (ranges["steps"].low, ranges["steps"].high, ranges["steps"].value) == (30, None, 30)
    assert all(one.low <= one.value <= (one.high or one.value) for one in ranges.values())


def test_the_sizes_of_the_training_are_left_for_sizes_that_are_none() -> None:
    sizes = instantid_advice("SDXL").sizes
    assert sizes is not None
    assert sizes.side - sizes.less == 1016
    assert len(set(sizes.sizes)) == 9
    assert all((height, width) in sizes.sizes for width, height in sizes.sizes)
    left = {(width - sizes.less, height - sizes.less) for width, height in sizes.sizes}
    assert not left & set(sizes.sizes)
    assert all(side % 8 == 0 for size in left for side in size)


def test_only_a_checkpoint_that_the_published_files_cannot_fit_is_told_of_sdxl() -> None:
    assert instantid_advice("SDXL").plain == ()
    assert instantid_advice("").plain == (), "nothing is known yet"
    assert [label for label, _ in instantid_advice("SD1").plain] == ["SDXL checkpoint"]
