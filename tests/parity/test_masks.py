"""Masked image prompts against diffusers' `ip_adapter_masks`.

diffusers reads a mask at a level's size with bicubic interpolation, four pixels around each place's centre, and this
extension takes the mean over the place. Both are the same where the mask is constant over every place of every level:
so it is here, in blocks of the coarsest level. diffusers finds a level's height by a square root, which is right for
the sizes below; for others it pads and cuts.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib_ipadapter.core.masks import averaged, level_sizes
from tests.parity.tolerances import WHOLE_UNET

pytest.importorskip("diffusers", reason="diffusers is in the Forge environment only")

from diffusers.image_processor import IPAdapterMaskProcessor

from lib_ipadapter.core.attach import attach
from lib_ipadapter.core.schedule import COND, UNCOND, UNetCall
from tests.parity.diffusers_unets import diffusers_inputs, diffusers_twin
from tests.parity.test_unet_step import Pair, reference, unit
from tests.unets import sd15_unet

ROWS = (COND, UNCOND)


def blocks(height: int, width: int, block: int, seed: int = 0) -> Tensor:
    """A mask of random values, constant in squares of `block` pixels."""
    values = torch.rand(height // block, width // block, generator=torch.Generator().manual_seed(seed))
    return values.repeat_interleave(block, 0).repeat_interleave(block, 1)


@pytest.mark.parametrize("size", [(512, 512), (512, 768), (1024, 640), (1216, 832)], ids=str)
def test_each_level_is_diffusers(size: tuple[int, int]) -> None:
    mask = blocks(*size, 64)
    for height, width in level_sizes(size[0] // 8, size[1] // 8)[:4]:
        theirs = IPAdapterMaskProcessor.downsample(mask[None], 1, height * width, 1).flatten()
        torch.testing.assert_close(averaged(mask, (height, width)).flatten(), theirs, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_step_of_two_adapters_in_two_masks_equals_diffusers() -> None:
    ours = sd15_unet()
    pair = Pair("SD1", ours, diffusers_twin(ours))
    inputs = pair.inputs(len(ROWS))  # latents of 16 x 16, a canvas of 128 x 128
    masks = [blocks(128, 128, 64, seed) for seed in (1, 2)]
    references = [reference(pair, "base", 0.9, 1), reference(pair, "base", -0.7, 2)]
    units = [unit(pair, each)._replace(mask=mask) for each, mask in zip(references, masks, strict=True)]
    with attach(ours, units, lambda _args, _kwargs: UNetCall(ROWS, 0.0)):
        masked = ours(**inputs)

    converted = diffusers_inputs(pair.twin, inputs)
    pair.twin._load_ip_adapter_weights([each.nested() for each in references])
    for processor in pair.twin.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [each.weight for each in references]
    converted["added_cond_kwargs"]["image_embeds"] = [
        torch.cat([each.features[kind] for kind in ROWS]).unsqueeze(1) for each in references
    ]
    converted["cross_attention_kwargs"] = {"ip_adapter_masks": [mask[None, None] for mask in masks]}
    torch.testing.assert_close(masked, pair.twin(**converted).sample, atol=WHOLE_UNET, rtol=0)
    assert (masked - ours(**inputs)).abs().max() > 100 * WHOLE_UNET
