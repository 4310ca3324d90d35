"""Where each host looks for face packs: the usual folders, the user's, ControlNet's, insightface's, never a home."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.library.onnx_bytes import detector, recogniser


@pytest.fixture
def home(clean_host, tmp_path, monkeypatch):
    """A home folder of its own, with a pack lying open in it; other tests' models are elsewhere."""
    from modules import paths

    models = tmp_path / "models"
    monkeypatch.setattr(paths, "models_path", str(models))
    if clean_host.flavour == "forge":
        from modules_forge import shared as forge_shared

        monkeypatch.setattr(forge_shared, "preprocessor_dir", str(models / "ControlNetPreprocessor"))
    home = tmp_path / "home"
    home.mkdir()
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(home))
    put_pack(home)
    return home


def put_pack(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "det_10g.onnx").write_bytes(detector())
    (folder / "w600k_r50.onnx").write_bytes(recogniser())


def found_in(folder: Path, *extra: Path) -> bool:
    """Whether a pack in this folder is found by the host, and was not before."""
    from lib_ipadapter.hosts.select import current_host
    from lib_ipadapter.library.errors import FacePackError
    from lib_ipadapter.library.face_packs import find_face_pack

    folders = current_host().face_folders(extra)
    with pytest.raises(FacePackError):
        find_face_pack(folders, "buffalo_l")
    put_pack(folder)
    try:
        pack = find_face_pack(folders, "buffalo_l")
    except FacePackError:
        return False
    finally:
        for name in ("det_10g.onnx", "w600k_r50.onnx"):
            (folder / name).unlink()
    return pack.detector.path.parent == folder


def test_usual_folders(home, tmp_path):
    from modules import paths

    models = Path(paths.models_path)
    for below in ("insightface", "insightface/models/buffalo_l", "insightface/buffalo_l/buffalo_l", "ipadapter/faces"):
        assert found_in(models / below), below
    assert found_in(home / ".insightface/models/buffalo_l")
    assert found_in(tmp_path / "mine/deep", tmp_path / "mine")
    assert not found_in(tmp_path / "elsewhere")


def test_the_first_is_where_to_put_a_pack_and_none_is_the_home(home):
    from modules import paths

    from lib_ipadapter.hosts.select import current_host

    folders = current_host().face_folders(())
    assert folders[0] == Path(paths.models_path) / "insightface"
    assert home not in folders and not any(folder in home.parents for folder in folders)
    assert len(set(folders)) == len(folders)


def test_controlnet_s_folders(home, tmp_path, monkeypatch):
    from modules import extensions, paths, shared

    from lib_ipadapter.hosts.select import current_host

    if current_host().name != "AUTOMATIC1111":
        assert found_in(Path(paths.models_path) / "ControlNetPreprocessor/insightface/models/buffalo_l")
        return
    extension = extensions.Extension(tmp_path / "sd-webui-controlnet")
    monkeypatch.setattr(extensions, "extensions", [*extensions.extensions, extension])
    assert found_in(tmp_path / "sd-webui-controlnet/annotator/downloads/insightface/models/buffalo_l")
    extension.enabled = False
    assert not found_in(tmp_path / "sd-webui-controlnet/annotator/downloads/insightface")
    monkeypatch.setattr(shared.cmd_opts, "controlnet_annotator_models_path", str(tmp_path / "flag"), raising=False)
    assert found_in(tmp_path / "flag/insightface/models/buffalo_l")
    assert not found_in(tmp_path / "flag/other")
    shared.opts.data["control_net_modules_path"] = "below/the/data"
    assert found_in(Path(paths.data_path) / "below/the/data/insightface/models/buffalo_l")
