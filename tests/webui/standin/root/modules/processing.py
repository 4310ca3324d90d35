"""The processing objects and `process_images`: a job from its fields to pictures, with the scripts' callbacks."""

from __future__ import annotations

from modules.processed import Processed
from modules.processing_base import StableDiffusionProcessing, get_fixed_seed
from modules.processing_img2img import StableDiffusionProcessingImg2Img
from modules.processing_infotext import create_infotext
from modules.processing_loop import process_images, process_images_inner
from modules.processing_txt2img import StableDiffusionProcessingTxt2Img
from modules.vae_io import decode_first_stage, decode_latent_batch, images_tensor_to_samples

opt_C = 4  # noqa: N816 (the host's own name)
opt_f = 8

__all__ = ["Processed", "StableDiffusionProcessing", "StableDiffusionProcessingImg2Img",
           "StableDiffusionProcessingTxt2Img", "create_infotext", "decode_first_stage", "decode_latent_batch",
           "get_fixed_seed", "images_tensor_to_samples", "opt_C", "opt_f", "process_images", "process_images_inner"]
