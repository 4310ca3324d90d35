"""Looking at UNet calls from outside, through torch's global hooks, so that nothing is attached to the UNet under test.

`Watch` notes per UNet call the text of each row and what was added to each cross-attention. `RowByRow` is the reference
for a whole job: its UNet called once per row, with the image attention written down a second time. `prompting` uses
both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import Tensor, cat, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from tests.webui.toys.record import record

COND, UNCOND, NEITHER = 0, 1, -1
KindOf = Callable[[Tensor], int]
ImageAttention = Callable[[int, Tensor, list[int], float, int], Tensor]


@dataclass
class Call:
    """One call of a UNet: each row's kind by its text, the step's fraction, and per attn2 (query, added, heads).

    `size` is the height and width of its latents.
    """

    unet: int
    kinds: list[int] = field(default_factory=list)
    fraction: float = 0.0
    layers: dict[int, tuple[Tensor, Tensor, int]] = field(default_factory=dict)
    size: tuple[int, int] = (0, 0)


class GlobalHooks:
    """Base: hooks on every module of the process for a while; subclasses know a UNet's cross-attentions by identity."""

    def __init__(self) -> None:
        self.roles: dict[nn.Module, tuple[str, int, int]] = {}
        self._known: set[nn.Module] = set()

    def learn(self, unet: nn.Module) -> None:
        from lib_ipadapter.core.layers import find_cross_attention

        if unet in self._known:
            return
        self._known.add(unet)
        for layer in find_cross_attention(unet):
            for role in ("to_q", "to_k"):
                self.roles[layer.module.get_submodule(role)] = (role, layer.key_id, layer.module.heads)
            self.roles[layer.module.get_submodule("to_out.0")] = ("to_out", layer.key_id, layer.module.heads)

    def __enter__(self) -> Any:
        self._handles = [register_module_forward_pre_hook(self.before), register_module_forward_hook(self.after)]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def before(self, module: nn.Module, args: Any) -> Any:
        raise NotImplementedError

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        raise NotImplementedError


def _is_unet(module: nn.Module) -> bool:
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    return isinstance(module, UNetModel)


def step_fraction() -> float:
    """How much of the pass was done before the step under way, by the denoiser's own count."""
    return record.steps[-1]["step"] / record.steps[-1]["total"]


class Watch(GlobalHooks):
    """Fills `calls`; `kind_of` says what the text `(tokens, width)` of a row is."""

    def __init__(self, kind_of: KindOf) -> None:
        super().__init__()
        self.kind_of = kind_of
        self.calls: list[Call] = []
        self._query = self._before = None

    def before(self, module: nn.Module, args: Any) -> None:
        if _is_unet(module):
            self.learn(module)
            fraction = step_fraction() if record.steps else 0.0
            self.calls.append(Call(id(module), fraction=fraction, size=tuple(args[0].shape[2:])))
        elif self.roles.get(module, ("",))[0] == "to_out":
            self._before = args[0]

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        if module not in self.roles:
            return
        role, key_id, heads = self.roles[module]
        call = self.calls[-1]
        if role == "to_k" and not call.kinds:
            call.kinds = [self.kind_of(row) for row in args[0]]
        elif role == "to_q":
            self._query = output
        elif role == "to_out":
            call.layers[key_id] = (self._query, args[0] - self._before, heads)


class RowByRow(GlobalHooks):
    """Calls the UNet once per row and adds `image_attention(key_id, query, kinds, fraction, heads)` to each attn2."""

    def __init__(self, kind_of: KindOf, image_attention: ImageAttention) -> None:
        super().__init__()
        self.kind_of, self.image_attention = kind_of, image_attention
        self.kind, self.query = NEITHER, None
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Any:
        from ldm.modules.diffusionmodules.openaimodel import UNetModel

        whole = UNetModel.forward

        def by_row(unet: Any, x: Tensor, timesteps: Any = None, context: Any = None, y: Any = None, **more: Any) -> Any:
            self.learn(unet)
            rows = []
            for row in range(x.shape[0]):
                self.kind = self.kind_of(context[row])
                assert self.kind != NEITHER
                one = slice(row, row + 1)
                given = {} if y is None else {"y": y[one]}
                rows.append(whole(unet, x[one], timesteps[one], context=context[one], **given, **more))
            return cat(rows)

        self._patch.setattr(UNetModel, "forward", by_row)
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
        super().__exit__()

    def before(self, module: nn.Module, args: Any) -> Any:
        role, key_id, heads = self.roles.get(module, ("", 0, 0))
        if role != "to_out":
            return None
        added = self.image_attention(key_id, self.query, [self.kind], step_fraction(), heads)
        return (args[0] + added,)

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.roles.get(module, ("",))[0] == "to_q":
            self.query = output
