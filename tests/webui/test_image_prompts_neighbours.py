"""Hosts and extensions that use the UNet in other ways: the image prompt acts rightly or stops with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.webui.prompting import RED, Prompting

UNIT = {"images": [RED], "weight": 0.8}
CallModel = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]


Extension = Callable[[CallModel, Tensor, Tensor, dict[str, Any]], Tensor]


def around_the_model(prompting: Prompting, extension: Extension) -> None:
    """Put an extension between the denoiser and the UNet: it gets the host's call `(x, t, cond)` and makes its own."""
    if prompting.is_forge:
        from backend.patcher.unet import KModel

        original = KModel.apply_model

        def apply_model(model: Any, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return extension(lambda x, t, cond: original(model, x, t, **cond), x, t, cond)

        prompting.patch.setattr(KModel, "apply_model", apply_model)
    else:
        from modules.latent_model import DiffusionWrapper

        forward = DiffusionWrapper.forward

        def call(model: Any, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
            return extension(lambda x, t, cond: forward(model, x, t, cond), x, t, cond)

        prompting.patch.setattr(DiffusionWrapper, "forward", call)


def on_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Rows of every conditioning, the way tiling extensions treat them; `transformer_options` stay as they are."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list):
        return [on_tensors(one, change) for one in value]
    if isinstance(value, dict):
        return {k: one if k == "transformer_options" else on_tensors(one, change) for k, one in value.items()}
    return value


def tiles(together: bool) -> Callable[..., Tensor]:
    """MultiDiffusion: a left and a right tile, in one call with every row twice, or one after the other."""

    def extension(call: CallModel, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        half = x.shape[-1] // 2
        parts = [x[..., :half], x[..., half:]]
        if not together:
            return torch.cat([call(part, t, cond) for part in parts], dim=-1)
        twice = on_tensors(cond, lambda tensor: torch.cat([tensor] * 2))
        return torch.cat(call(torch.cat(parts), torch.cat([t] * 2), twice).chunk(2), dim=-1)

    return extension


WIDE = {"width": 128, "height": 64}
SPLIT = {"batched": {}, "not batched": {"batch_cond_uncond": False}}


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("split", SPLIT)
@pytest.mark.parametrize("together", [True, False])
def test_tiles_get_the_image_prompt_of_their_text(
    prompting: Prompting, together: bool, split: str, batch_size: int
) -> None:
    from modules import shared

    for key, value in SPLIT[split].items():
        shared.opts.set(key, value)
    around_the_model(prompting, tiles(together))
    with prompting.watch() as calls:
        prompting.run(UNIT, **WIDE, batch_size=batch_size)
    prompting.check_rows(calls)


def test_tiles_of_two_equal_prompts_are_refused(prompting: Prompting) -> None:
    around_the_model(prompting, tiles(together=True))
    same = {"prompt": "the same", "negative_prompt": "the same"}
    assert "both" in prompting.refused(UNIT, **WIDE, **same)


def test_a_guidance_extension_that_calls_the_negative_rows_again(prompting: Prompting) -> None:
    def again(call: CallModel, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        rows = slice(0, 1) if prompting.is_forge else slice(1, 2)
        once = on_tensors(cond, lambda tensor: tensor[rows])
        return call(x, t, cond) + 0.01 * call(x[rows], t[rows], once).mean()

    around_the_model(prompting, again)
    with prompting.watch() as calls:
        prompting.run(UNIT)
    assert [len(call.kinds) for call in calls] == [2, 1, 2, 1]
    prompting.check_rows(calls)


def test_text_of_a_third_kind_is_refused(prompting: Prompting) -> None:
    """Regional prompts: one more call whose rows are neither the prompt nor the negative prompt."""

    def after_the_hosts_own(call: CallModel, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        out = call(x, t, cond)
        extra = on_tensors(cond, lambda tensor: (tensor + 0.25 if tensor.ndim == 3 else tensor)[:1])
        return out + 0.01 * call(x[:1], t[:1], extra).mean()

    around_the_model(prompting, after_the_hosts_own)
    answer = prompting.post(UNIT)
    assert answer.status_code == 422
    assert "neither prompt nor negative prompt" in answer.json()["detail"]


def test_a_unet_that_works_at_a_smaller_size_inside(prompting: Prompting) -> None:
    """Kohya HRFix: the attentions see another size than the latent's."""
    from lib_ipadapter.webui.process import services

    unet = services().host.loaded_unet()
    assert unet is not None

    def resize(tensor: Tensor, factor: float) -> Tensor:
        return nn.functional.interpolate(tensor, scale_factor=factor, mode="bilinear")

    first, last = unet.get_submodule("input_blocks.0"), unet.get_submodule("out")
    hooks = [
        first.register_forward_pre_hook(lambda _m, args: (resize(args[0], 0.5), *args[1:])),
        last.register_forward_hook(lambda _m, _args, out: resize(out, 2.0)),
    ]
    try:
        plain = prompting.run(width=128, height=128).pixels
        with prompting.watch() as calls:
            prompted = prompting.run(UNIT, width=128, height=128)
    finally:
        for hook in hooks:
            hook.remove()
    assert prompted.pixels != plain
    assert calls[0].layers[1][0].shape[1] == 8 * 8
    prompting.check_rows(calls)


def test_rows_added_inside_an_attention_are_refused(prompting: Prompting) -> None:
    """sd-forge-couple repeats the rows of an attention for its regions."""
    from lib_ipadapter.webui.process import services

    unet = services().host.loaded_unet()
    assert unet is not None
    attention = unet.get_submodule("input_blocks.1.1.transformer_blocks.0.attn2")

    def expand(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        twice = {key: torch.cat([v] * 2) if isinstance(v, Tensor) else v for key, v in kwargs.items()}
        return tuple(torch.cat([v] * 2) for v in args), twice

    hooks = [
        attention.register_forward_pre_hook(expand, with_kwargs=True),
        attention.register_forward_hook(lambda _m, _args, out: sum(out.chunk(2)) / 2),
    ]
    try:
        plain = prompting.run()
        sentence = prompting.refused(UNIT)
    finally:
        for hook in hooks:
            hook.remove()
    assert "rows" in sentence
    assert prompting.run().images[0].size == plain.images[0].size


def test_an_older_host_is_refused_with_the_version_that_is_needed(prompting: Prompting) -> None:
    from modules import scripts

    plain = prompting.run().pixels
    prompting.patch.delattr(scripts.Script, "process_before_every_sampling")
    sentence = prompting.refused(UNIT)
    assert "too old" in sentence
    assert prompting.is_forge or "1.10" in sentence
    assert prompting.run().pixels == plain
    from lib_ipadapter.webui.page import page_services

    assert page_services().host_notice() in sentence


def test_an_active_replacement_unet_is_refused(prompting: Prompting) -> None:
    if prompting.is_forge:
        pytest.skip("Forge has no replacement UNets")
    from modules import sd_unet

    class Engine(sd_unet.SdUnet):
        def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return x * 0.5

    prompting.patch.setattr(sd_unet, "current_unet", Engine())
    plain = prompting.run().pixels
    assert "TensorRT" in prompting.refused(UNIT)
    assert prompting.run().pixels == plain


class Flux(nn.Module):
    """A net without cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.double_blocks = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, x: Tensor, timesteps: Any = None, context: Any = None, **_more: Any) -> Tensor:
        return self.double_blocks[0](x.movedim(1, -1)).movedim(-1, 1)


def test_a_net_without_cross_attention_is_refused(prompting: Prompting) -> None:
    from modules import shared

    model = shared.sd_model
    holder = model.forge_objects.unet.model if prompting.is_forge else model.model
    usual = holder.diffusion_model
    holder.diffusion_model = Flux().requires_grad_(False)
    try:
        plain = prompting.run().pixels
        sentence = prompting.refused(UNIT)
        assert prompting.run().pixels == plain
    finally:
        holder.diffusion_model = usual
    assert "no cross-attention" in sentence
    assert "Flux" in sentence


def test_a_script_that_samples_without_telling_anybody_is_refused(prompting: Prompting) -> None:
    """It replaces `p.sample` before us and makes a latent of its own: no step, so no image prompt."""
    from modules import scripts

    runner = scripts.scripts_txt2img
    process = runner.process

    def own_sampling(p: Any) -> None:
        p.sample = lambda *_args, **_kwargs: torch.zeros(1, 4, 8, 8)
        process(p)

    prompting.patch.setattr(runner, "process", own_sampling)
    assert "samples in its own way" in prompting.refused(UNIT)
    assert prompting.post().status_code == 200
