"""What the page's listeners answer: uploads, strip, preview, adapter list; errors as sentences."""

from __future__ import annotations

import base64
import io
import json
import re
from html import escape
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from lib_ipadapter.library.errors import AdapterNotFoundError, IPAdapterError
from lib_ipadapter.units.face_choice import FaceChoice
from lib_ipadapter.units.images import ImageStore, digest
from lib_ipadapter.webui.face_html import FacePreview
from tests.webui.test_panel import FixedServices

HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture
def page(standin, tmp_path):
    """Events on services that answer without a host."""
    from lib_ipadapter.webui.events import Events

    services = FixedServices(ImageStore(tmp_path / "store", 10**7))
    return SimpleNamespace(events=Events(services), services=services, folder=tmp_path)


def write_picture(folder, name: str, color=(200, 10, 10), size=(32, 16)) -> str:
    Image.new("RGB", size, color).save(folder / name)
    return str(folder / name)


def sent(path: str) -> str:
    """A file as the page's script sends it."""
    payload = base64.b64encode(Path(path).read_bytes()).decode("ascii")
    return json.dumps({"name": Path(path).name, "data": f"data:application/octet-stream;base64,{payload}"})


def added(page, *paths: str, references: str = "") -> str:
    """References after these files."""
    for path in paths:
        references = page.events.add_upload(sent(path), references)[1]
    return references


def text_of(html: str) -> str:
    return re.sub(r"<[^>]+>", " ", html).strip()


def images_in(html: str) -> list[Image.Image]:
    uris = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(uri))) for uri in uris]


def test_uploads_join_the_references_and_empty_the_inbox(page):
    a, b = write_picture(page.folder, "a.png"), write_picture(page.folder, "b.jpg", (1, 2, 3))
    emptied, references, message = page.events.add_upload(sent(a), "")
    assert emptied == ""
    assert text_of(message) == ""
    stored = json.loads(added(page, b, references=references))
    assert [page.services.store().get(one) for one in stored] == [Path(a).read_bytes(), Path(b).read_bytes()]


def test_the_same_picture_twice_is_one_reference(page):
    a = write_picture(page.folder, "a.png")
    assert len(json.loads(added(page, a, a))) == 1


@pytest.mark.parametrize(("name", "content"), [("notes.txt", HOSTILE), ("empty.png", ""), (f"{HOSTILE}.png", "x")])
def test_a_wrong_file_is_named_and_changes_nothing(page, name, content):
    references = added(page, write_picture(page.folder, "a.png"))
    payload = base64.b64encode(content.encode()).decode()
    emptied, after, message = page.events.add_upload(
        json.dumps({"name": name, "data": f"data:image/png;base64,{payload}"}), references
    )
    assert (emptied, after) == ("", references)
    assert escape(name) in message
    assert re.search("is not a picture|is empty", message)
    assert "<img" not in message


@pytest.mark.parametrize("upload", ["", "{", "[]", "null", '{"name": "a"}', '{"name": "a", "data": "data:;base64,%"}'])
def test_an_upload_that_is_none_is_answered_with_a_sentence(page, upload):
    assert "ipadapter-error" in page.events.add_upload(upload, "")[2]
    assert text_of(page.events.add_upload(upload, "")[2])
    assert page.events.add_upload(upload, "")[1] == ""


def test_too_many_pictures_leave_the_unit_as_it_was(page):
    known = json.dumps([f"sha256:{number:064x}" for number in range(64)])
    _, references, message = page.events.add_upload(sent(write_picture(page.folder, "a.png")), known)
    assert references == known
    assert "at most 64" in text_of(message)


@pytest.mark.parametrize("why", ["inline", "store off"])
def test_references_travel_as_data_uris_where_ids_would_not_do(page, tmp_path, why):
    from lib_ipadapter.webui.events import Events

    services = FixedServices(ImageStore(tmp_path / "off", 0 if why == "store off" else 10**7), inline=why == "inline")
    path = write_picture(page.folder, "a.jpg")
    _, references, _ = Events(services).add_upload(sent(path), "")
    (uri,) = json.loads(references)
    assert uri.startswith("data:image/jpeg;base64,")
    assert base64.b64decode(uri.partition(",")[2]) == Path(path).read_bytes()
    assert not (tmp_path / "off").exists()
    assert len(images_in(Events(services).draw_strip(1, references))) == 1


