"""Hooks that add image attention to a UNet, and the scope that owns and removes them.

`session` attaches per pass and closes the scope in every case. The mechanism: a pre-hook on the UNet learns what the
call's rows are; per cross-attention, a hook on `to_q` keeps the queries and a pre-hook on `to_out[0]` adds

    Σ_units  weight(unit, layer) · mask(unit) · Attention(q, K_unit, V_unit)

to its input. No `forward` is replaced, so this holds under every attention implementation that calls `to_q` and
`to_out` as modules, beside any other extension, and removing the hooks leaves the UNet as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple, Protocol, cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..library.errors import UnexplainedRowsError, UnsupportedHostStateError, WrongBaseError
from .attention import PlacedTokens, RowGroups
from .layers import CrossAttentionLayer, find_cross_attention
from .masks import CanvasMask, Size, add_weighted, is_everywhere, is_nowhere
from .schedule import UNetCall, Window

ReadCall = Callable[[tuple[Any, ...], dict[str, Any]], "UNetCall | None"]
_ROWS_REMEMBERED = 16


class UnitAttention(NamedTuple):
    """One unit as the UNet sees it.

    `kv` maps a layer's key id to K and V, each `(2, tokens, width)`: index 0 for cond, 1 for uncond. The pairs are
    replaced by copies in the UNet's dtype on its device when first used, so hold no other reference to them.
    `weights` maps a key id to the weight there; a layer that is missing or 0 is not touched. `mask` (H, W) in 0..1, on
    the CPU, says where on the pass's canvas, in pixels, the unit acts; None is everywhere.
    """

    name: str
    kv: dict[int, tuple[Tensor, Tensor]]
    weights: dict[int, float]
    window: Window
    mask: Tensor | None = None


class AttachmentScope:
    """Owns hooks; closing it, once or more, removes them and leaves the modules as they were found."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._closed = False

    def hold(self, handle: RemovableHandle) -> None:
        """Take a hook's handle, to be removed at close."""
        self._stack.callback(handle.remove)

    @property
    def closed(self) -> bool:
        """Whether everything was removed."""
        return self._closed

    def close(self) -> None:
        """Remove everything; a second call does nothing."""
        self._closed = True
        self._stack.close()

    def __enter__(self) -> AttachmentScope:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Companion(Protocol):
    """What else acts in the UNet's calls under the same scope, without asking for the rows again: `core.residuals`."""

    def hook(self, scope: AttachmentScope) -> None:
        """Place its hooks, to be held by the scope."""
        ...

    def begin(self, call: UNetCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take a call that is about to run, with its arguments; what this raises stops the call."""
        ...

    def end(self, *, finished: bool) -> None:
        """Let go of the innermost call that `begin` took; `finished` is false after a failure."""
        ...


def attach(
    unet: nn.Module,
    units: Sequence[UnitAttention],
    read_call: ReadCall,
    layers: Sequence[CrossAttentionLayer] | None = None,
    companions: Sequence[Companion] = (),
) -> AttachmentScope:
    """Add the units' image attention to every call of `unet` until the scope is closed.

    `read_call` gets each call's positional and keyword arguments before the UNet runs and says what its rows are, or
    None for a call in which no unit acts; what it raises stops the call. It is asked even where no unit has a weight,
    and once per call: the `companions` are told what it said. `layers` are the UNet's cross-attentions where the
    caller has them; they are looked for otherwise.

    Raises:
        WrongBaseError: a unit has a weight for a layer that it has no K and V for, or whose width differs.
    """
    layers = find_cross_attention(unet) if layers is None else layers
    _check_units(layers, units)
    masks = [None if is_everywhere(unit.mask) else CanvasMask(unit.name, cast(Tensor, unit.mask)) for unit in units]
    acting = [not is_nowhere(unit.mask) for unit in units]
    calls = _Calls(units, masks, read_call, companions)
    scope = AttachmentScope()
    try:
        # First of all hooks: a failure stored by the session must be raised before anybody works on the call.
        scope.hold(unet.register_forward_pre_hook(calls.begin, prepend=True, with_kwargs=True))
        scope.hold(unet.register_forward_hook(calls.end, always_call=True))
        for layer in layers:
            parts = [
                _Part(number, weight, PlacedTokens(unit.kv, layer.key_id, _heads(layer)), masks[number])
                for number, unit in enumerate(units)
                if acting[number] and (weight := unit.weights.get(layer.key_id, 0.0)) != 0.0
            ]
            if parts:
                hooks = _LayerHooks(layer.path, calls, parts)
                to_out = cast(nn.Sequential, layer.module.get_submodule("to_out"))
                scope.hold(layer.module.get_submodule("to_q").register_forward_hook(hooks.keep_query))
                scope.hold(to_out[0].register_forward_pre_hook(hooks.add_image))
                calls.hooked += 1
        for companion in companions:
            companion.hook(scope)
    except BaseException:
        scope.close()
        raise
    return scope


class _Part(NamedTuple):
    """What one unit adds in one layer."""

    unit: int
    weight: float
    tokens: PlacedTokens
    mask: CanvasMask | None


class _Frame:
    """One UNet call under way."""

    __slots__ = ("active", "groups", "layer", "query", "told")

    def __init__(self) -> None:
        self.told: list[Companion] = []
        self.groups: RowGroups | None = None
        self.active: frozenset[int] = frozenset()
        # The layer that projected its queries last; attention runs layer by layer, so one place is enough.
        self.layer: _LayerHooks | None = None
        self.query: Tensor | None = None


class _Calls:
    """The UNet calls under way, innermost last, and what the layers' hooks need to know of them."""

    def __init__(
        self,
        units: Sequence[UnitAttention],
        masks: Sequence[CanvasMask | None],
        read_call: ReadCall,
        companions: Sequence[Companion],
    ) -> None:
        self._masks = {number: mask for number, mask in enumerate(masks) if mask is not None}
        self._companions = companions
        self._windows = [unit.window for unit in units]
        self._read_call = read_call
        self._frames: list[_Frame] = []
        self._groups: dict[tuple[int, ...], RowGroups] = {}
        self.hooked = 0
        self.seen_attention = False

    @property
    def current(self) -> _Frame:
        """The innermost call."""
        if not self._frames:
            raise UnsupportedHostStateError(
                "A cross-attention layer ran outside a call of the UNet, so its rows are unknown; another extension "
                "calls parts of the UNet itself: turn it off, or the image prompt."
            )
        return self._frames[-1]

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """UNet pre-hook: what this call is. `end` follows in every case, so the frame is there before asking."""
        frame = _Frame()
        self._frames.append(frame)
        call = self._read_call(args, kwargs)
        if call is None:
            return
        frame.active = frozenset(n for n, window in enumerate(self._windows) if window.active(call.fraction))
        for number, mask in self._masks.items():
            if number in frame.active:
                mask.check(_latent_size(args, kwargs))
        frame.groups = self._groups.get(call.rows)
        if frame.groups is None:
            if len(self._groups) == _ROWS_REMEMBERED:
                self._groups.clear()
            frame.groups = self._groups[call.rows] = RowGroups(call.rows)
        for companion in self._companions:
            companion.begin(call, args, kwargs)
            frame.told.append(companion)

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """UNet hook, after failures too (`output` is None then): nothing of the call is kept."""
        frame = self._frames.pop() if self._frames else None
        with ExitStack() as stack:
            for companion in frame.told if frame else ():
                stack.callback(companion.end, finished=output is not None)
        if frame and frame.active and self.hooked and output is not None and not self.seen_attention:
            raise UnsupportedHostStateError(
                f"The UNet ran and none of its {self.hooked} hooked cross-attention layers did, so the image prompt "
                "had no effect; something else computes the UNet (TensorRT?): turn it off, or the image prompt."
            )


class _LayerHooks:
    """The hook pair of one cross-attention, for all units."""

    def __init__(self, path: str, calls: _Calls, parts: Sequence[_Part]) -> None:
        self._path = path
        self._calls = calls
        self._parts = parts

    def keep_query(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Hook of `to_q`: keep the queries `(rows, seq, width)` for `add_image`."""
        frame = self._calls.current
        if frame.active:
            frame.layer, frame.query = self, output

    def add_image(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Pre-hook of `to_out[0]`: add the units' image attention to the text attention `(rows, seq, width)`."""
        frame = self._calls.current
        if not frame.active:
            return None
        hidden: Tensor = args[0]
        query, groups = self._take_query(frame, hidden)
        total: Tensor | None = None
        for part in self._parts:
            if part.unit in frame.active:
                image = part.tokens.attend(query, groups)
                if image.dtype != hidden.dtype:
                    image = image.to(hidden.dtype)
                # The first sum is a new tensor: what the attention handed over may be somebody else's.
                into, in_place = (hidden, False) if total is None else (total, True)
                total = add_weighted(into, image, part.weight, part.mask, in_place=in_place)
        return None if total is None else (total, *args[1:])

    def _take_query(self, frame: _Frame, hidden: Tensor) -> tuple[Tensor, RowGroups]:
        query, layer, groups = frame.query, frame.layer, frame.groups
        frame.query = frame.layer = None
        self._calls.seen_attention = True
        if query is None or layer is not self or groups is None:
            raise UnsupportedHostStateError(
                f"{self._path} ran its output layer without its query layer; another extension computes this "
                "attention in its own way: turn it off, or the image prompt."
            )
        if query.shape[0] != groups.rows or query.shape != hidden.shape:
            raise UnexplainedRowsError(
                f"{self._path} got queries of shape {tuple(query.shape)} and gave {tuple(hidden.shape)} in a UNet "
                f"call of {groups.rows} rows; another extension changes the rows inside attention (a regional prompt "
                "extension?): turn it off, or the image prompt."
            )
        return query, groups


def _latent_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Size:
    """Height and width of the latents that a UNet is called with: ldm's, sgm's and Forge's first argument, `x`."""
    x = args[0] if args else kwargs.get("x")
    if not isinstance(x, Tensor) or x.ndim != 4:
        raise UnsupportedHostStateError(
            "The UNet was called without latents of the shape (rows, channels, height, width), so a unit's region "
            "cannot be placed; another extension calls it in its own way: turn it off, or let the unit act everywhere."
        )
    return int(x.shape[2]), int(x.shape[3])


def _heads(layer: CrossAttentionLayer) -> int:
    return int(cast(Any, layer.module).heads)


def _check_units(layers: Sequence[CrossAttentionLayer], units: Sequence[UnitAttention]) -> None:
    widths = {layer.key_id: layer.width for layer in layers}
    for unit in units:
        for key_id, weight in unit.weights.items():
            if weight == 0.0:
                continue
            shapes = [tuple(t.shape) for t in unit.kv.get(key_id, ())]
            width = widths.get(key_id)
            if not shapes or width is None or any(len(s) != 3 or s[0] != 2 or s[2] != width for s in shapes):
                raise WrongBaseError(
                    f"{unit.name}: layer {key_id} is {width or 'missing'} in the UNet and K and V are "
                    f"{shapes or 'missing'} there; the adapter was made for another base model."
                )
