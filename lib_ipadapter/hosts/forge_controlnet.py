"""IdentityNet through the Forge family's own ControlNet patcher. `hosts.forge` makes it.

The host reads the file, loads it with the UNet, runs it and adds its residuals, as for a ControlNet unit. What the
host's own InstantID does wrong, giving the face to every ControlNet of a job, cannot happen: the context is swapped in
the one copy of the patcher that the pass has for this net, and what was chained before it ran with the text.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from ..core.attach import AttachmentScope, Companion
from ..core.schedule import UNetCall
from ..library.errors import UnsupportedHostStateError
from .base import CallReader
from .extension_nets import ExtensionNet, ExtensionPair, FaceRows, Watching, as_picture
from .identity_nets import let_go

logger = logging.getLogger("ipadapter")

MODIFIERS = "controlnet_conditioning_modifiers"


class ForgeControlNet:
    """The host's ControlNet during one job; `memory` is its manager, `reader` tells the rows of a ControlNet's call."""

    def __init__(self, memory: Any, reader: CallReader) -> None:
        self._memory = memory
        self._reader = reader
        self._loaded: dict[Path, Any] = {}
        self._placed: _Placed | None = None
        self._shown: set[tuple[str, tuple[int, ...]]] = set()

    def reserve(self, p: Any, pairs_for: Callable[[Path | None], Sequence[ExtensionPair]]) -> None:
        """A patcher takes no unit's place."""

    def settle(self, p: Any) -> None:
        """Nothing was reserved."""

    def ready(self, p: Any, pair: ExtensionPair) -> None:
        """Let the host read the net."""
        if pair.net not in self._loaded:
            self._loaded[pair.net] = _load(pair)

    def enter(self, p: Any, unet: nn.Module, nets: Sequence[ExtensionNet], *, sampling: bool) -> Sequence[Companion]:
        """A clone of the job's patcher gets the nets; the sampler loads them with it."""
        self.leave()
        if not nets:
            return ()
        if sampling:
            raise UnsupportedHostStateError(
                "The host loads ControlNets before a pass starts, and this pass was under way when IdentityNet came "
                "(a script samples in its own way): run IdentityNet built-in."
            )
        objects = p.sd_model.forge_objects
        patcher, controls = objects.unet, []
        for net in nets:
            control, patcher = _add(patcher, self._loaded[net.path], _Watch(FaceRows(net), unet), self._reader)
            controls.append(control)
            shown = (net.name, tuple(net.hint.shape))
            if shown not in self._shown:
                self._shown.add(shown)
                _show(p, net)
        self._placed = _Placed(p.sd_model, objects.unet, patcher, controls)
        objects.unet = patcher
        return [control.watch for control in controls]

    def begin_step(self, params: Any) -> None:
        self._reader.begin_step(params)

    def leave(self) -> None:
        self._reader.forget()
        placed, self._placed = self._placed, None
        if placed is not None:
            placed.remove()

    def close(self, p: Any) -> None:
        """The manager holds what it has loaded until it needs the room; these nets are not coming back."""
        self.leave()
        for patcher in self._loaded.values():
            let_go(self._memory, patcher.control_model_wrapped)
        if self._loaded:
            self._loaded.clear()
            self._memory.soft_empty_cache()
        self._shown.clear()


class _FaceControl:
    """One copy of a ControlNet's patcher, whose `get_control` runs it with the face's tokens and nobody else's."""

    def __init__(self, control: Any, watch: _Watch, reader: CallReader) -> None:
        self.control = control
        self.watch = watch
        self._reader = reader
        self._run = control.get_control
        control.get_control = self.get_control

    def get_control(self, x: Any, sigmas: Any, cond: Any, chunks: int, *more: Any) -> Any:
        """Source: backend/patcher/controlnet.py, ControlNet.get_control; reForge passes the options as `more`.

        What is chained before it is computed first, with the text; the copy then sees that as what came before.
        """
        control = self.control
        chained, options = control.previous_controlnet, more[0] if more else control.transformer_options
        before = chained.get_control(x, sigmas, cond, chunks, *more) if chained is not None else None
        call = self._read(x, sigmas, cond["c_crossattn"], options)
        if not self.watch.acts(call):
            return before
        context = self.watch.rows.context(call, x)
        swapped = {name: value for name, value in cond.items() if name != "crossattn_controlnet"}
        swapped["c_crossattn"] = context.to(cond["c_crossattn"].dtype)
        if not more:  # modifiers (the host's own InstantID) swap the context of every ControlNet; reForge calls none
            control.transformer_options = {name: value for name, value in options.items() if name != MODIFIERS}
        control.previous_controlnet = None if before is None else _Given(before)
        try:
            found = self._run(x, sigmas, swapped, chunks, *more)
        finally:
            control.previous_controlnet = chained
            if not more:
                control.transformer_options = options
        self.watch.remember(found)
        return found

    def _read(self, x: Any, sigmas: Any, text: Any, options: Any) -> UNetCall:
        timesteps = self.control.model_sampling_current.timestep(sigmas)
        return self._reader((x, timesteps, text), {"transformer_options": options})

    def release(self) -> None:
        del self.control.get_control


class _Given:
    """Stands for the ControlNets before one, whose sum is known."""

    def __init__(self, control: Any) -> None:
        self._control = control

    def get_control(self, *_args: Any) -> Any:
        return self._control


