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

from ..core.attach import Companion
from ..core.residuals import UnitResiduals
from ..encoders.keypoint_map import as_hint, draw_keypoints
from ..hosts.controlnet_units import enabled_models
from ..hosts.extension_nets import ExtensionNet
from ..hosts.identity_nets import HostNet
from ..library.errors import UnsupportedHostStateError
from ..units.unit import Unit
from .extension import CONTROLNET, JobExtension
from .identity_files import NAME_PART, IdentityFile
from .identity_unit import PreparedIdentity, net_window
from .keypoints import FaceKeypoints, Frame, first_canvas, frame_of, lay
from .models import Choice
from .prepare import PreparedUnit
from .regions import Canvas
from .services import Services

logger = logging.getLogger("ipadapter")


class JobNets:
    """The IdentityNets of one job, each read once; `maps` are the drawn keypoints, by what they are called.

    `alongside` are what watches the ControlNet extension in the pass, where that runs a net.
    """

    def __init__(
        self, services: Services, warn: Callable[[str], None], extension: JobExtension | None = None
    ) -> None:
        self._host = services.host
        self._extension = extension
        self._warn = warn
        self._held: dict[str, HostNet] = {}
        self.maps: dict[str, Image.Image] = {}
        self.alongside: Sequence[Companion] = ()

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
        held = None
        if unit.net_engine == CONTROLNET:
            self._require_extension().prepare(p, unit, choice)
        else:
            held = self._load(p, choice.net)
        return PreparedIdentity(choice.net, held, face, context)

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
        found: list[UnitResiduals] = []
        through: list[ExtensionNet] = []
        for one, identity in with_net:
            hint, mask = self._hint(one, identity, frame, canvas), masks.get(one.number)
            if identity.held is None:
                through.append(_through_extension(one, identity, hint, mask))
            else:
                found.append(_residuals(one, identity, identity.held, hint, mask))
        try:
            for held in {id(identity.held): identity.held for _, identity in with_net if identity.held}.values():
                held.enter(sampling=sampling)
            if through:
                self.alongside = self._require_extension().enter(p, through, sampling=sampling)
        except BaseException:
            self.leave()
            raise
        return found

    def settle(self) -> None:
        """The ControlNet extension has read its units."""
        if self._extension is not None:
            self._extension.settle()

    def begin_step(self, params: Any) -> None:
        """The denoiser's parameters of the step that is about to call the UNet."""
        if self._extension is not None:
            self._extension.begin_step(params)

    def leave(self) -> None:
        """The pass is over."""
        self.alongside = ()
        for held in self._held.values():
            held.leave()
        if self._extension is not None:
            self._extension.leave()

    def release(self) -> None:
        """The job is over, or its batch failed: the nets are read again if there is another."""
        held, self._held = self._held, {}
        for one in held.values():
            one.release()
        if held:
            self._host.release()
        if self._extension is not None:
            self._extension.close()

    def _load(self, p: Any, file: IdentityFile) -> HostNet:
        held = self._held.get(file.fingerprint)
        if held is None:
            held = self._held[file.fingerprint] = self._host.build_net(p, file.spec, file.path)
            logger.info("IdentityNet %s read", file.name)
        return held

    def _require_extension(self) -> JobExtension:
        if self._extension is None:
            raise UnsupportedHostStateError(
                "The ControlNet extension was not told of this job before it began (a script makes it in its own way), "
                "so it cannot run IdentityNet: set the unit to run it built-in."
            )
        return self._extension

    def _hint(self, unit: PreparedUnit, identity: PreparedIdentity, frame: Frame, canvas: Canvas | None) -> Tensor:
        """The unit's map, drawn for the pass. Raises: KeypointsError, UnsupportedHostStateError."""
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
        return as_hint(picture)

    def _tell_of_doubles(self, p: Any) -> None:
        doubles = [name for name in enabled_models(p) if NAME_PART in name.lower()]
        if doubles:
            self._warn(
                f"The ControlNet extension runs InstantID as well ({', '.join(doubles)}), so the identity is applied "
                "twice: switch those ControlNet units off, or this unit."
            )


def _residuals(
    unit: PreparedUnit, identity: PreparedIdentity, held: HostNet, hint: Tensor, mask: Tensor | None
) -> UnitResiduals:
    fields = unit.unit
    return UnitResiduals(
        unit.name,
        held.net,
        hint,
        identity.context,
        fields.net_weight,
        net_window(fields),
        fields.net_rows == "cond",
        mask,
    )


def _through_extension(
    unit: PreparedUnit, identity: PreparedIdentity, hint: Tensor, mask: Tensor | None
) -> ExtensionNet:
    if mask is not None:
        raise UnsupportedHostStateError(
            f"Unit {unit.number}: the ControlNet extension places regions in another way than image prompts do, so its "
            "IdentityNet cannot keep to one: let the unit act everywhere, or run IdentityNet built-in."
        )
    fields = unit.unit
    return ExtensionNet(
        unit.name, identity.file.path, hint, identity.context, fields.net_weight, net_window(fields)
    )
