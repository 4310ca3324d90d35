"""What IdentityNet adds to a UNet's skip connections and middle block; hooks owned by `core.attach`'s scope.

`session` gives one `UnitResiduals` per person. Before a call of the UNet, each unit's net runs once on that call's
rows, with the face's tokens for its context; in the call, each place gets

    Σ_units  strength(unit) · mask(unit) · residual(unit, place)

A UNet concatenates what comes up with its skip connection, `[h, skip]`, before each output block (ldm
`UNetModel.forward`), so a pre-hook on that block's first layer adds to the last channels; a hook on the middle block's
last layer adds to its output. The layers are hooked, not the blocks: reForge and Classic run a block's layers one by
one and never call the block. No `forward` is replaced, so this sums with what the host and other extensions add to the
same places. FreeU and Kohya's HRFix act between the two additions on Forge: FreeU does not scale our part, and HRFix,
whose middle block has another size, is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from ..library.errors import UnexplainedRowsError, UnsupportedHostStateError, WrongBaseError
from ..library.spec import ControlNetSpec
from .attach import AttachmentScope, ReadCall, attach
from .identity_fit import fit_to_unet
from .identity_net import Residuals
from .masks import PIXELS_PER_LATENT, averaged, is_everywhere, is_nowhere
from .schedule import COND, UNetCall, Window

_ROWS_REMEMBERED = 16


class ControlNet(Protocol):
    """What runs: an `IdentityNet`, or a host's wrapper that brings one to the device first."""

    @property
    def spec(self) -> ControlNetSpec: ...

    def embed_hint(self, hint: Tensor) -> Tensor: ...

    def __call__(
        self, x: Tensor, timesteps: Tensor, context: Tensor, hint: Tensor, y: Tensor | None, *, strength: float
    ) -> Residuals: ...


class UnitResiduals(NamedTuple):
    """One person as IdentityNet sees them.

    `hint` (1, 3, H, W) in 0..1 is the drawn map on this pass's canvas. `context` (2, T, D) holds the face tokens:
    index 0 for cond, 1 for uncond. `mask` (h, w) in 0..1, on the CPU, is the region in which the unit acts, of any
    size; it is averaged to each level's own size, and None is everywhere. `cond_only` leaves the uncond rows alone and
    saves their half of the work.
    Several units may share one net.
    """

    name: str
    net: ControlNet
    hint: Tensor
    context: Tensor
    strength: float = 1.0
    window: Window = Window()
    cond_only: bool = False
    mask: Tensor | None = None


def attach_residuals(unet: nn.Module, units: Sequence[UnitResiduals], read_call: ReadCall) -> AttachmentScope:
    """Add the units' residuals alone to every call of `unet` until the scope is closed.

    Beside image attention, give `UNetResiduals` to `attach` as a companion instead: rows are read once per call.

    Raises: WrongBaseError when a unit's net does not fit the UNet.
    """
    return attach(unet, (), read_call, companions=(UNetResiduals(unet, units),))