def test_the_strip_shows_a_thumbnail_and_a_button_for_each(page):
    paths = [write_picture(page.folder, "a.png", size=(400, 200)), write_picture(page.folder, "b.png", (1, 2, 3))]
    html = page.events.draw_strip(2, added(page, *paths))
    assert [image.size for image in images_in(html)] == [(192, 96), (32, 16)]
    assert html.count("ipadapter-remove") == 2
    assert 'aria-label="Remove reference 2"' in html
    keys = re.findall(r'data-key="([^"]+)"', html)
    assert len(set(keys)) == 2
    assert 'aria-label="References of unit 2"' in html


def test_a_reference_that_is_gone_is_told_of_and_can_be_removed(page):
    html = page.events.draw_strip(1, json.dumps(["sha256:" + "d" * 64]))
    assert "add the picture again" in text_of(html)
    assert html.count("ipadapter-remove") == 1
    assert page.events.draw_preview(json.dumps(["sha256:" + "d" * 64]), "Centre", "auto", "Image") == (
        page.events.draw_preview("", "Centre", "auto", "Image")
    )


@pytest.mark.parametrize(
    "references", [HOSTILE, json.dumps([HOSTILE]), "[1", json.dumps(["data:image/png," + HOSTILE])]
)
def test_no_markup_from_outside_reaches_the_page(page, references):
    for html in (
        page.events.draw_strip(1, references),
        page.events.draw_preview(references, "Centre", "auto", "Image"),
    ):
        assert "<img src=x" not in html
    assert "ipadapter-error" in page.events.draw_strip(1, references)


def test_the_preview_is_what_the_encoder_gets_pixel_for_pixel(page):
    noise = Image.effect_noise((112, 112), 80).convert("RGB")
    page.services.preview = lambda *_: [(noise, noise.rotate(90))]
    references = added(page, write_picture(page.folder, "a.png"))
    shown = images_in(page.events.draw_preview(references, "Stretch", "auto", "Image"))
    assert [image.convert("RGB").tobytes() for image in shown] == [noise.tobytes(), noise.rotate(90).tobytes()]


def test_the_squares_of_a_reference_stand_together_and_are_counted(page):
    square = Image.new("RGB", (8, 8))
    page.services.preview = lambda *_: [(square, square), (square,)]
    html = page.events.draw_preview(added(page, write_picture(page.folder, "a.png")), "Tiles", "auto", "Image")
    assert [group.count("<img") for group in html.split("ipadapter-group")[1:]] == [2, 1]
    assert re.findall('alt="([^"]+)"', html) == [
        "Reference 1, square 1 of 2, as the encoder sees it",
        "Reference 1, square 2 of 2, as the encoder sees it",
        "Reference 2, as the encoder sees it",
    ]


def test_the_preview_gets_values_and_not_labels(page):
    asked: list[tuple[object, ...]] = []
    page.services.preview = lambda *args: asked.append(args) or []
    data = write_picture(page.folder, "a.png")
    references = added(page, data)
    page.events.draw_preview(references, "Tiles", "", "Style + composition")
    assert asked == [([digest(Path(data).read_bytes())], "tiles", "auto", "style_composition")]


def test_the_adapter_list_starts_with_auto_and_keeps_what_is_chosen(page):
    updates = page.events.list_adapters("auto", "gone.safetensors")
    assert updates[0]["choices"] == ["auto", "ip-adapter_sd15", "ip-adapter-plus_sd15"]
    assert updates[1]["choices"][-1] == "gone.safetensors"
    assert "refresh_models" not in page.services.asked
    message, *again = page.events.refresh("auto", "gone.safetensors")
    assert again == updates
    assert text_of(message) == ""
    assert "refresh_models" in page.services.asked


def test_a_drawing_is_strip_preview_and_line_and_brings_its_number_back(page):
    references = added(page, write_picture(page.folder, "a.png"))
    strip, preview, line = page.events.draw(2, "17", references, "Pad", "auto", "Style", "largest")
    assert 'data-turn="17" data-faces="false" data-pending="0"' in strip
    assert 'data-turn="17"' in preview
    assert (len(images_in(strip)), len(images_in(preview))) == (1, 1)
    assert re.findall(r'class="ipadapter-note">([^<]+)<', line) == ["auto for style", "More &lt;of&gt; it"]
    for part in page.events.draw(2, '"><b>', "", "Pad", "auto", "Style", "largest")[:2]:
        assert escape('"><b>') in part


