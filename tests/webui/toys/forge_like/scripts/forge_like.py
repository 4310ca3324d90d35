"""Imports its own `lib_ipadapter`, as the extension that Forge ships does."""

from lib_ipadapter.IPAdapterPlus import WHOSE
from modules import scripts


class ForgeLike(scripts.Script):
    """Title "Forge-like"; `whose` tells which package was found."""

    whose = WHOSE

    def title(self):
        return "Forge-like"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return []
