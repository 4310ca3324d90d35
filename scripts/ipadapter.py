"""The host's way in: the script class and the callbacks. Everything else is in lib_ipadapter.

The host runs this file again when the UI is reloaded, while lib_ipadapter stays as it was first imported.
"""

from modules import script_callbacks

# The host has this extension's folder on sys.path only while this file runs, so every package is imported here and
# now; later imports inside them are relative and need no path.
from lib_ipadapter.webui import api, settings, version
from lib_ipadapter.webui.log import set_up_log
from lib_ipadapter.webui.script import IPAdapterScript, add_axes, on_cfg_denoiser

VERSION = "0.1.0"

__all__ = ["IPAdapterScript"]

set_up_log()
version.note_installed(VERSION)
script_callbacks.on_app_started(api.add_routes)
script_callbacks.on_before_ui(add_axes)
script_callbacks.on_cfg_denoiser(on_cfg_denoiser)
script_callbacks.on_ui_settings(settings.register_settings)
