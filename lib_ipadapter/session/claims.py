"""What a job says of itself: its units' infotext keys, and its warnings. Used by `session.job`.

The infotext never claims what did not happen: a claim is made when the unit is ready, and taken back when the job
fails or no step used the unit.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from ..library.errors import IPAdapterError
from ..units.face_choice import AUTO as AUTO_FACE
from ..units.images import ImageStore
from ..units.infotext import infotext_key, unit_to_infotext
from ..units.regions import AUTO, is_picture
from ..units.unit import Unit
from .passes import PassPlan, idle_sentences

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
            inline = is_picture(unit.region) and not store.has(unit.region)
            told = replace(unit, region=AUTO) if inline else unit
            p.extra_generation_params[infotext_key(number)] = unit_to_infotext(told, stored, {}, pose)

    def foretell(self, p: Any, plan: PassPlan) -> None:
        """Claim what is ready, for pictures that are saved while the job runs."""
        self._make(p, plan, plan.with_net, {unit.number for unit in plan.units})

    def settle(self, p: Any, plan: PassPlan, *, tell_idle: bool) -> None:
        """After sampling: claim what acted and nothing else; `tell_idle` warns of what was ready and did not act."""
        self._make(p, plan, plan.net_acted, plan.rescale.ran)
        self.retract(p, keep=plan.acted | plan.with_lora)
        for sentence in idle_sentences(plan) if tell_idle else ():
            self.warn(p, sentence)

    def cut_short(self, p: Any, plan: PassPlan | None, passes: int, error: IPAdapterError) -> None:
        """The job goes on without image prompts from the pass numbered `passes` on: claim what acted before, warn."""
        acted = plan.acted | plan.with_lora if plan is not None else set[int]()
        if plan is not None and acted:
            self._make(p, plan, plan.net_acted, plan.rescale.ran)
        self.retract(p, keep=acted)
        without = f"The rest, from pass {passes} on, was sampled" if acted else "Generated"
        self.warn(p, f"{without} without image prompts. {error}")

    def _make(self, p: Any, plan: PassPlan, nets: Collection[int], rescaled: Collection[int]) -> None:
        """Claim the plan's units and no others; `nets` are the numbers of those whose IdentityNet acts, `rescaled` of
        those in whose steps guidance is rescaled.
        """
        self.retract(p)
        loras = plan.loras.told
        for one in plan.units:
            choice = one.choice
            ran = {"file": choice.name, "hash": choice.fingerprint[:10]}
            if choice.encoder is not None:
                ran["encoder"] = choice.encoder.name
            if choice.pack is not None:
                # A file that nobody knows may measure faces on another scale than the published one.
                ran["faces"] = choice.pack.name + (f" {choice.pack.fingerprint[:10]}" if choice.pack.note else "")
            if one.number in loras:
                ran["lora"] = loras[one.number]
            pose: Sequence[str] = ()
            if one.identity is not None and one.number in nets:
                file = one.identity.file
                ran |= {"net": file.name, "net_hash": file.fingerprint[:10], "keypoints": one.identity.face.source}
            if one.face is not None and (one.number in nets or one.number in plan.places):
                pose = (one.face.photo,) if one.face.photo else ()
                if one.face.place and one.unit.pose_face == AUTO_FACE:
                    ran["pose_face"] = one.face.place
            if one.number in plan.places:
                ran["region"] = plan.places[one.number]
            unit = one.unit if one.region is None else replace(one.unit, region=one.region.text)
            unit = unit if one.number in rescaled else replace(unit, cfg_rescale=0.0)
            p.extra_generation_params[infotext_key(one.number)] = unit_to_infotext(unit, one.digests, ran, pose)

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
