"""`process_images`: overrides, the batches, and each picture's way to the result, with the callbacks in order."""

from __future__ import annotations

import torch
from modules import devices, extra_networks, images, rng, sd_models, sd_unet, shared
from modules.processed import Processed
from modules.processing_base import get_fixed_seed
from modules.processing_infotext import create_infotext
from modules.script_base import (
    PostprocessBatchListArgs,
    PostprocessImageArgs,
    PostProcessMaskOverlayArgs,
    PostSampleArgs,
)
from modules.shared import opts, state
from modules.vae_io import decode_latent_batch, to_image
from PIL import Image

from tests.webui.standin import launching


def process_images(p) -> Processed:
    """Run a job; `before_process` comes before the overrides and the model's load."""
    if p.scripts is not None:
        p.scripts.before_process(p)
    # Only settings that have a value already are put back: an override of an unset one stays, as in the host.
    stored = {key: opts.data[key] for key in p.override_settings if key in opts.data}
    try:
        if sd_models.checkpoint_aliases.get(p.override_settings.get("sd_model_checkpoint")) is None:
            p.override_settings.pop("sd_model_checkpoint", None)
            sd_models.reload_model_weights()
        for key, value in p.override_settings.items():
            opts.set(key, value, is_api=True, run_callbacks=False)
            if key == "sd_model_checkpoint":
                sd_models.reload_model_weights()
        return process_images_inner(p)
    finally:
        if p.override_settings_restore_afterwards:
            for key, value in stored.items():
                setattr(opts, key, value)


def _prepare(p) -> None:
    seed, subseed = get_fixed_seed(p.seed), get_fixed_seed(p.subseed)
    if p.refiner_checkpoint not in (None, "", "None", "none"):
        p.refiner_checkpoint_info = sd_models.get_closet_checkpoint_match(p.refiner_checkpoint)
        if p.refiner_checkpoint_info is None:
            raise Exception(f"Could not find checkpoint with name {p.refiner_checkpoint}")  # noqa: TRY002
    p.sd_model_name = shared.sd_model.sd_checkpoint_info.name_for_extra
    p.sd_model_hash = shared.sd_model.sd_model_hash
    p.fill_fields_from_opts()
    p.setup_prompts()
    count = len(p.all_prompts)
    p.all_seeds = [int(seed) + (i if p.subseed_strength == 0 else 0) for i in range(count)]
    p.all_subseeds = [int(subseed) + i for i in range(count)]


def process_images_inner(p) -> Processed:
    """The batches of a job whose model is loaded."""
    devices.torch_gc()
    _prepare(p)
    if p.scripts is not None:
        p.scripts.process(p)
    infotexts: list[str] = []
    output: list[Image.Image] = []
    with torch.no_grad():
        p.init(p.all_prompts, p.all_seeds, p.all_subseeds)
        sd_unet.apply_unet()
        if state.job_count == -1:
            state.job_count = p.n_iter
        for n in range(p.n_iter):
            state.skipped = False
            if state.interrupted or state.stopping_generation:
                break
            if not _run_batch(p, n, infotexts, output):
                break
    if not infotexts:
        infotexts.append(Processed(p, []).infotext(p, 0))
    p.color_corrections = None
    if not p.disable_extra_networks and p.extra_network_data:
        extra_networks.deactivate(p, p.extra_network_data)
    devices.torch_gc()
    result = Processed(p, images_list=output, seed=p.all_seeds[0], info=infotexts[0], subseed=p.all_subseeds[0],
                       infotexts=infotexts, extra_images_list=getattr(p, "extra_result_images", ()))
    if p.scripts is not None:
        p.scripts.postprocess(p, result)
    return result


