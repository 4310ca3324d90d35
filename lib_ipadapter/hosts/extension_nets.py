"""IdentityNet in the hands of the ControlNet extension: what `session.extension` asks of it, the same on every host.

`a1111_controlnet` does it with sd-webui-controlnet's units, `forge_controlnet` with the Forge family's patchers. Both
let the extension compute and add the residuals, and see to it that this net alone gets the face's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..core.attach import AttachmentScope, Companion
from ..core.masks import PIXELS_PER_LATENT
from ..core.schedule import UNetCall, Window
from ..library.errors import UnexplainedRowsError, UnsupportedHostStateError
from ..library.spec import ControlNetSpec


class ExtensionPair(NamedTuple):
    """Both halves of InstantID on disk, and what the ControlNet is."""

    adapter: Path
    net: Path
    spec: ControlNetSpec


class ExtensionNet(NamedTuple):
    """One person as the extension is to see them in a pass; the fields are those of `core.residuals.UnitResiduals`."""

    name: str
    path: Path
    hint: Tensor
    context: Tensor
    strength: float
    window: Window


class ExtensionNets(Protocol):
    """The ControlNet extension during one job. All of its methods may be called again."""

    def reserve(self, p: Any, pairs_for: Callable[[Path | None], Sequence[ExtensionPair]]) -> None:
        """Before the extension reads its units: take what it has to have by then.

        `pairs_for` says which files the job's units use with a checkpoint, one pair for a person.
        Raises: IPAdapterError saying why the extension cannot run them.
        """
        ...

    def settle(self, p: Any) -> None:
        """After the extension read its units: leave the job as it was, without what was reserved."""
        ...

    def ready(self, p: Any, pair: ExtensionPair) -> None:
        """Before sampling: see that the extension has the pair. Raises: IPAdapterError saying what it lacks."""
        ...

    def enter(self, p: Any, unet: nn.Module, nets: Sequence[ExtensionNet], *, sampling: bool) -> Sequence[Companion]:
        """Hand over what the pass needs that is about to start, or is under way (`sampling`).

        The companions watch the UNet's calls. Raises: UnsupportedHostStateError.
        """
        ...

    def begin_step(self, params: Any) -> None:
        """The denoiser's parameters of the step that is about to call the UNet."""
        ...

    def leave(self) -> None:
        """The pass is over, or goes on without."""
        ...

    def close(self, p: Any) -> None:
        """The job is over: nothing of it is left in the extension."""
        ...


class FaceRows:
    """What one net is fed in a call: the face's tokens for each row; and whether the extension asked for it."""

    def __init__(self, net: ExtensionNet) -> None:
        self.net = net
        self.asked = False

    def context(self, call: UNetCall, x: Tensor) -> Tensor:
        """The tokens (rows, T, D) of a call on the latents `x`. Raises: UnsupportedHostStateError, where it is no call
        on the whole canvas; UnexplainedRowsError.
        """
        self.asked = True
        if x.shape[0] != len(call.rows):
            raise UnexplainedRowsError(
                f"The ControlNet extension ran IdentityNet on {x.shape[0]} rows and the UNet's call has "
                f"{len(call.rows)}; another extension changes the rows: turn it off, or run IdentityNet built-in."
            )
        size = tuple(side * PIXELS_PER_LATENT for side in x.shape[-2:])
        if size != tuple(self.net.hint.shape[-2:]):
            canvas = "x".join(str(side) for side in reversed(self.net.hint.shape[-2:]))
            raise UnsupportedHostStateError(
                f"{self.net.name}: the keypoints are drawn for a picture of {canvas} and the UNet was called for "
                f"{size[1]}x{size[0]}; another extension samples in tiles or at other sizes (Tiled Diffusion, "
                "MultiDiffusion?): turn it off, or IdentityNet."
            )
        kinds = torch.tensor(call.rows, device=x.device)
        return self.net.context.to(x.device).index_select(0, kinds)

    def require_asked(self) -> None:
        """Raises: UnsupportedHostStateError when the extension did not run the net in the call that acts."""
        asked, self.asked = self.asked, False
        if not asked:
            raise UnsupportedHostStateError(
                f"{self.net.name}: the ControlNet extension did not run IdentityNet in a step where it should; another "
                "extension takes its place at the UNet. Run IdentityNet built-in."
            )


class Watching:
    """A companion without hooks of its own; `begin` and `end` are those of `core.attach.Companion`."""

    def hook(self, scope: AttachmentScope) -> None:
        """The extension adds the residuals."""

    def begin(self, call: UNetCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call is about to run."""

    def end(self, *, finished: bool) -> None:
        """A call is over."""


def as_picture(hint: Tensor) -> Any:
    """A drawn map (1, 3, H, W) in 0..1 as the pixels that the extension shows, (H, W, 3) of uint8."""
    return (hint[0].permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
