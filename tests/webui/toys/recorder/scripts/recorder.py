"""An always-on script that notes each callback, wraps `p.sample` and hooks the UNet for one pass."""

import sys

import gradio as gr
from modules import script_callbacks, scripts, shared
from modules.ui_components import InputAccordion

from tests.webui.toys.record import record

record.basedirs.append(scripts.basedir())
record.sys_paths.append(list(sys.path))


def unet_of(p):
    """The net that the job runs."""
    objects = getattr(p.sd_model, "forge_objects", None)
    return objects.unet.model.diffusion_model if objects else p.sd_model.model.diffusion_model


hooks = []


def unhook():
    """Take our own hook off, and nobody else's."""
    while hooks:
        hooks.pop().remove()


def note_unet_call(module, args, kwargs):
    """Pre-hook of the UNet."""
    context = kwargs["context"]
    options = kwargs.get("transformer_options") or {}
    record.unet_calls.append((args[0].shape[0], context.shape[1], options.get("cond_or_uncond")))


def note_step(params):
    """on_cfg_denoiser."""
    if record.fail_in == "on_cfg_denoiser":
        raise ValueError("told to fail in on_cfg_denoiser")
    cond, uncond = params.text_cond, params.text_uncond
    record.steps.append({"step": params.denoiser.step, "total": params.denoiser.total_steps, "sigma": params.sigma[0],
                         "sampling_step": params.sampling_step, "x": tuple(params.x.shape),
                         "cond": tuple(cond.shape), "uncond": None if uncond is None else tuple(uncond.shape),
                         "model": id(shared.sd_model)})
    if record.interrupt_at == params.denoiser.step:
        shared.state.interrupt()


class Recorder(scripts.Script):
    """Title "Toy Recorder"."""

    def title(self):
        return "Toy Recorder"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        record.ui_calls += 1
        with InputAccordion(False, label="Toy", elem_id=self.elem_id("open")) as enabled:
            text = gr.Textbox("default text", label="Toy text", elem_id=self.elem_id("text"))
            number = gr.Slider(0, 10, value=3, step=1, label="Toy number", elem_id=self.elem_id("number"))
        self.infotext_fields = [(text, "Toy text"), (number, lambda params: params.get("Toy number"))]
        self.paste_field_names = ["Toy text"]
        return [enabled, text, number]

    def _note(self, name):
        record.calls.append(name)
        if record.fail_in == name:
            raise ValueError(f"told to fail in {name}")

    def before_process(self, p, *args):
        self._note("before_process")

    def process(self, p, *args):
        record.args.append(args)
        p.extra_generation_params.update(record.infotext)
        for comment in record.comments:
            p.comment(comment)
        self._note("process")
        if record.sample_error is not None:
            inner, error = p.sample, record.sample_error

            def sample(*positional, **keywords):
                inner(*positional, **keywords)
                raise error

            p.sample = sample

    def process_before_every_sampling(self, p, *args, **kwargs):
        unet = unet_of(p)
        record.models.append(id(unet))
        record.pbes.append(kwargs)
        unhook()
        hooks.append(unet.register_forward_pre_hook(note_unet_call, with_kwargs=True))
        self._note("process_before_every_sampling")

    def postprocess(self, p, processed, *args):
        unhook()
        self._note("postprocess")


def _noting(name):
    def callback(self, p, *args, **kwargs):
        self._note(name)

    callback.__name__ = name
    return callback


for _name in ("setup", "before_process_init_images", "before_process_batch", "after_extra_networks_activate",
              "process_batch", "before_hr", "post_sample", "on_mask_blend", "postprocess_batch",
              "postprocess_batch_list", "postprocess_image", "postprocess_maskoverlay",
              "postprocess_image_after_composite"):
    setattr(Recorder, _name, _noting(_name))

script_callbacks.on_cfg_denoiser(note_step)
script_callbacks.on_cfg_denoised(lambda params: record.calls.append("on_cfg_denoised"))
script_callbacks.on_app_started(lambda demo, app: record.events.append("app_started"))
script_callbacks.on_model_loaded(lambda model: record.events.append("model_loaded"))
script_callbacks.on_script_unloaded(lambda: record.events.append("script_unloaded"))
script_callbacks.on_ui_settings(
    lambda: shared.opts.add_option("toy_option", shared.OptionInfo(7, "Toy option", section=("toy", "Toy"))))
