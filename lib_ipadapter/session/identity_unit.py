"""IdentityNet's side of one unit: whether it has one, when it acts, and what it needs. Made by `session.identity`."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..core.schedule import Window
from ..hosts.identity_nets import HostNet
from ..library.spec import AdapterSpec
from ..units.unit import Unit
from .identity_files import NONE, IdentityFile
from .keypoints import FaceKeypoints
from .preferences import INSTANTID


@dataclass(frozen=True)
class PreparedIdentity:
    """IdentityNet's side of a prepared unit. `context` (2, T, D) are the face's tokens, for prompt and negative.

    `held` is None where the ControlNet extension runs the net.
    """

    file: IdentityFile
    held: HostNet | None = field(repr=False)
    face: FaceKeypoints
    context: Tensor = field(repr=False)


def wants_net(unit: Unit, spec: AdapterSpec) -> bool:
    """Whether IdentityNet runs for a unit: without keypoints there is nothing that it could be shown."""
    switched_off = unit.identity_net.strip().lower() == NONE or unit.net_weight == 0.0 or unit.keypoints == "none"
    return spec.kind == INSTANTID and not switched_off


def net_window(unit: Unit) -> Window:
    """The part of a pass in which the unit's IdentityNet acts."""
    return Window(unit.net_start, unit.net_end)