def test_faces_are_asked_for_where_the_adapter_is_fed_by_them(page):
    references = added(page, write_picture(page.folder, "a.png"), write_picture(page.folder, "b.png", (1, 2, 3)))
    for adapter, intent, knows in (("auto", "Face", True), ("faceid.bin", "Image", True), ("auto", "Image", False)):
        page.services.asked.clear()
        strip, preview, _ = page.events.draw(1, "3", references, "Centre", adapter, intent, "largest")
        assert f'data-faces="{str(knows).lower()}" data-pending="{2 if knows else 0}"' in strip
        assert ("faces" in page.services.asked, "preview" in page.services.asked) == (knows, not knows)
        assert text_of(preview).count("Looking for faces") == (2 if knows else 0)


def test_the_fields_of_a_face_are_shown_with_the_intent_whatever_the_adapter(page):
    page.services.knows_identity = lambda *_: False
    assert 'data-faces="true"' in page.events.draw(1, "1", "", "Centre", "plus-face", "Face", "largest")[0]
    assert 'data-faces="false"' in page.events.draw(1, "1", "", "Centre", "plus-face", "Image", "largest")[0]


def test_each_picture_is_asked_for_with_its_own_choice_also_where_one_is_gone(page):
    asked = []
    page.services.faces = lambda references, *_, analyse: (asked.append((list(references), analyse)), FacePreview())[1]
    kept = added(page, write_picture(page.folder, "a.png"))
    references = json.dumps(["sha256:" + "d" * 64, *json.loads(kept)])
    page.events.draw(1, "8", references, "Centre", "auto", "Face", "2; @0.25,0.5")
    page.events.draw(1, "9+", references, "Centre", "auto", "Face", "")
    digest_of_a = json.loads(kept)[0]
    assert asked == [
        ([(digest_of_a, "picture 2", FaceChoice("point", point=(0.25, 0.5)))], False),
        ([(digest_of_a, "picture 2", FaceChoice())], True),
    ]


def test_a_choice_that_is_none_is_answered_with_a_sentence(page):
    references = added(page, write_picture(page.folder, "a.png"))
    preview = page.events.draw(1, "1", references, "Centre", "auto", "Face", HOSTILE)[1]
    assert "ipadapter-error" in preview and "largest, best, a number" in text_of(preview)
    assert HOSTILE not in preview


@pytest.mark.parametrize("method", ["explain", "refresh_models", "preview", "faces"])
def test_a_named_error_becomes_its_sentence(page, method):
    def fail(*_, **__):
        raise AdapterNotFoundError(f"Nothing in {HOSTILE}; put a file there.")

    setattr(page.services, method, fail)
    references = added(page, write_picture(page.folder, "a.png"))
    answers = {
        "explain": lambda: page.events.explain("auto", "Image"),
        "refresh_models": lambda: page.events.refresh("auto")[0],
        "preview": lambda: page.events.draw_preview(references, "Centre", "auto", "Image"),
        "faces": lambda: page.events.draw_faces(references, "auto", "Face", "largest", analyse=True)[0],
    }
    html = answers[method]()
    assert "ipadapter-error" in html
    assert "put a file there" in html
    assert "<img src=x" not in html


def test_an_error_that_is_not_ours_is_not_hidden(page):
    def fail(*_):
        raise ZeroDivisionError

    page.services.explain = fail
    with pytest.raises(ZeroDivisionError):
        page.events.explain("auto", "Image")
    assert not issubclass(ZeroDivisionError, IPAdapterError)


def test_a_list_that_cannot_be_read_leaves_auto(page):
    """The line below it says why: it comes from the same files."""

    def fail(*_):
        raise AdapterNotFoundError("Nothing there; put a file there.")

    page.services.adapter_names = fail
    assert page.events.list_adapters("chosen")[0]["choices"] == ["auto", "chosen"]


def test_deleting_the_store_says_how_many_and_the_strip_shows_it(page):
    references = added(page, write_picture(page.folder, "a.png"))
    assert len(images_in(page.events.draw_strip(1, references))) == 1
    assert text_of(page.events.delete_stored()) == "1 stored reference picture deleted."
    assert "not found" in page.events.draw_strip(1, references)


def test_a_picture_that_is_back_is_shown_again(page):
    path = write_picture(page.folder, "a.png")
    references = added(page, path)
    page.events.delete_stored()
    assert "not found" in page.events.draw_strip(1, references)
    assert added(page, path, references=references) == references
    assert len(images_in(page.events.draw_strip(1, references))) == 1


