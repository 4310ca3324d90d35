"""IdentityNet as a unit of sd-webui-controlnet (A1111), placed through its external API. `hosts.a1111` makes it.

The extension reads its units while the job begins, before anybody knows the face: so two units are put into free places
of the job (an ip-adapter with weight 0, which it wants before an IdentityNet, and the net with a black map), and what
they are to be fed is set on the extension's own `ControlParams` when a pass starts: map, strength, window, and the
face's tokens as `control_context_override`. Observed with 1.1.455.

Why not through the ip-adapter unit alone: the extension tells prompt rows from negative ones by a mark that it does not
set in a hires pass, and would project the embedding in its own way; here both engines are fed the same tensors.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core.attach import Companion
from ..core.schedule import UNetCall
from ..library.errors import UnsupportedHostStateError
from .a1111_controlnet_units import (
    BUILT_IN,
    UNITS,
    check_batch_option,
    check_widths,
    find_extension,
    forget_infotext,
    free_place,
    make_units,
    name_of,
)
from .extension_nets import ExtensionNet, ExtensionPair, FaceRows, Watching, as_picture


class A1111ControlNet:
    """The extension during one job; `checkpoint(p)` is the file that the job is going to load."""

    def __init__(self, checkpoint: Callable[[Any], Path | None]) -> None:
        self._checkpoint = checkpoint
        self._pair: ExtensionPair | None = None
        self._script: Any = None
        self._units: list[Any] = []
        self._names: list[str] = []
        self._given: Any = None
        self._kept: set[str] = set()
        self._taken: _Taken | None = None
        self._shown: set[tuple[int, ...]] = set()

    # -- before the extension reads its units

    def reserve(self, p: Any, pairs_for: Callable[[Path | None], Sequence[ExtensionPair]]) -> None:
        """Put two units into the job's free places."""
        api, script = find_extension(p)
        pairs = pairs_for(self._checkpoint(p))
        if len(pairs) > 1:
            raise UnsupportedHostStateError(
                f"{len(pairs)} units run IdentityNet in the ControlNet extension, and there it takes one person: run "
                "the others built-in."
            )
        if not pairs:
            return
        (pair,) = pairs
        check_widths(pair)
        check_batch_option(script)
        self._names = [name_of(api, pair.adapter, "adapter"), name_of(api, pair.net, "ControlNet")]
        given = list(p.script_args)[script.args_from : script.args_to]
        place = free_place(given, api.get_max_models_num())
        self._units = make_units(api, self._names, p)
        given[place : place + UNITS] = self._units
        self._kept = set(self._names) & set(type(script).model_cache)
        self._pair, self._script, self._given = pair, script, p.script_args
        api.update_cn_script_in_processing(p, given)

    # -- after it did

    def settle(self, p: Any) -> None:
        """Give the job its own units back, and take ours out of what the extension runs until a pass is entered."""
        if self._given is not None:
            p.script_args, self._given = self._given, None
            forget_infotext(p, [unit.serialize() for unit in self._units])
        network = getattr(self._script, "latest_network", None)
        if network is not None and (self._taken is None or self._taken.network is not network):
            self._taken = _take(self._script, network, self._units)
            self.leave()

    def ready(self, p: Any, pair: ExtensionPair) -> None:
        """See that the extension loaded both halves, and those that the job wants."""
        if self._pair is None or (pair.adapter, pair.net) != (self._pair.adapter, self._pair.net):
            raise UnsupportedHostStateError(
                f"The ControlNet extension was given other files before the checkpoint was loaded than the job needs "
                f"now ({pair.adapter.name}, {pair.net.name}): choose the adapter and IdentityNet by name, {BUILT_IN}."
            )
        if self._taken is None:
            raise UnsupportedHostStateError(
                "The ControlNet extension dropped its units while the job began, so IdentityNet would not run; the "
                f"console says why (a model that it cannot read, or another unit that failed). Mend that, {BUILT_IN}."
            )
        held = len(self._taken.net.control_model.control_model.state_dict())
        if held != len(pair.spec.tensors):
            raise UnsupportedHostStateError(
                f"The ControlNet extension read {pair.net.name} as a net of {held} tensors and it has "
                f"{len(pair.spec.tensors)}: {BUILT_IN.removeprefix('or ')}."
            )

    def enter(self, p: Any, unet: nn.Module, nets: Sequence[ExtensionNet], *, sampling: bool) -> Sequence[Companion]:
        """Feed the extension's net, and let it run in the pass."""
        if not nets:
            return ()
        (net,) = nets
        taken = self._taken
        if taken is None or taken.network.model is not unet or taken.network.control_params is None:
            raise UnsupportedHostStateError(
                "The ControlNet extension is not at the UNet that this pass runs, so IdentityNet would not act: "
                f"leave out the second checkpoint, {BUILT_IN}."
            )
        rows = FaceRows(net)
        watch = _Watch(rows, taken.net)
        taken.feed(net, _tokens(taken.context_kind, net.context, watch), in_hires=bool(getattr(p, "is_hr_pass", False)))
        taken.put_in()
        if tuple(net.hint.shape) not in self._shown:
            self._shown.add(tuple(net.hint.shape))
            self._script.detected_map.append((as_picture(net.hint), "none"))
        return (watch,)

    def begin_step(self, params: Any) -> None:
        """The UNet's call says all that is needed."""

    def leave(self) -> None:
        if self._taken is not None:
            self._taken.take_out()

    def close(self, p: Any) -> None:
        """After a failure the extension would stay at the UNet, and its cache would keep the pair for later jobs."""
        self.leave()
        if self._given is not None:
            p.script_args, self._given = self._given, None
        if self._taken is not None and self._script.latest_network is self._taken.network:
            self._taken.network.restore()
        if self._script is not None:
            for name in set(self._names) - self._kept:
                type(self._script).model_cache.pop(name, None)
        self._taken, self._script, self._pair = None, None, None
        self._units.clear()
        self._names.clear()
        self._shown.clear()


