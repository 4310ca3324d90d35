"""The page: a txt2img and an img2img tab, each with its scripts, a result area and the buttons between them."""

from __future__ import annotations

from contextlib import closing

import gradio as gr
import modules.scripts as scripts_module
from modules import gradio_extensions, infotext_utils, script_callbacks, sd_models, sd_samplers, shared
from modules.call_queue import wrap_gradio_gpu_call
from modules.processing import (
    StableDiffusionProcessingImg2Img,
    StableDiffusionProcessingTxt2Img,
    process_images,
)
from modules.ui_common import create_refresh_button, plaintext_to_html
from modules.ui_components import ToolButton
from modules.ui_loadsave import UiLoadsave

from tests.webui.standin import launching

__all__ = ["create_refresh_button", "create_ui", "plaintext_to_html"]
gradio_extensions.install()


def _generate(tabname: str, prompt, negative, steps, sampler, cfg, seed, width, height, batch_size, n_iter, extra,
              init_image, *script_args):
    """One job of the page; `extra` is hires fix in txt2img and the denoising strength in img2img."""
    common = {"prompt": prompt, "negative_prompt": negative, "steps": int(steps), "sampler_name": sampler,
              "cfg_scale": cfg, "seed": int(seed), "width": int(width), "height": int(height),
              "batch_size": int(batch_size), "n_iter": int(n_iter)}
    if tabname == "txt2img":
        runner = scripts_module.scripts_txt2img
        hires = {"enable_hr": bool(extra), "denoising_strength": 0.7, "hr_cfg": cfg, "hr_additional_modules": []}
        p = StableDiffusionProcessingTxt2Img(**common, **hires)
    else:
        runner = scripts_module.scripts_img2img
        if init_image is None:
            raise ValueError("img2img needs an init image")
        p = StableDiffusionProcessingImg2Img(**common, init_images=[init_image], denoising_strength=extra)
    p.outpath_samples = getattr(shared.opts, f"outdir_{tabname}_samples")
    p.scripts = runner
    p.script_args = script_args
    with closing(p):
        processed = runner.run(p, *script_args) or process_images(p)
    return (processed.images, processed.js(), processed.info, plaintext_to_html(processed.info),
            plaintext_to_html(processed.comments, classname="comments"))


def _generate_txt2img(*args):
    return _generate("txt2img", *args)


def _generate_img2img(*args):
    return _generate("img2img", *args)


def _settings(tab: str) -> dict[str, object]:
    """A tab's own inputs, in the order `_generate` takes them."""
    with gr.Row():
        steps = gr.Slider(1, 150, value=20, step=1, label="Sampling steps", elem_id=f"{tab}_steps")
        sampler = gr.Dropdown(sd_samplers.visible_sampler_names(), value="Euler", label="Sampling method",
                              elem_id=f"{tab}_sampling")
        cfg = gr.Slider(1.0, 30.0, value=7.0, step=0.5, label="CFG Scale", elem_id=f"{tab}_cfg_scale")
        seed = gr.Number(value=-1, label="Seed", elem_id=f"{tab}_seed", precision=0)
    with gr.Row():
        width = gr.Slider(64, 2048, value=512, step=8, label="Width", elem_id=f"{tab}_width")
        height = gr.Slider(64, 2048, value=512, step=8, label="Height", elem_id=f"{tab}_height")
        batch_size = gr.Slider(1, 8, value=1, step=1, label="Batch size", elem_id=f"{tab}_batch_size")
        n_iter = gr.Slider(1, 100, value=1, step=1, label="Batch count", elem_id=f"{tab}_batch_count")
    if tab == "txt2img":
        extra = gr.Checkbox(False, label="Hires. fix", elem_id="txt2img_hr")
        init_image = gr.State(None)
    else:
        init_image = gr.Image(label="Image for img2img", elem_id="img2img_image", type="pil")
        extra = gr.Slider(0.0, 1.0, value=0.75, step=0.01, label="Denoising strength",
                          elem_id="img2img_denoising_strength")
    return {"Steps": steps, "Sampler": sampler, "CFG scale": cfg, "Seed": seed, "Size-1": width, "Size-2": height,
            "Batch size": batch_size, "Batch count": n_iter, "extra": extra, "init": init_image}


