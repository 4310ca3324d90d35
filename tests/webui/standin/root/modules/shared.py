"""What every part of the host, and every extension, shares: settings, flags, state and the loaded model."""

from __future__ import annotations

import sys
from types import ModuleType

from modules import devices
from modules.options import OptionHTML, OptionInfo, Options, options_section
from modules.paths_internal import data_path, models_path, script_path
from modules.shared_cmd_options import cmd_opts, parser
from modules.shared_options import option_labels
from modules.shared_state import State

__all__ = ["OptionHTML", "OptionInfo", "cmd_opts", "data_path", "models_path", "options_section", "opts", "parser",
           "script_path", "state"]

opts = Options(option_labels())
config_filename = cmd_opts.ui_settings_file
opts.load(config_filename)
options_templates = opts.data_labels

state = State()
device = devices.device
demo = None
settings_components: dict[str, object] = {}
latent_upscale_default_mode = "Latent"
latent_upscale_modes = {
    "Latent": {"mode": "bilinear", "antialias": False},
    "Latent (nearest)": {"mode": "nearest", "antialias": False},
}
sd_upscalers: list[object] = []


class _Shared(ModuleType):
    """`shared.sd_model` is live: it loads the first checkpoint when first read, and follows model switches."""

    @property
    def sd_model(self):
        from modules import sd_models

        return sd_models.model_data.get_sd_model()

    @sd_model.setter
    def sd_model(self, value):
        from modules import sd_models

        sd_models.model_data.set_sd_model(value)


sys.modules[__name__].__class__ = _Shared
