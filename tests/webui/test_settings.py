"""The settings' readers, with and without the options."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def settings(clean_host):
    """The module, on a host whose options are put back afterwards."""
    from lib_ipadapter.webui import settings

    return settings


def set_option(key: str, value: object) -> None:
    from modules import shared

    shared.opts.data[key] = value


def drop_options(settings) -> None:
    from modules import shared

    for key in settings.DEFAULTS:
        shared.opts.data.pop(key, None)


def test_every_option_is_registered_with_its_default(settings):
    from modules import shared

    settings.register_settings()
    for key, default in settings.DEFAULTS.items():
        assert key.startswith("ipadapter_")
        assert shared.opts.data_labels[key].default == default
        assert shared.opts.data_labels[key].section == settings.SECTION


def test_readers_know_their_defaults_without_the_options(settings, tmp_path):
    drop_options(settings)
    assert settings.max_units() == 4
    assert settings.stop_on_failure()
    assert settings.extra_folders() == ()
    assert settings.store_bytes() == 500 * 1024 * 1024
    assert settings.store_folder(tmp_path) == tmp_path / "ipadapter-references"
    assert not settings.inline_references()
    assert settings.cache_bytes() > 0


ODD = [(0, 1), (99, 10), ("four", 4), (None, 4), (True, 4), (float("nan"), 4), (float("inf"), 4)]


@pytest.mark.parametrize(("value", "units"), [(1, 1), (10, 10), *ODD])
def test_the_number_of_units_is_one_to_ten_whatever_config_json_says(settings, value, units):
    set_option(settings.MAX_UNITS, value)
    assert settings.max_units() == units


def test_folders_are_read_by_line_and_by_separator(settings):
    set_option(settings.EXTRA_FOLDERS, f' /a b/c {os.pathsep}"/d"\n\n/e\n')
    assert settings.extra_folders() == (Path("/a b/c"), Path("/d"), Path("/e"))


def test_what_the_user_sets_is_read(settings, tmp_path):
    set_option(settings.ON_FAILURE, settings.CONTINUE)
    set_option(settings.STORE_MB, 0)
    set_option(settings.STORE_FOLDER, str(tmp_path / "mine"))
    set_option(settings.INLINE_REFERENCES, True)
    assert not settings.stop_on_failure()
    assert settings.store_bytes() == 0
    assert settings.store_folder(Path("/elsewhere")) == tmp_path / "mine"
    assert settings.inline_references()
