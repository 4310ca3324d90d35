"""What a job says of itself: its units' infotext keys, and its warnings. Used by `session.job`.

The infotext never claims what did not happen: a claim is made when the unit is ready, and taken back when the job
fails or no step used the unit.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..units.images import ImageStore
from ..units.infotext import infotext_key, unit_to_infotext
from ..units.unit import Unit
from .prepare import PreparedUnit

logger = logging.getLogger("ipadapter")

WARNING_KEY = "IP-Adapter warning"


class Claims:
    """Writes into `p.extra_generation_params`, which the hosts read when a picture is saved."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def announce(self, p: Any, units: Sequence[tuple[int, Unit]], store: ImageStore) -> None:
        """Put the requested units where the host's prompt history looks; replaced by what ran, or removed."""
        for number, unit in units:
            stored = [value for value in unit.images if store.has(value)]
            pose = [value for value in unit.pose if store.has(value)]
            p.extra_generation_params[infotext_key(number)] = unit_to_infotext(unit, stored, {}, pose)

    def make(
        self, p: Any, prepared: Sequence[PreparedUnit], loras: Mapping[int, str], nets: Collection[int]
    ) -> None:
        """Claim these units and no others; `loras` says by a unit's number which LoRA is on for it, and how strong,
        `nets` are the numbers of those whose IdentityNet acts.
        """
        self.retract(p)
        for one in prepared:
            choice = one.choice
            ran = {"file": choice.name, "hash": choice.fingerprint[:10]}
            if choice.encoder is not None:
                ran["encoder"] = choice.encoder.name
            if choice.pack is not None:
                ran["faces"] = choice.pack.name
            if one.number in loras:
                ran["lora"] = loras[one.number]
            pose: Sequence[str] = ()
            if one.identity is not None and one.number in nets:
                file = one.identity.file
                ran |= {"net": file.name, "net_hash": file.fingerprint[:10], "keypoints": one.identity.face.source}
                pose = one.identity.pose_digests
            p.extra_generation_params[infotext_key(one.number)] = unit_to_infotext(one.unit, one.digests, ran, pose)

    def retract(self, p: Any, keep: Collection[int] = ()) -> None:
        """Take every claim back but those of the units in `keep`."""
        kept = {infotext_key(number) for number in keep}
        params = p.extra_generation_params
        for key in [key for key in params if key.startswith(infotext_key(0)[:-1]) and key not in kept]:
            del params[key]

    def warn(self, p: Any, sentence: str) -> None:
        """Show a sentence under the result and in the infotext, once."""
        if sentence in self._warned:
            return
        self._warned.add(sentence)
        logger.warning("%s", sentence)
        p.comment(f"IP-Adapter: {sentence}")
        p.extra_generation_params[WARNING_KEY] = " ".join(sorted(self._warned))

    def forget_earlier(self, p: Any) -> None:
        """Remove what another job of this object, or of the one it was copied from, has said."""
        self.retract(p)
        p.extra_generation_params.pop(WARNING_KEY, None)
