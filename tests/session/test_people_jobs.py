"""Jobs with several people: who stands where, what each region's core gets, and what stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lib_ipadapter.core.attach import UnitAttention
from lib_ipadapter.core.residuals import UNetResiduals, UnitResiduals
from lib_ipadapter.library.errors import BadUnitError, KeypointsError, NoFaceError
from lib_ipadapter.session import passes
from tests.core.test_two_people import added
from tests.encoders.face_pictures import DrawnFace, face_picture, portrait
from tests.session.fakes import write_models
from tests.session.test_instantid import (  # noqa: F401 - fixtures
    ANNA,
    NET,
    Processing,
    Run,
    encoded,
    folder,
    prepared,
    run,
    unet,
)
from tests.unets import unet_inputs

BERT = encoded(portrait(3))
FACES = [DrawnFace(150, 200, 150, 3), DrawnFace(400, 220, 160, 2, 8), DrawnFace(650, 210, 140, 5)]
GROUP = encoded(Image.fromarray(face_picture(800, 400, FACES)))
TWO = encoded(Image.fromarray(face_picture(800, 400, FACES[::2])))
WIDE = {"width": 256, "height": 128}
PAIR = ({"pose": (TWO,)}, {"images": (BERT,), "keypoints": "pose", "weight": 0.6, "net_weight": 0.9})


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Canvases of `WIDE`, on which both people's regions have cores at several levels."""

    def sample(self: Processing, passes: int = 1) -> list[Tensor]:
        inputs = wide_inputs(self.host.net, self.width, self.height)
        self.job.before_sampling(inputs["x"])
        self.job.before_step(0.0)
        return [self.host.net(**inputs)]

    monkeypatch.setattr(Processing, "sample", sample)
    for name, value in WIDE.items():
        monkeypatch.setattr(Processing, name, value)