class _Watch(Watching):
    """Sees that the net ran before each call of the UNet in which it acts, and that its residuals have a place there.

    Where their sizes differ the host prints a warning and leaves them out (backend/nn/unet.py, apply_control).
    """

    def __init__(self, rows: FaceRows, unet: nn.Module) -> None:
        self.rows = rows
        self._unet = cast(Any, unet)
        self._sizes: dict[str, tuple[int, ...]] = {}

    def remember(self, control: dict[str, list[Tensor]]) -> None:
        """Heights and widths of the residuals for the call that follows, whose lists the host empties."""
        outputs = reversed(control["output"])
        self._sizes = {f"output_blocks.{place}": tuple(one.shape[2:]) for place, one in enumerate(outputs)}
        self._sizes["middle_block"] = tuple(control["middle"][0].shape[2:])

    def hook(self, scope: AttachmentScope) -> None:
        """On the blocks' layers, not the blocks: reForge and Classic run a block's layers one by one."""
        middle = self._unet.middle_block
        scope.hold(middle[len(middle) - 1].register_forward_hook(self._middle))
        for place, block in enumerate(self._unet.output_blocks):
            name = f"output_blocks.{place}"
            scope.hold(block[0].register_forward_pre_hook(lambda module, args, name=name: self._compare(name, args[0])))

    def _middle(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._compare("middle_block", output)

    def _compare(self, name: str, found: Tensor) -> None:
        size = self._sizes.pop(name, None)
        if size is not None and tuple(found.shape[2:]) != size:
            raise UnsupportedHostStateError(
                f"{name} got {tuple(found.shape)} and IdentityNet is {size[0]} x {size[1]} there; another extension "
                "reshapes the UNet (Kohya HRFix, DeepShrink?): turn it off, or IdentityNet."
            )

    def acts(self, call: UNetCall) -> bool:
        return self.rows.net.window.active(call.fraction)

    def begin(self, call: UNetCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.acts(call):
            self.rows.require_asked()


class _Placed:
    """The pass's clone in the model's place, and the job's own patcher to be put back."""

    def __init__(self, sd_model: Any, earlier: Any, clone: Any, controls: Sequence[_FaceControl]) -> None:
        self._sd_model = sd_model
        self._earlier = earlier
        self._clone = clone
        self._controls = controls

    def remove(self) -> None:
        """Where another script has cloned ours since, its clone forgets the nets."""
        objects = self._sd_model.forge_objects
        if objects.unet is self._clone:
            objects.unet = self._earlier
        else:
            _unchain(objects.unet, [one.control for one in self._controls])
        for one in self._controls:
            one.release()


def _unchain(patcher: Any, ours: Sequence[Any]) -> None:
    """Take our ControlNets out of a patcher's chain."""

    def first_other(control: Any) -> Any:
        while any(control is one for one in ours):
            control = control.previous_controlnet
        return control

    control = patcher.controlnet_linked_list = first_other(patcher.controlnet_linked_list)
    while control is not None:
        control.previous_controlnet = first_other(control.previous_controlnet)
        control = control.previous_controlnet


def _add(patcher: Any, loaded: Any, watch: _Watch, reader: CallReader) -> tuple[_FaceControl, Any]:
    """The net's copy at the head of a clone's chain. The host's own window is left open: ours counts steps."""
    net = watch.rows.net
    clone = _applier()(patcher, loaded, net.hint, net.strength, 0.0, 1.0)
    return _FaceControl(clone.controlnet_linked_list, watch, reader), clone


def _load(pair: ExtensionPair) -> Any:
    """The host's patcher of a net. Raises: UnsupportedHostStateError where the host cannot read the file."""
    load = importlib.import_module("modules_forge.shared").try_load_supported_control_model
    what = f"The host's ControlNet cannot read {pair.net.name}"
    advice = "use a file of the published sizes or in ldm's layout, or set the unit to run IdentityNet built-in."
    try:
        patcher = getattr(load(str(pair.net)), "model_patcher", None)
    except Exception as error:
        logger.exception("%s", what)
        raise UnsupportedHostStateError(
            f"{what} ({type(error).__name__}; the console has the details): {advice}"
        ) from None
    net = getattr(patcher, "control_model", None)
    if net is None:
        raise UnsupportedHostStateError(f"{what} as a ControlNet: {advice}")
    held = len(net.state_dict())
    if held != len(pair.spec.tensors):
        raise UnsupportedHostStateError(
            f"{what} in full: it has {len(pair.spec.tensors)} tensors and the net that the host built has {held}: "
            f"{advice}"
        )
    return patcher


def _applier() -> Any:
    """Forge's `apply_controlnet_advanced`, or that of reForge and Classic."""
    try:
        return importlib.import_module("backend.patcher.controlnet").apply_controlnet_advanced
    except ModuleNotFoundError:
        return importlib.import_module("modules_forge.controlnet").apply_controlnet_advanced


def _show(p: Any, net: ExtensionNet) -> None:
    """Put the map among the extension's, which stand beside the results unless its setting hides them."""
    from modules import shared

    if not shared.opts.data.get("control_net_no_detectmap", False):
        p.extra_result_images.append(as_picture(net.hint))