class _Taken:
    """Our two `ControlParams` in the extension's list, which they leave and enter at the same place."""

    def __init__(self, network: Any, place: int) -> None:
        self.network = network
        self._place = place
        self._params: list[Any] = network.control_params[place : place + UNITS]
        self.net = self._params[1]
        self.context_kind = type(self.net.control_context_override)

    def put_in(self) -> None:
        params = self.network.control_params
        if not any(param is self.net for param in params):
            params[self._place : self._place] = self._params

    def take_out(self) -> None:
        params = self.network.control_params
        if params is not None:
            params[:] = [param for param in params if not any(param is one for one in self._params)]

    def feed(self, net: ExtensionNet, tokens: Any, *, in_hires: bool) -> None:
        """Everything that the extension's forward reads of a net (hook.py, UnetHook.hook)."""
        param = self.net
        param.control_context_override = tokens
        param.weight = net.strength
        param.soft_injection = param.cfg_injection = False
        param.advanced_weighting = param.effective_region_mask = None
        hint = net.hint.to(param.hint_cond)
        high = param.hr_hint_cond
        if isinstance(high, Tensor) and (in_hires or high.shape == hint.shape):
            param.hr_hint_cond = hint
        if not in_hires or not isinstance(high, Tensor):
            param.hint_cond = hint
        param.used_hint_cond = None


class _Watch(Watching):
    """Says before each call whether the net acts, and sees that it did. `rows` of the call under way are kept."""

    def __init__(self, rows: FaceRows, param: Any) -> None:
        self._rows = rows
        self._param = param
        self._calls: list[tuple[UNetCall, Tensor]] = []

    def begin(self, call: UNetCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls.append((call, args[0] if args else kwargs["x"]))
        self._rows.asked = False
        self._param.guidance_stopped = not self._acts(call)

    def end(self, *, finished: bool) -> None:
        call, _ = self._calls.pop()
        if finished and self._acts(call):
            self._rows.require_asked()

    def context(self) -> Tensor:
        return self._rows.context(*self._calls[-1])

    def _acts(self, call: UNetCall) -> bool:
        return self._rows.net.window.active(call.fraction)


def _tokens(kind: type[Any], context: Tensor, watch: _Watch) -> Any:
    """The extension's `ImageEmbed` of the face's tokens (2, T, D), which knows the rows of the call by our reading.

    The extension multiplies with marks that it has on the rows (`eval`); in a hires pass it has none.
    """
    seen = weakref.ref(watch)

    class FaceTokens(kind):
        def eval(self, cond_mark: Tensor) -> Tensor:
            watching = seen()
            assert watching is not None
            return watching.context()

    return FaceTokens(context[0:1], context[1:2])


def _take(script: Any, network: Any, units: Sequence[Any]) -> _Taken | None:
    """Find what the extension made of our units; None where it did not run them."""
    enabled = list(script.enabled_units)
    place = next((place for place, unit in enumerate(enabled) if unit is units[0]), None) if units else None
    params = network.control_params or []
    if place is None or len(params) < place + UNITS or enabled[place + 1] is not units[1]:
        return None
    kinds = [param.control_model_type.name for param in params[place : place + UNITS]]
    return _Taken(network, place) if kinds == ["IPAdapter", "InstantID"] else None