def wide_inputs(net: nn.Module, width: int, height: int) -> dict[str, Tensor]:
    inputs = unet_inputs(net, rows=2, size=8)  # type: ignore[arg-type]
    shape = (2, inputs["x"].shape[1], height // 8, width // 8)
    return inputs | {"x": torch.randn(*shape, generator=torch.Generator().manual_seed(3))}


def record(p: Processing, number: int) -> dict[str, Any]:
    return json.loads(p.extra_generation_params[f"IP-Adapter unit {number}"])


class Attached:
    """What the last job attached: copies, as the hooks replace keys and values."""

    def __init__(self) -> None:
        self.attention: list[UnitAttention] = []
        self.residuals: list[UnitResiduals] = []

    def people(self, *, masked: bool) -> list[tuple[UnitAttention, UnitResiduals]]:
        found = []
        for kept, residuals in zip(self.attention, self.residuals, strict=True):
            attention = kept._replace(kv=dict(kept.kv))
            everywhere = attention._replace(mask=None), residuals._replace(mask=None)
            found.append((attention, residuals) if masked else everywhere)
        return found


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> Attached:
    seen, attach = Attached(), passes.attach

    def keep(net: nn.Module, units: Any, *args: Any, **kwargs: Any) -> Any:
        seen.attention = [unit._replace(kv=dict(unit.kv)) for unit in units]
        return attach(net, units, *args, **kwargs)

    class Kept(UNetResiduals):
        def __init__(self, net: nn.Module, units: Any) -> None:
            seen.residuals = list(units)
            super().__init__(net, units)

    monkeypatch.setattr(passes, "attach", keep)
    monkeypatch.setattr(passes, "UNetResiduals", Kept)
    return seen


def test_two_people_of_one_photo_each_have_their_part(run: Run, unet: nn.Module, attached: Attached) -> None:  # noqa: F811
    """One group photo, given once: in each one's core, both halves are what that unit adds alone everywhere."""
    p, _ = run(*PAIR)
    assert not p.comments
    assert [record(p, number)["ran"]["pose_face"] for number in (1, 2)] == ["1 of 2", "2 of 2"]
    assert record(p, 1)["pose"] == record(p, 2)["pose"], "a paste finds the photo whichever unit had it"
    boxes = [[float(part) for part in record(p, number)["ran"]["region"].split(",")] for number in (1, 2)]
    assert boxes[0][0] + boxes[0][2] <= boxes[1][0]
    for (x, y, width, height), face in zip(boxes, FACES[::2], strict=True):
        assert (x + width / 2, y + height / 2) == pytest.approx((face.x / 800, face.y / 400), abs=0.02)

    inputs = wide_inputs(unet, **WIDE)
    masks = {attention.name: attention.mask for attention in attached.attention}
    assert all(torch.equal(masks[one.name], one.mask) for one in attached.residuals)  # type: ignore[arg-type]
    assert float(sum(masks.values()).max()) <= 1 + 1e-6  # type: ignore[union-attr, arg-type]
    sides = level_sizes_of(inputs["x"])
    with torch.no_grad():
        together = added(unet, attached.people(masked=True), inputs)
        for one in attached.people(masked=False):
            mask, cores = masks[one[0].name], 0
            assert mask is not None
            alone = added(unet, [one], inputs)
            for path, both in together[0].items():
                core = share(mask, sides[both.shape[1]]).flatten() == 1
                cores += int(core.sum())
                torch.testing.assert_close(both[:, core], alone[0][path][:, core], atol=1e-5, rtol=1e-5)
            for both, whole in zip(together[1], alone[1], strict=True):
                core = share(mask, (both.shape[2], both.shape[3])) == 1
                torch.testing.assert_close(both[..., core], whole[..., core], atol=1e-5, rtol=1e-5)
            assert cores > 30


def level_sizes_of(x: Tensor) -> dict[int, tuple[int, int]]:
    height, width = x.shape[2:]
    return {height * width // 4**level: (height // 2**level, width // 2**level) for level in range(4)}


def share(mask: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(mask[None].double(), size)[0]


def test_the_order_of_units_does_not_matter_to_the_last_bit(run: Run) -> None:  # noqa: F811
    three = [
        {"images": (photo,), "pose": (GROUP,), "pose_face": str(number), "weight": 0.9 - 0.2 * number}
        for number, photo in enumerate((ANNA, BERT, ANNA), 1)
    ]
    first = run(*three)[1][0]
    for order in ((2, 0, 1), (1, 2, 0), (2, 1, 0)):
        assert torch.equal(run(*(three[place] for place in order))[1][0], first)
    assert not torch.equal(run(*({**one, "region": "everywhere"} for one in three))[1][0], first)


def test_auto_is_the_faces_spelt_out(run: Run) -> None:  # noqa: F811
    auto = run({"pose": (GROUP,)}, {"images": (BERT,), "pose": (GROUP,)})[1][0]
    spelt = [
        {"images": (photo,), "pose": (GROUP,), "pose_face": str(number), "region": "face"}
        for number, photo in enumerate((ANNA, BERT), 1)
    ]
    assert torch.equal(run(*spelt)[1][0], auto)
    chosen = {**spelt[0], "images": (BERT,)}
    p, other = run({"pose": (GROUP,)}, chosen)
    assert record(p, 1)["ran"]["pose_face"] == "2 of 3", "the first is taken"
    assert "pose_face" not in record(p, 2)["ran"], "its field says it"
    assert not torch.equal(other[0], auto)


def test_a_unit_alone_acts_everywhere_with_the_largest_face(run: Run) -> None:  # noqa: F811
    p, alone = run({"pose": (GROUP,)})
    assert record(p, 1)["ran"]["pose_face"] == "2 of 3"
    assert "region" not in record(p, 1)["ran"]
    same = {"pose": (GROUP,), "pose_face": "largest", "region": "everywhere"}
    assert torch.equal(run(same)[1][0], alone[0])
    p, confined = run({"pose": (GROUP,), "region": "face"})
    assert not torch.equal(confined[0], alone[0])
    assert record(p, 1)["ran"]["region"]


def test_without_keypoints_or_net_there_is_no_place(run: Run) -> None:  # noqa: F811
    for fields in ({"keypoints": "none"}, {"identity_net": "none"}):
        p, ours = run({"pose": (TWO,)}, {"images": (BERT,), "pose": (TWO,), **fields})
        assert "region" not in record(p, 1)["ran"]
        everywhere = [
            {"pose": (TWO,), "region": "everywhere", "pose_face": "1"},
            {"images": (BERT,), "pose": (TWO,), "region": "everywhere", **fields},
        ]
        assert torch.equal(run(*everywhere)[1][0], ours[0])


def test_a_face_may_be_the_region_of_attention_alone(run: Run, folder: Path) -> None:  # noqa: F811
    """IdentityNet off: the pose photo still says where, and the other person keeps out."""
    (folder / NET).unlink()
    pair = [{**one, "identity_net": "none", "region": "face"} for one in PAIR]
    p, ours = run(*pair)
    assert [record(p, number)["ran"]["pose_face"] for number in (1, 2)] == ["1 of 2", "2 of 2"]
    assert "net" not in record(p, 1)["ran"]
    assert len(record(p, 1)["pose"]) == 1
    assert not torch.equal(run(*({**one, "region": "everywhere"} for one in pair))[1][0], ours[0])


def test_a_unit_of_weight_0_keeps_its_place(run: Run) -> None:  # noqa: F811
    p, _ = run({"pose": (TWO,), "weight": 0.0}, {"images": (BERT,), "pose": (TWO,)})
    assert record(p, 2)["ran"]["pose_face"] == "2 of 2"
    p, _ = run({"pose": (TWO,), "enabled": False}, {"images": (BERT,), "pose": (TWO,)})
    assert record(p, 2)["ran"]["pose_face"] in ("1 of 2", "2 of 2")
    assert "region" not in record(p, 2)["ran"]


def test_given_points_have_places_too(run: Run) -> None:  # noqa: F811
    face = DrawnFace(60, 64, 50).keypoints
    beside = [[x + 130, y] for x, y in face]
    p, _ = run({"keypoints": json.dumps(face)}, {"images": (BERT,), "keypoints": json.dumps(beside)})
    first, second = (record(p, number)["ran"]["region"].split(",") for number in (1, 2))
    assert float(first[0]) + float(first[2]) < float(second[0])


def test_only_masked_moves_the_places_with_the_keypoints(run: Run, attached: Attached) -> None:  # noqa: F811
    picture = Image.new("RGB", (800, 400))
    masked = {
        "image_mask": picture, "init_images": [picture], "inpaint_full_res": True, "paste_to": (0, 80, 512, 256),
    }  # fmt: skip
    run(*({"images": (photo,), "pose": (GROUP,)} for photo in (ANNA, BERT)), **masked)
    masks = {one.name: one.mask for one in attached.attention}
    for name, face in (("Unit 1", FACES[0]), ("Unit 2", FACES[1])):
        mask = masks[name]
        assert mask is not None
        assert mask[round((face.y - 80) / 2), round(face.x / 2)] == 1
        assert mask[:, 250 if name == "Unit 1" else 5].max() == 0


def test_only_masked_leaves_out_whose_face_is_not_sampled(run: Run, attached: Attached) -> None:  # noqa: F811
    picture = Image.new("RGB", (800, 400))
    masked = {
        "image_mask": picture, "init_images": [picture], "inpaint_full_res": True, "paste_to": (0, 100, 260, 130),
    }  # fmt: skip
    people = [{"images": (photo,), "pose": (TWO,)} for photo in (ANNA, BERT)]
    p, _ = run(*people, **masked)
    assert [one.name for one in attached.attention] == ["Unit 1"]
    assert "IP-Adapter unit 2" not in p.extra_generation_params
    assert any("Unit 2 did not act: no part of its region, or of its face" in line for line in p.comments)
    with pytest.raises(KeypointsError, match="no keypoint of a face lies in it"):
        run(*people, **(masked | {"paste_to": (300, 0, 130, 65)}))


def test_a_face_region_and_a_named_one(run: Run, attached: Attached) -> None:  # noqa: F811
    p, _ = run({"pose": (TWO,), "region": "left", "feather": 0.0}, {"images": (BERT,), "pose": (TWO,)})
    assert "region" not in record(p, 1)["ran"]
    assert record(p, 2)["ran"]["region"]
    masks = {one.name: one.mask for one in attached.attention}
    assert masks["Unit 1"] is not None
    assert masks["Unit 1"][0].tolist() == [1.0] * 128 + [0.0] * 128


def test_more_people_than_faces(run: Run) -> None:  # noqa: F811
    three = [{"pose": (TWO,)}, {"images": (BERT,), "pose": (TWO,)}, {"keypoints": "pose"}]
    with pytest.raises(NoFaceError, match=r"^IP-Adapter unit 3: 3 units take a face of the pose photo, and 2 faces"):
        run(*three)
    p, _ = run(*three, stop=False)
    assert "Generated without unit 3" in p.comments[0]
    assert record(p, 2)["ran"]["pose_face"] == "2 of 2"


def test_two_references_alone_give_one_place_and_the_job_says_so(run: Run) -> None:  # noqa: F811
    plain = run()[1][0]
    with pytest.raises(KeypointsError, match=r"Units 1 and 2 put their faces at the same place.*pose photo"):
        run({}, {"images": (BERT,)})
    p, going_on = run({}, {"images": (BERT,)}, stop=False)
    assert torch.equal(going_on[0], plain)
    assert "same place" in p.comments[0]
    assert not any(key.startswith("IP-Adapter unit") for key in p.extra_generation_params)
    run({"region": "everywhere"}, {"images": (BERT,), "region": "everywhere"})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"intent": "image", "region": "face"}, "ip-adapter_sd15.* is no InstantID adapter"),
        ({"region": "face", "keypoints": "none"}, "region is face and keypoints is none"),
    ],
    ids=["another adapter", "no keypoints"],
)
def test_where_no_face_is_known_face_is_refused(
    run: Run, folder: Path, unet: nn.Module, fields: dict[str, Any], says: str  # noqa: F811
) -> None:
    write_models(folder, unet)
    with pytest.raises(BadUnitError, match=f"^IP-Adapter unit 1: .*{says}"):
        run(fields)
    run(fields | {"region": "auto"})
