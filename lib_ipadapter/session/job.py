"""One generation: its units are prepared when sampling starts, attached per pass, and gone when sampling ends.

`webui.script` makes a `Job` per processing object and forwards the host's callbacks. The hosts swallow whatever a
callback raises and carry on without it, so the only errors that reach anybody are raised inside `p.sample`, which the
job wraps, or inside the UNet, where the job's first hook raises what went wrong in a callback.
"""

from __future__ import annotations

import logging
from typing import Any

from ..library.errors import IPAdapterError, UnsupportedHostStateError
from ..units.infotext import infotext_key, unit_to_infotext
from ..units.unit import Request
from .failures import as_named
from .features import EncoderPool
from .passes import PassAttachment, PassPlan, attach_pass, refuse_pass
from .planning import plan_units
from .prepare import PreparedUnit, prepare_unit
from .services import Services
from .wrapping import WrappedSample

logger = logging.getLogger("ipadapter")

WARNING_KEY = "IP-Adapter warning"


class Job:
    """The image prompts of one processing object `p`.

    Raises nothing from its callbacks: a failure is kept and raised where the host lets it through.
    """

    def __init__(self, p: Any, request: Request | IPAdapterError, services: Services) -> None:
        self.p = p
        self._request = request
        self._services = services
        self._failure: IPAdapterError | None = None
        self._pass: PassAttachment | None = None
        self._plan: PassPlan | None = None
        self._reader = services.host.call_reader(p)
        self._passes = 0
        self._over = False
        self._warned: set[str] = set()

    # -- callbacks, in the order the hosts call them

    def announce(self) -> None:
        """Put the requested units where the host's prompt history looks; replaced by what ran, or removed.

        What an earlier job said goes first: copies of a processing object (X/Y/Z plot) share the dict.
        """
        self._retract()
        self.p.extra_generation_params.pop(WARNING_KEY, None)
        if isinstance(self._request, IPAdapterError):
            return
        store = self._services.store()
        for number, unit in self._request.numbered:
            stored = [value for value in unit.images if store.has(value)]
            self.p.extra_generation_params[infotext_key(number)] = unit_to_infotext(unit, stored, {})

    def before_batch(self) -> None:
        """Where an error raised while sampling would be lost, find it now, say it, and end the job without a picture.

        The hosts end a job whose batch has no prompts (modules/processing.py, process_images_inner) and show its
        comments.
        """
        services = self._services
        if not services.host.hides_errors() or not services.stop_on_failure():
            return
        try:
            self._plan_or_raise()
        except Exception as error:
            self._retract()
            self._warn(f"Stopped. {as_named(error, 'The image prompt')}")
            self.p.prompts = []

    def wrap_sample(self) -> None:
        """Wrap `p.sample` on the instance until it is called; wrapping twice is wrapping once.

        A wrapper that is there already is undone first: of an earlier job of `p` that was never sampled, or of the
        object that `p` was copied from, whose `sample` would sample that object.
        """
        p = self.p
        earlier = p.__dict__.get("sample")
        while isinstance(earlier, WrappedSample):
            earlier.undo(p)
            earlier = p.__dict__.get("sample")
        p.sample = WrappedSample(p, self._sample)

    def before_sampling(self) -> None:
        """Attach to the UNet of the pass (base, hires) that is about to start; called again, it starts afresh."""
        if self._plan is None:
            return
        self._reader.begin_pass()
        self._passes += 1
        if self._services.stop_on_failure():
            self._guarded(self._attach)
        else:
            self._attach_or_go_on()

    def before_step(self, params: Any) -> None:
        """Follow a UNet that changed between steps (refiner) and tell the reader what this step's rows are.

        A script that samples in its own way (img2img alternative test) does not announce its pass: it is attached here.
        """
        if self._plan is None:
            return
        if self._pass is None:
            self.before_sampling()

        def follow() -> None:
            if self._pass is not None and self._services.host.unet(self.p) is not self._pass.unet:
                self._attach()
            self._reader.begin_step(params)

        self._guarded(follow)

    def close(self) -> None:
        """Leave nothing behind; safe to call at any time and twice. A wrapper that others still hold does nothing."""
        self._over = True
        own = self.p.__dict__.get("sample")
        if isinstance(own, WrappedSample):
            own.undo(self.p)
        self._detach()

    def _detach(self) -> None:
        if self._pass is not None:
            self._pass.close()
        self._pass = None
        self._plan = None

    # -- inside p.sample

    def _sample(self, inner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._over:
            return inner(*args, **kwargs)
        self._failure, self._passes = None, 0
        finished = False
        try:
            self._plan = self._prepare()
            if self._plan is None:
                finished = True
                return inner(*args, **kwargs)
            result = inner(*args, **kwargs)
            if self._plan is not None:
                self._verify(self._plan)
            finished = True
            return result
        finally:
            self._detach()
            if not finished:
                self._retract()

    def _prepare(self) -> PassPlan | None:
        """Everything that can fail, before the first step. None when there is nothing to do."""
        try:
            return self._plan_or_raise()
        except Exception as error:
            named = as_named(error, "The image prompt")
            if self._services.stop_on_failure():
                logger.error("stopped: %s", named)  # noqa: TRY400 - as_named has logged what was not foreseen
                raise named from error
            self._retract()
            self._warn(f"Generated without image prompts. {named}")
            return None

    def _plan_or_raise(self) -> PassPlan | None:
        if isinstance(self._request, IPAdapterError):
            raise self._request
        if not self._request.enabled:
            return None
        self._request.require_pictures()
        host = self._services.host
        for reason in (host.too_old(), host.refusal(self.p)):
            if reason:
                raise UnsupportedHostStateError(reason)
        active = [(number, unit) for number, unit in self._request.numbered if unit.weight != 0.0]
        if not active:
            self._retract()
            return None
        prepared = self._prepare_units(active)
        self._retract()
        for unit in prepared:
            self.p.extra_generation_params[infotext_key(unit.number)] = _infotext(unit)
        return PassPlan(tuple(prepared)) if prepared else None

    def _prepare_units(self, active: list[Any]) -> list[PreparedUnit]:
        services, store = self._services, self._services.store()
        prepared: list[PreparedUnit] = []
        with EncoderPool(services.host, services.cache) as pool:
            for number, unit, choice in plan_units(self.p, active, services, self._failed_unit):
                try:
                    prepared.append(prepare_unit(number, unit, choice, pool=pool, store=store, cache=services.cache))
                except Exception as error:
                    self._failed_unit(number, as_named(error, f"Unit {number}"))
        return prepared

    def _failed_unit(self, number: int, error: IPAdapterError) -> None:
        """A unit that cannot be prepared stops the job, or is left out where the user asked for that."""
        if self._services.stop_on_failure():
            raise error
        self._warn(f"Generated without unit {number}. {error}")

    def _verify(self, plan: PassPlan) -> None:
        """After sampling: raise when the units could not have acted; say nothing of those that did not."""
        if self._failure is not None:
            raise self._failure
        interrupted = self._services.host.interrupted()
        if not self._passes and not interrupted:
            raise UnsupportedHostStateError(
                "The picture was sampled without the image prompt: a script samples in its own way and does not tell "
                "extensions when it starts. Run it without that script, or switch the image prompt off."
            )
        for unit in plan.units:
            if unit.number not in plan.acted:
                self.p.extra_generation_params.pop(infotext_key(unit.number), None)
                if interrupted:
                    continue
                self._warn(
                    f"Unit {unit.number} did not act: no step of this job lies between its start "
                    f"({unit.unit.start:g}) and its end ({unit.unit.end:g}). Widen the range or use more steps."
                )

    # -- shared

    def _attach(self) -> None:
        if self._pass is not None:
            self._pass.close()
        unet = self._services.host.unet(self.p)
        assert self._plan is not None
        self._pass = attach_pass(unet, self._plan, self._read_call, self._warn)

    def _read_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._failure is not None:
            raise self._failure
        call = self._reader(args, kwargs)
        if self._pass is not None:
            self._pass.note(call.fraction)
        return call

    def _attach_or_go_on(self) -> None:
        """Attach; where that fails and the user asked to go on, sample what is left without image prompts."""
        try:
            self._attach()
        except Exception as error:
            named = as_named(error, "The image prompt")
            first = self._passes == 1
            self._detach()
            if first:
                self._retract()
            self._warn(f"{'Generated' if first else f'Pass {self._passes} was sampled'} without image prompts. {named}")

    def _guarded(self, action: Any) -> None:
        """Run a callback's work; keep what it raises and see to it that the UNet raises it."""
        try:
            action()
        except Exception as error:
            self._failure = as_named(error, "The image prompt")
            if self._pass is not None:
                self._pass.close()
            if self._plan is not None:
                self._pass = refuse_pass(self._services.host.unet(self.p), self._plan, self._failure)

    def _retract(self) -> None:
        """Take every claim out of the infotext."""
        params = self.p.extra_generation_params
        for key in [key for key in params if key.startswith(infotext_key(0)[:-1])]:
            del params[key]

    def _warn(self, sentence: str) -> None:
        """Show a sentence under the result and in the infotext, once."""
        if sentence in self._warned:
            return
        self._warned.add(sentence)
        logger.warning("%s", sentence)
        self.p.comment(f"IP-Adapter: {sentence}")
        self.p.extra_generation_params[WARNING_KEY] = " ".join(sorted(self._warned))


def _infotext(prepared: PreparedUnit) -> str:
    choice = prepared.choice
    ran = {"file": choice.name, "hash": choice.fingerprint[:10], "encoder": choice.encoder.name}
    return unit_to_infotext(prepared.unit, prepared.digests, ran)