def _create_tab(tab: str, loadsave: UiLoadsave) -> None:
    runner = getattr(scripts_module, f"scripts_{tab}")
    scripts_module.scripts_current = runner
    runner.prepare_ui()
    runner.initialize_scripts(is_img2img=tab == "img2img")
    with gr.Blocks(analytics_enabled=False, elem_id=f"{tab}_interface") as block:
        with gr.Row(elem_id=f"{tab}_toprow"):
            prompt = gr.Textbox(label="Prompt", elem_id=f"{tab}_prompt", lines=3)
            negative = gr.Textbox(label="Negative prompt", elem_id=f"{tab}_neg_prompt", lines=3)
            submit = gr.Button("Generate", elem_id=f"{tab}_generate", variant="primary")
            paste = ToolButton("\u2199\ufe0f", elem_id="paste" if tab == "txt2img" else f"{tab}_paste")
        with gr.Row():
            with gr.Column(elem_id=f"{tab}_settings"):
                inputs = _settings(tab)
                with gr.Group(elem_id=f"{tab}_script_container"):
                    custom_inputs = runner.setup_ui()
            with gr.Column(elem_id=f"{tab}_results"):
                gallery = gr.Gallery(label="Output", show_label=False, elem_id=f"{tab}_gallery", columns=4)
                send = gr.Button("Send to img2img", elem_id=f"{tab}_send_to_img2img")
                generation_info = gr.Textbox(visible=False, elem_id=f"generation_info_{tab}")
                infotext = gr.Textbox(visible=False, elem_id=f"infotext_{tab}")
                html_info = gr.HTML(elem_id=f"html_info_{tab}", elem_classes=["infotext"])
                html_log = gr.HTML(elem_id=f"html_log_{tab}", elem_classes=["html-log"])
        job = _generate_txt2img if tab == "txt2img" else _generate_img2img
        submit.click(fn=wrap_gradio_gpu_call(job, extra_outputs=[None, "", "", ""]),
                     inputs=[prompt, negative, *inputs.values(), *custom_inputs],
                     outputs=[gallery, generation_info, infotext, html_info, html_log], show_progress=False)
        own = {"Prompt": prompt, "Negative prompt": negative,
               **{key: inputs[key] for key in ("Steps", "Sampler", "CFG scale", "Seed", "Size-1", "Size-2")}}
        fields = [(component, key) for key, component in own.items()]
        if tab == "img2img":
            fields.append((inputs["extra"], "Denoising strength"))
        infotext_utils.add_paste_fields(tab, inputs["init"] if tab == "img2img" else None,
                                        [*fields, *runner.infotext_fields])
        infotext_utils.register_paste_params_button(infotext_utils.ParamBinding(paste, tab, prompt))
        infotext_utils.register_paste_params_button(infotext_utils.ParamBinding(
            send, "img2img", source_image_component=gallery, source_tabname=tab,
            paste_field_names=runner.paste_field_names))
    loadsave.add_block(block, tab)
    scripts_module.scripts_current = None


def _switch_to(tabs):
    def switch(button, tabname: str) -> None:
        if launching.is_forge():
            button.click(fn=lambda: gr.Tabs(selected=tabname), inputs=None, outputs=[tabs], show_progress=False)
        else:
            button.click(fn=lambda: gr.Tabs.update(selected=tabname), inputs=None, outputs=[tabs],
                         show_progress=False)

    return switch


def create_ui() -> gr.Blocks:
    """Build the page; scripts see `on_before_ui` first and their `ui()` once per tab."""
    infotext_utils.reset()
    for runner in (scripts_module.scripts_txt2img, scripts_module.scripts_img2img):
        runner.infotext_fields, runner.paste_field_names = [], []
    script_callbacks.before_ui_callback()
    loadsave = UiLoadsave(shared.cmd_opts.ui_config_file)
    with gr.Blocks(analytics_enabled=False, title="Stand-in host", elem_id="standin") as demo:
        _checkpoint_dropdown()
        with gr.Tabs(elem_id="tabs") as tabs:
            for tab in ("txt2img", "img2img"):
                with gr.TabItem(tab, id=tab, elem_id=f"tab_{tab}"):
                    _create_tab(tab, loadsave)
        infotext_utils.connect_paste_params_buttons(_switch_to(tabs))
    loadsave.dump_defaults()
    shared.demo = demo
    return demo


def _change_checkpoint(title: str) -> None:
    """The setting on top of the page."""
    shared.opts.set("sd_model_checkpoint", title)
    sd_models.reload_model_weights()


def _checkpoint_dropdown() -> None:
    dropdown = gr.Dropdown(sd_models.checkpoint_tiles(), label="Stable Diffusion checkpoint",
                           value=shared.sd_model.sd_checkpoint_info.title, elem_id="setting_sd_model_checkpoint")
    dropdown.change(fn=_change_checkpoint, inputs=[dropdown], outputs=[], show_progress=False)