def _run_batch(p, n: int, infotexts: list[str], output: list[Image.Image]) -> bool:
    p.iteration = n
    sd_models.reload_model_weights()  # a hires checkpoint or a refiner may have replaced it
    if launching.is_forge():
        p.sd_model.reset_objects(original=True)
    p.slice_batch(n)
    p.rng = rng.ImageRNG((4, p.height // 8, p.width // 8), p.seeds, subseeds=p.subseeds,
                         subseed_strength=p.subseed_strength)
    batch = {"batch_number": n, "prompts": p.prompts, "seeds": p.seeds, "subseeds": p.subseeds}
    if p.scripts is not None:
        p.scripts.before_process_batch(p, **batch)
    if len(p.prompts) == 0:
        return False
    p.parse_extra_network_prompts()
    if not p.disable_extra_networks:
        extra_networks.activate(p, p.extra_network_data)
    if launching.is_forge():
        p.sd_model.reset_objects()
    if p.scripts is not None:
        p.scripts.process_batch(p, **(batch | {"prompts": p.prompts}))
    p.setup_conds()
    samples = p.sample(conditioning=p.c, unconditional_conditioning=p.uc, seeds=p.seeds, subseeds=p.subseeds,
                       subseed_strength=p.subseed_strength, prompts=p.prompts)
    if p.scripts is not None:
        ps = PostSampleArgs(samples)
        p.scripts.post_sample(p, ps)
        samples = ps.samples
    if not getattr(samples, "already_decoded", False):
        devices.test_for_nans(samples, "unet")
        samples = decode_latent_batch(p.sd_model, samples, target_device=devices.cpu, check_for_nans=True)
    pixels = torch.clamp((torch.stack(list(samples)).float() + 1.0) / 2.0, min=0.0, max=1.0)
    state.nextjob()
    pictures = list(pixels)
    if p.scripts is not None:
        p.scripts.postprocess_batch(p, images=pixels, batch_number=n)
        p.slice_batch(n)
        params = PostprocessBatchListArgs(pictures)
        p.scripts.postprocess_batch_list(p, params, batch_number=n)
        pictures = params.images
    for i, sample in enumerate(pictures):
        _finish_picture(p, i, to_image(sample), infotexts, output)
    return True


def _overlay(image: Image.Image, paste_to, overlay: Image.Image | None) -> Image.Image:
    if overlay is None:
        return image
    if paste_to is not None:
        x, y, width, height = paste_to
        base = Image.new("RGBA", (overlay.width, overlay.height))
        base.paste(images.resize_image(1, image, width, height), (x, y))
        image = base
    image = image.convert("RGBA")
    image.alpha_composite(overlay)
    return image.convert("RGB")


def _finish_picture(p, i: int, image: Image.Image, infotexts: list[str], output: list[Image.Image]) -> None:
    p.batch_index = i
    overlays = getattr(p, "overlay_images", None)
    overlay = overlays[i] if opts.overlay_inpaint and overlays and i < len(overlays) else None
    mask_for_overlay = getattr(p, "mask_for_overlay", None)
    if p.scripts is not None:
        pp = PostprocessImageArgs(image, i)
        p.scripts.postprocess_image(p, pp)
        image = pp.image
        ppmo = PostProcessMaskOverlayArgs(i, mask_for_overlay, overlay)
        p.scripts.postprocess_maskoverlay(p, ppmo)
        mask_for_overlay, overlay = ppmo.mask_for_overlay, ppmo.overlay_image
    image = _overlay(image, p.paste_to, overlay)
    if p.scripts is not None:
        pp = PostprocessImageArgs(image, i)
        p.scripts.postprocess_image_after_composite(p, pp)
        image = pp.image
    text = create_infotext(p, p.prompts, p.seeds, p.subseeds, index=i, all_negative_prompts=p.negative_prompts)
    infotexts.append(text)
    if p.save_samples():
        images.save_image(image, p.outpath_samples, "", p.seeds[i], p.prompts[i], opts.samples_format, info=text, p=p)
    if opts.enable_pnginfo:
        image.info["parameters"] = text
    output.append(image)
    if mask_for_overlay is not None and opts.return_mask:
        output.append(mask_for_overlay.convert("RGB"))
