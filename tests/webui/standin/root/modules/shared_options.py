"""The host's own settings, as far as extensions or this host read them, with the host's defaults."""

from __future__ import annotations

from modules.options import OptionInfo, options_section


def option_labels() -> dict[str, OptionInfo]:
    """Fresh labels: key to `OptionInfo`."""
    sampling = {
        "pad_cond_uncond": OptionInfo(False, "Pad prompt/negative prompt", infotext="Pad conds"),
        "pad_cond_uncond_v0": OptionInfo(False, "Pad prompt/negative prompt (v0)", infotext="Pad conds v0"),
        "batch_cond_uncond": OptionInfo(True, "Batch cond/uncond"),
        "s_min_uncond": OptionInfo(0.0, "Negative Guidance minimum sigma", infotext="NGMS"),
        "s_min_uncond_all": OptionInfo(False, "Negative Guidance minimum sigma all steps", infotext="NGMS all steps"),
        "skip_early_cond": OptionInfo(0.0, "Ignore negative prompt during early sampling", infotext="Skip Early CFG"),
        "eta_ancestral": OptionInfo(1.0, "Eta for k-diffusion samplers", infotext="Eta"),
        "eta_ddim": OptionInfo(0.0, "Eta for DDIM", infotext="Eta DDIM"),
        "img2img_fix_steps": OptionInfo(False, "With img2img, do exactly the amount of steps the slider specifies"),
        "initial_noise_multiplier": OptionInfo(1.0, "Noise multiplier for img2img", infotext="Noise multiplier"),
        "inpainting_mask_weight": OptionInfo(1.0, "Inpainting conditioning mask strength",
                                             infotext="Conditional mask weight"),
        "refiner_switch_by_sample_steps": OptionInfo(False, "Switch to refiner by sampling steps",
                                                     infotext="Refiner switch by sampling steps"),
        "hires_fix_refiner_pass": OptionInfo("second pass", "Hires fix: which pass to enable refiner for"),
        "CLIP_stop_at_last_layers": OptionInfo(1, "Clip skip", infotext="Clip skip"),
        "persistent_cond_cache": OptionInfo(True, "Persistent cond cache"),
        "fp8_storage": OptionInfo("Disable", "FP8 weight", infotext="FP8 weight"),
        "lora_functional": OptionInfo(False, "Lora/Networks: use old method"),
    }
    models = {
        "sd_model_checkpoint": OptionInfo(None, "Stable Diffusion checkpoint", infotext="Model hash"),
        "sd_unet": OptionInfo("Automatic", "SD Unet"),
        "sd_checkpoints_limit": OptionInfo(1, "Maximum number of checkpoints loaded at the same time"),
    }
    pictures = {
        "samples_save": OptionInfo(False, "Always save all generated images"),
        "samples_format": OptionInfo("png", "File format for images"),
        "outdir_txt2img_samples": OptionInfo("outputs/txt2img-images", "Output directory for txt2img images"),
        "outdir_img2img_samples": OptionInfo("outputs/img2img-images", "Output directory for img2img images"),
        "return_grid": OptionInfo(False, "Show grid in gallery"),
        "enable_pnginfo": OptionInfo(True, "Write infotext to metadata of the generated image"),
        "add_model_name_to_info": OptionInfo(True, "Add model name to generation information"),
        "add_version_to_infotext": OptionInfo(True, "Add program version to generation information"),
        "img2img_background_color": OptionInfo("#ffffff", "With img2img, fill transparent parts with this color"),
        "overlay_inpaint": OptionInfo(True, "Overlay original for inpaint"),
        "return_mask": OptionInfo(False, "For inpainting, include the greyscale mask in results for web"),
    }
    page = {
        "send_seed": OptionInfo(True, "Send seed when sending prompt or image to other interface"),
        "send_size": OptionInfo(True, "Send size when sending prompt or image to another interface"),
        "infotext_skip_pasting": OptionInfo([], "Disregard fields from pasted infotext"),
        "show_progress_type": OptionInfo("Approx cheap", "Live preview method"),
        "live_previews_enable": OptionInfo(False, "Show live previews of the created image"),
        "localization": OptionInfo("None", "Localization"),
    }
    api = {
        "api_enable_requests": OptionInfo(True, "Allow http:// and https:// URLs for input images in API",
                                          restrict_api=True),
        "api_forbid_local_requests": OptionInfo(True, "Forbid URLs to local resources", restrict_api=True),
        "api_useragent": OptionInfo("", "User agent for requests", restrict_api=True),
    }
    labels: dict[str, OptionInfo] = {}
    for key, title, group in (("sampler-params", "Sampler parameters", sampling), ("sd", "Stable Diffusion", models),
                              ("saving-images", "Saving images/grids", pictures), ("ui", "User interface", page),
                              ("api", "API", api)):
        labels.update(options_section((key, title), group))
    return labels