def test_a_pose_photo_is_kept_drawn_and_replaced(page):
    a, b = write_picture(page.folder, "a.png"), write_picture(page.folder, "b.png", (1, 2, 3))
    emptied, pose, message = page.events.add_pose(sent(a), "")
    assert (emptied, text_of(message)) == ("", "")
    assert page.services.store().get(json.loads(pose)[0]) == Path(a).read_bytes()
    strip, preview, line = page.events.draw(1, "1", "", "Centre", "auto", "InstantID", "largest", "auto", pose)
    assert 'data-net="true"' in strip
    assert [image.size for image in images_in(preview)] == [(32, 16)]
    assert "auto for instantid" in line
    replaced = page.events.add_pose(sent(b), pose)[1]
    assert len(json.loads(replaced)) == 1
    assert page.services.store().get(json.loads(replaced)[0]) == Path(b).read_bytes()
    (page.folder / "notes.txt").write_text(HOSTILE, encoding="utf-8")
    _, kept, message = page.events.add_pose(sent(str(page.folder / "notes.txt")), pose)
    assert kept == pose
    assert text_of(message)
    gone = json.dumps(["sha256:" + "d" * 64])
    preview = page.events.draw(1, "2", "", "Centre", "auto", "InstantID", "largest", "auto", gone)[1]
    assert "ipadapter-error" in preview
    strip, preview, _ = page.events.draw(1, "3", "", "Centre", "auto", "Face", "largest", "auto", pose)
    assert 'data-net="false"' in strip
    assert not images_in(preview), "the pose photo of another intent is not looked at"


def test_the_list_of_nets_keeps_what_was_chosen(page):
    updates = page.events.list_nets("auto", "gone.safetensors")
    choices = [update["choices"] for update in updates]
    assert choices[0] == ["auto", "none", "control_instant_id_sdxl.safetensors"]
    assert choices[1][-1] == "gone.safetensors"


def test_the_map_is_of_the_photo_that_gives_the_keypoints(page):
    references = added(page, write_picture(page.folder, "a.png"))
    pose = page.events.add_pose(sent(write_picture(page.folder, "b.png", (1, 2, 3))), "")[1]
    given = json.dumps([[0.1, 0.1]] * 5)
    for keypoints, poses, expected in (
        ("auto", pose, ["map of the pose photo, face 2"]),
        ("auto", "", ["map of reference 1, face best"]),
        ("reference", pose, ["map of reference 1, face best"]),
        ("none", pose, []),
        (given, pose, []),
    ):
        page.services.asked.clear()
        drawn = page.events.draw(
            1, "1", references, "Centre", "auto", "InstantID", "best", "auto", poses, keypoints, "2"
        )
        assert [asked for asked in page.services.asked if asked.startswith("map")] == expected
        assert f'data-pending="{len(expected)}"' in drawn[0]


def test_the_map_is_of_everybody_where_units_share_a_photo(page):
    pose = page.events.add_pose(sent(write_picture(page.folder, "b.png", (1, 2, 3))), "")[1]
    page.events.draw(1, "1", "", "Centre", "auto", "InstantID", "best", "auto", pose, "auto", "auto")
    assert "map of the pose photo, face None" in page.services.asked


def test_given_points_are_drawn_with_handles_and_what_is_wrong_with_them_is_said(page):
    def preview(keypoints: str, turn: str = "1") -> str:
        return page.events.draw(
            1, turn, "", "Centre", "auto", "InstantID", "best", "auto", "", keypoints, "largest", "Crop"
        )[1]

    given = json.dumps([[0.4, 0.4], [0.6, 0.4], [0.5, 0.6], [0.42, 0.8], [0.58, 0.8]])
    assert preview(given).count("ipadapter-dot") == 5
    assert preview(given, "2+@1016x768").count('data-size="1016x768"') == 2
    assert "Back to photo" in preview(given)
    assert "outside" in text_of(preview(json.dumps([[600, 5]] * 5), "3@512x512"))
    pixels = json.dumps([[600, 5]] * 5)
    assert "cannot be drawn here" in preview(pixels)
    assert "ipadapter-error" not in preview(pixels), "a job knows its size"
    assert "five points" in text_of(preview("[[1,2]]"))
    assert "ipadapter-dot" not in preview("auto")
