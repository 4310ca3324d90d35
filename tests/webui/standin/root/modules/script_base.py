"""The base class of scripts and the small parameter objects their callbacks get."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

AlwaysVisible = object()


@dataclass
class MaskBlendArgs:
    """What `on_mask_blend` gets; `denoiser` is None in the final blend."""

    current_latent: Any
    nmask: Any
    init_latent: Any
    mask: Any
    blended_latent: Any
    denoiser: Any = None
    sigma: Any = None

    @property
    def is_final_blend(self) -> bool:
        """Whether sampling is over."""
        return self.denoiser is None


@dataclass
class PostSampleArgs:
    """What `post_sample` gets."""

    samples: Any


@dataclass
class PostprocessImageArgs:
    """What `postprocess_image` gets."""

    image: Any
    index: int = 0


@dataclass
class PostProcessMaskOverlayArgs:
    """What `postprocess_maskoverlay` gets."""

    index: int
    mask_for_overlay: Any
    overlay_image: Any


@dataclass
class PostprocessBatchListArgs:
    """What `postprocess_batch_list` gets."""

    images: list[Any]


@dataclass
class OnComponent:
    """What the `on_before_component` and `on_after_component` functions of a script get."""

    component: Any


class Script:
    """Base class; the host overrides nothing in it and calls what a subclass defines."""

    name = None
    section = None
    filename = None
    args_from = None
    args_to = None
    alwayson = False
    is_txt2img = False
    is_img2img = False
    tabname = None
    group = None
    create_group = True
    infotext_fields = None
    paste_field_names = None
    api_info = None
    on_before_component_elem_id = None
    on_after_component_elem_id = None
    setup_for_ui_only = False
    controls = None
    sorting_priority = 0

    def title(self):
        """The script's title; lower-cased, it is its API name."""
        raise NotImplementedError

    def ui(self, is_img2img):
        """Build and return the components whose values the callbacks get."""

    def show(self, is_img2img):
        """`AlwaysVisible`, True (in the drop-down) or False."""
        return True

    def run(self, p, *args):
        """Called when the script is selected in the drop-down."""

    def setup(self, p, *args):
        """The processing object has its scripts and arguments."""

    def before_process(self, p, *args):
        """Before overrides and the model's load."""

    def process(self, p, *args):
        """The model is loaded, prompts and seeds are set."""

    def before_process_init_images(self, p, pp, *args, **kwargs):
        """Forge: the mask's crop is known."""

    def before_process_batch(self, p, *args, **kwargs):
        """A batch begins; prompts still have their extra networks."""

    def after_extra_networks_activate(self, p, *args, **kwargs):
        """Extra networks are on."""

    def process_batch(self, p, *args, **kwargs):
        """The batch's prompts are plain."""

    def process_before_every_sampling(self, p, *args, **kwargs):
        """Right before each pass's sampling."""

    def post_sample(self, p, ps, *args):
        """Latents are there."""

    def on_mask_blend(self, p, mba, *args):
        """The masked latent is being blended."""

    def postprocess_batch(self, p, *args, **kwargs):
        """The batch is decoded."""

    def postprocess_batch_list(self, p, pp, *args, **kwargs):
        """The batch is decoded; images may be added or removed."""

    def postprocess_image(self, p, pp, *args):
        """One picture."""

    def postprocess_maskoverlay(self, p, ppmo, *args):
        """One picture's overlay."""

    def postprocess_image_after_composite(self, p, pp, *args):
        """One picture with its overlay."""

    def postprocess(self, p, processed, *args):
        """The job is done."""

    def before_hr(self, p, *args):
        """The hires pass begins."""

    def before_component(self, component, **kwargs):
        """Before each component of the tab."""

    def after_component(self, component, **kwargs):
        """After each component of the tab."""

    def on_before_component(self, callback, *, elem_id):
        """Register a function for the component with that id."""
        self.on_before_component_elem_id = [*(self.on_before_component_elem_id or []), (elem_id, callback)]

    def on_after_component(self, callback, *, elem_id):
        """Register a function for the component with that id."""
        self.on_after_component_elem_id = [*(self.on_after_component_elem_id or []), (elem_id, callback)]

    def describe(self):
        """Unused by the host."""
        return ""

    def elem_id(self, item_id):
        """Id of one of the script's components: `script_<tab>_<title>_<item>`."""
        tab = ("img2img_" if self.is_img2img else "txt2img_") if self.show(True) == self.show(False) else ""
        title = re.sub(r"[^a-z_0-9]", "", re.sub(r"\s", "_", self.title().lower()))
        return f"script_{tab}{title}_{item_id}"