class UNetResiduals:
    """The units' residuals in one UNet: a companion of `core.attach`.

    Raises: WrongBaseError when a unit's net does not fit the UNet, or its tokens the net.
    """

    def __init__(self, unet: nn.Module, units: Sequence[UnitResiduals]) -> None:
        units = [unit for unit in units if unit.strength != 0.0 and not is_nowhere(unit.mask)]
        for unit in units:
            _check(unit, unet)
        self._unet = unet
        self._units = [_Running(unit) for unit in units]
        self._frames: list[_Sum | None] = []

    def hook(self, scope: AttachmentScope) -> None:
        """Place a hook on the middle block's last layer and on each output block's first."""
        if not self._units:
            return
        middle = cast(Any, self._unet).middle_block
        outputs = list(cast(Any, self._unet).output_blocks)
        scope.hold(middle[len(middle) - 1].register_forward_hook(self._add_middle))
        for place, block in enumerate(outputs):
            hook = _SkipHook(self, len(outputs) - 1 - place, f"output_blocks.{place}")
            scope.hold(block[0].register_forward_pre_hook(hook.add))

    def begin(self, call: UNetCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the active units' nets on the call's rows."""
        active = [unit for unit in self._units if unit.acts(call)]
        total = _Sum() if active else None
        if total is not None:
            x, timesteps, y = (_argument(args, kwargs, *at) for at in _SIGNATURE)
            for unit in active:
                total.add(unit.run(call, x, timesteps, y))
        self._frames.append(total)

    def end(self, *, finished: bool) -> None:
        """Drop the call's residuals, and see that every one of them was added."""
        total = self._frames.pop()
        if finished and total is not None and total.left:
            raise UnsupportedHostStateError(
                f"The UNet ran and {len(total.left)} of its {len(total.down) + 1} places for IdentityNet's residuals "
                "did not, so the face's position had no effect there; something else computes the UNet or skips parts "
                "of it (TensorRT, DeepCache?): turn it off, or IdentityNet."
            )

    def current(self) -> _Sum | None:
        """What the innermost call gets; None when nothing acts in it, or outside of a call."""
        return self._frames[-1] if self._frames else None

    def _add_middle(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        total = self.current()
        if total is None:
            return None
        total.left.discard(-1)
        mid = cast(Tensor, total.mid)
        _check_place("middle_block", output, mid, output.shape[1])
        return output + mid.to(output.dtype)


class _SkipHook:
    """The pre-hook of one output block's first layer."""

    def __init__(self, owner: UNetResiduals, number: int, path: str) -> None:
        self._owner = owner
        self._number = number
        self._path = path

    def add(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Add to the last channels of `[h, skip]` `(rows, c_h + c_skip, h, w)`, in a copy of it."""
        total = self._owner.current()
        if total is None:
            return None
        total.left.discard(self._number)
        joined: Tensor = args[0]
        residual = total.down[self._number]
        width = residual.shape[1]
        _check_place(self._path, joined, residual, min(width, joined.shape[1] - 1))
        joined = joined.clone()
        joined[:, -width:] += residual.to(joined.dtype)
        return (joined, *args[1:])


class _Sum:
    """The residuals of one UNet call, summed over the units, and the places that did not take theirs yet."""

    def __init__(self) -> None:
        self.down: list[Tensor] = []
        self.mid: Tensor | None = None
        self.left: set[int] = set()

    def add(self, residuals: Residuals) -> None:
        """Take one unit's; its tensors are its own, so the first unit's carry the sum."""
        if self.mid is None:
            self.down, self.mid = residuals.down, residuals.mid
            self.left = {-1, *range(len(self.down))}
            return
        for mine, other in zip([*self.down, self.mid], [*residuals.down, residuals.mid], strict=True):
            mine.add_(other.to(mine.dtype))


_SIGNATURE = ((0, "x"), (1, "timesteps"), (3, "y"))
"""Of ldm's, sgm's and Forge's `UNetModel.forward`."""


class _Running:
    """One unit with what is kept between its calls: the embedded hint, row indices, masks at the levels' sizes."""

    def __init__(self, unit: UnitResiduals) -> None:
        self._unit = unit
        self._region = None if is_everywhere(unit.mask) else unit.mask
        self._hint: Tensor | None = None
        self._rows: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[int, int], Tensor] = {}

    def acts(self, call: UNetCall) -> bool:
        """Whether the unit changes anything in this call."""
        return self._unit.window.active(call.fraction) and not (self._unit.cond_only and COND not in call.rows)

    def run(self, call: UNetCall, x: Tensor, timesteps: Tensor, y: Tensor | None) -> Residuals:
        """The unit's residuals for all rows of the call; rows that it leaves alone are zero."""
        unit = self._unit
        self._check_size(x, call)
        places, kinds = self._select(call.rows, x.device)
        some = len(places) < len(call.rows)
        if some:
            x, timesteps, y = x[places], timesteps[places], None if y is None else y[places]
        context = unit.context.to(x.device).index_select(0, kinds)
        if self._hint is None or self._hint.device != x.device:
            self._hint = unit.net.embed_hint(unit.hint.to(x.device))
        down, mid = unit.net(x, timesteps, context, self._hint, y, strength=unit.strength)
        changed = [self._placed(residual, places if some else None, len(call.rows)) for residual in (*down, mid)]
        return Residuals(changed[:-1], changed[-1])

    def _placed(self, residual: Tensor, places: Tensor | None, rows: int) -> Tensor:
        """Mask one place's residual and put its rows where they belong in the call."""
        if self._region is not None:
            residual.mul_(self._mask(self._region, residual))
        if places is None:
            return residual
        return residual.new_zeros((rows, *residual.shape[1:])).index_copy_(0, places, residual)

    def _select(self, rows: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        """Indices of the rows that the unit runs on, and their kinds; moved to the device once per sequence of rows."""
        found = self._rows.get(rows)
        if found is None or found[0].device != device:
            if len(self._rows) == _ROWS_REMEMBERED:
                self._rows.clear()
            places = [place for place, kind in enumerate(rows) if kind == COND or not self._unit.cond_only]
            kinds = [rows[place] for place in places]
            found = self._rows[rows] = (torch.tensor(places, device=device), torch.tensor(kinds, device=device))
        return found

    def _mask(self, region: Tensor, residual: Tensor) -> Tensor:
        """The region at a level's own size `(1, 1, h, w)`: the mean over the pixels that each place covers."""
        size = (residual.shape[-2], residual.shape[-1])
        mask = self._masks.get(size)
        if mask is None or mask.device != residual.device or mask.dtype != residual.dtype:
            mask = averaged(region, size)[None, None].to(device=residual.device, dtype=residual.dtype)
            self._masks[size] = mask
        return mask

    def _check_size(self, x: Tensor, call: UNetCall) -> None:
        if x.shape[0] != len(call.rows):
            raise UnexplainedRowsError(
                f"The UNet was called with {x.shape[0]} rows and {len(call.rows)} are known; another extension changes "
                "the rows: turn it off, or IdentityNet."
            )
        height, width = (side * PIXELS_PER_LATENT for side in x.shape[-2:])
        if tuple(self._unit.hint.shape[-2:]) != (height, width):
            canvas = "x".join(str(side) for side in reversed(self._unit.hint.shape[-2:]))
            raise UnsupportedHostStateError(
                f"{self._unit.name}: the keypoints are drawn for a picture of {canvas} and the UNet was called for "
                f"{width}x{height}; another extension samples in tiles or at other sizes (Tiled Diffusion, "
                "MultiDiffusion?): turn it off, or IdentityNet."
            )


def _check(unit: UnitResiduals, unet: nn.Module) -> None:
    spec = unit.net.spec
    fitted = fit_to_unet(spec, unet)
    if fitted.heads != spec.heads:
        raise WrongBaseError(
            f"{unit.name}: IdentityNet was built with {list(spec.heads)} attention heads per level and the UNet has "
            f"{list(fitted.heads)}: load it again for this checkpoint."
        )
    shape = tuple(unit.context.shape)
    if len(shape) != 3 or shape[0] != 2 or shape[2] != spec.context_dim:
        raise WrongBaseError(
            f"{unit.name}: the face tokens are {shape} and IdentityNet takes 2 x tokens x {spec.context_dim}: choose "
            "the adapter and the ControlNet of the same pair."
        )


def _check_place(path: str, found: Tensor, residual: Tensor, width: int) -> None:
    """See that a residual has the rows, the size and the channels of the place it is added to."""
    if (found.shape[0], width, *found.shape[2:]) != tuple(residual.shape):
        raise UnsupportedHostStateError(
            f"{path} got {tuple(found.shape)} and IdentityNet has {tuple(residual.shape)} for it; another extension "
            "reshapes the UNet (Kohya HRFix, DeepShrink?) or changes its rows: turn it off, or IdentityNet."
        )


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)
