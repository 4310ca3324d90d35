"""IdentityNet in a job: read when sampling starts, its map drawn on each pass's canvas, gone when the job is over.

`session.job` makes one `JobNets`; `session.ready` prepares each InstantID unit with it, and `session.passes` asks for
what the UNet gets in a pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from ..core.residuals import UnitResiduals
from ..encoders.keypoint_map import as_hint, draw_keypoints
from ..hosts.controlnet_units import enabled_models
from ..hosts.identity_nets import HostNet
from ..library.errors import UnsupportedHostStateError
from ..units.unit import Unit
from .identity_files import NAME_PART, IdentityFile
from .identity_unit import PreparedIdentity, net_window
from .keypoints import FaceKeypoints, Frame, first_canvas, frame_of, lay
from .models import Choice
from .prepare import PreparedUnit
from .regions import Canvas
from .services import Services

logger = logging.getLogger("ipadapter")


class JobNets:
    """The IdentityNets of one job, each read once; `maps` are the drawn keypoints, by what they are called."""

    def __init__(self, services: Services, warn: Callable[[str], None]) -> None:
        self._host = services.host
        self._warn = warn
        self._held: dict[str, HostNet] = {}
        self.maps: dict[str, Image.Image] = {}

    def prepare(
        self, p: Any, unit: Unit, choice: Choice, context: Tensor, face: FaceKeypoints
    ) -> PreparedIdentity:
        """See that the face's keypoints lie in the picture, and read the net.

        Raises: KeypointsError, AdapterFileError, MissingPackageError.
        """
        assert choice.net is not None
        canvas = first_canvas(p)
        draw_keypoints([lay(face, frame_of(p), canvas, unit.fit)], canvas)
        self._tell_of_doubles(p)
        return PreparedIdentity(choice.net, self._load(p, choice.net), face, context)

    def enter(
        self,
        p: Any,
        units: Sequence[PreparedUnit],
        canvas: Canvas | None,
        masks: Mapping[int, Tensor],
        *,
        sampling: bool,
    ) -> list[UnitResiduals]:
        """What these units' nets add in the pass that is about to start, or is under way (`sampling`).

        `masks` are the units' regions as they are drawn on this canvas, by the units' numbers.

        Raises: KeypointsError, UnsupportedHostStateError; then no net is on the device.
        """
        with_net = [(one, one.identity) for one in units if one.identity is not None]
        if not with_net:
            return []
        frame = frame_of(p)
        found = [self._residuals(one, identity, frame, canvas, masks.get(one.number)) for one, identity in with_net]
        try:
            for held in {id(identity.held): identity.held for _, identity in with_net}.values():
                held.enter(sampling=sampling)
        except BaseException:
            self.leave()
            raise
        return found

    def leave(self) -> None:
        """The pass is over."""
        for held in self._held.values():
            held.leave()

    def release(self) -> None:
        """The job is over, or its batch failed: the nets are read again if there is another."""
        held, self._held = self._held, {}
        for one in held.values():
            one.release()
        if held:
            self._host.release()

    def _load(self, p: Any, file: IdentityFile) -> HostNet:
        held = self._held.get(file.fingerprint)
        if held is None:
            held = self._held[file.fingerprint] = self._host.build_net(p, file.spec, file.path)
            logger.info("IdentityNet %s read", file.name)
        return held

    def _residuals(
        self,
        unit: PreparedUnit,
        identity: PreparedIdentity,
        frame: Frame,
        canvas: Canvas | None,
        mask: Tensor | None,
    ) -> UnitResiduals:
        if canvas is None:
            raise UnsupportedHostStateError(
                f"Unit {unit.number}: it is not known at which size this pass is sampled, so the keypoints cannot be "
                "drawn for it; a script samples in its own way. Run the job without that script, or set the unit's "
                "keypoints to none."
            )
        fields, size = unit.unit, (canvas[1], canvas[0])
        picture = draw_keypoints([lay(identity.face, frame, size, fields.fit)], size)
        if fields.show_map:
            self.maps[f"{unit.name}, {size[0]} x {size[1]}"] = Image.fromarray(picture)
        return UnitResiduals(
            unit.name,
            identity.held.net,
            as_hint(picture),
            identity.context,
            fields.net_weight,
            net_window(fields),
            fields.net_rows == "cond",
            mask,
        )

    def _tell_of_doubles(self, p: Any) -> None:
        doubles = [name for name in enabled_models(p) if NAME_PART in name.lower()]
        if doubles:
            self._warn(
                f"The ControlNet extension runs InstantID as well ({', '.join(doubles)}), so the identity is applied "
                "twice: switch those ControlNet units off, or this unit."
            )
