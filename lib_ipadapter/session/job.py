"""One generation: its units are prepared when sampling starts, attached per pass, and gone when sampling ends.

`webui.script` makes a `Job` per processing object and forwards the host's callbacks. The hosts swallow whatever a
callback raises and carry on without it, so the only errors that reach anybody are raised inside `p.sample`, which the
job wraps, or inside the UNet, where the job's first hook raises what went wrong in a callback.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

from PIL import Image

from ..core.schedule import UNetCall
from ..library.errors import IPAdapterError, UnsupportedHostStateError
from ..units.unit import Request
from .claims import Claims
from .extension import JobExtension
from .failures import afresh, as_named
from .identity import JobNets
from .maps import show_maps
from .passes import PassAttachment, PassPlan, attach_pass, refuse_pass
from .ready import ready_plan
from .regions import Canvas, canvas_of
from .scoring import IdentityScores, scores_for
from .services import Services
from .wrapping import WrappedSample

logger = logging.getLogger("ipadapter")

WHAT = "The image prompt"


class Job:
    """The image prompts of one processing object `p`.

    Raises nothing from its callbacks: a failure is kept and raised where the host lets it through, or, where the user
    asked to go on, told of in a warning while the rest is sampled without image prompts.
    """

    def __init__(
        self, p: Any, request: Request | IPAdapterError, services: Services, extension: JobExtension | None = None
    ) -> None:
        # Weak, as `p` holds its job: a finished processing object and its tensors go at once, not with a later
        # collection of garbage.
        self._processing = weakref.ref(p)
        self._request = request
        self._services = services
        self._claims = Claims()
        self._failure: IPAdapterError | None = None
        self._pass: PassAttachment | None = None
        self._plan: PassPlan | None = None
        self._scores: IdentityScores | None = None
        self._pictures = 0
        self._reader = services.host.call_reader(p)
        self._nets = JobNets(services, self._warn, extension)
        self._passes = 0
        self._canvas: Canvas | None = None
        self._over = False

    @property
    def p(self) -> Any:
        """The processing object; it outlives every callback."""
        return self._processing()

    # -- callbacks, in the order the hosts call them

    def announce(self) -> None:
        """Put the requested units where the host's prompt history looks; replaced by what ran, or removed.

        What an earlier job said goes first: a copy of a processing object (X/Y/Z plot) brings it along.
        """
        self._claims.forget_earlier(self.p)
        if isinstance(self._request, Request) and self._request.numbered:
            self._claims.announce(self.p, self._request.numbered, self._services.store())

    def before_batch(self) -> None:
        """Where an error raised while sampling would be lost, find it now, say it, and end the job without a picture.

        The hosts end a job whose batch has no prompts (modules/processing.py, process_images_inner) and show its
        comments.
        """
        services = self._services
        if not services.host.hides_errors() or not services.stop_on_failure():
            return
        try:
            plan = self._plan_or_raise()
            if plan is not None:
                plan.loras.finish()  # what was read is there for sampling
        except Exception as error:
            self._claims.retract(self.p)
            self._warn(f"Stopped. {as_named(error, WHAT)}")
            self.p.prompts = []

    def wrap_sample(self) -> None:
        """Wrap `p.sample` on the instance until it is called; wrapping twice is wrapping once.

        A wrapper that is there already is undone first: of an earlier job of `p` that was never sampled, or of the
        object that `p` was copied from, whose `sample` would sample that object.
        """
        if self._scores is not None:
            self._scores.begin_batch()
        p = self.p
        self._nets.settle()
        earlier = p.__dict__.get("sample")
        while isinstance(earlier, WrappedSample):
            earlier.undo(p)
            earlier = p.__dict__.get("sample")
        p.sample = WrappedSample(p, self._sample)

    def before_sampling(self, latent: Any = None) -> None:
        """Attach to the UNet of the pass (base, hires) that is about to start from `latent` (b, c, h, w).

        Called again, it starts afresh.
        """
        if self._plan is None:
            return
        self._begin_pass(latent, sampling=False)

    def _begin_pass(self, latent: Any, *, sampling: bool) -> None:
        self._reader.forget()
        self._passes += 1
        self._canvas = canvas_of(latent)
        self._guarded(lambda: self._attach(sampling=sampling))

    def before_step(self, params: Any) -> None:
        """Follow a UNet that changed between steps (refiner) and tell the reader what this step's rows are.

        A script that samples in its own way (img2img alternative test) does not announce its pass: it is attached here.
        """
        if self._plan is None:
            return
        if self._pass is None:
            self._begin_pass(getattr(params, "x", None), sampling=True)
            if self._plan is None:
                return

        def follow() -> None:
            if self._pass is not None and self._services.host.unet(self.p) is not self._pass.unet:
                self._attach(sampling=True)
            self._check_loras()
            self._reader.begin_step(params)
            if self._pass is not None:
                self._pass.begin_step(params)
            self._nets.begin_step(params)

        self._guarded(follow)

    def after_picture(self, picture: Image.Image) -> None:
        """Score a finished picture of the batch, where a unit asks for it."""
        self._pictures += 1
        if self._scores is not None:
            self.p.extra_generation_params.update(self._scores.add(picture))

    def finish(self, processed: Any) -> None:
        """Put every picture's score into the result's text and into what the API answers, and the maps beside them."""
        show_maps(processed, self._nets.maps)
        if self._scores is not None:
            self._scores.write(self.p, processed)

    def close(self) -> None:
        """Leave nothing behind; safe to call at any time and twice. A wrapper that others still hold does nothing."""
        self._over = True
        own = self.p.__dict__.get("sample")
        if isinstance(own, WrappedSample):
            own.undo(self.p)
        self._detach()
        self._nets.release()
        if self._scores is not None:
            self._scores.close()

    def _detach(self, *, sampling: bool = False) -> None:
        if self._pass is not None:
            self._pass.close(sampling=sampling)
        if self._plan is not None:
            self._plan.loras.finish()
        self._pass = None
        self._plan = None
        self._reader.forget()

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
            self._failure = None
            if not finished:
                self._nets.release()
                self._claims.retract(self.p)

    def _prepare(self) -> PassPlan | None:
        """Everything that can fail, before the first step. None when there is nothing to do."""
        try:
            return self._plan_or_raise()
        except Exception as error:
            named = afresh(as_named(error, WHAT))
        try:
            if self._services.stop_on_failure():
                logger.error("stopped: %s", str(named))
                raise named from None
            self._claims.retract(self.p)
            self._warn(f"Generated without image prompts. {named}")
            return None
        finally:
            # An error that a frame of its own traceback holds would keep all that the traceback holds, the encoder too.
            del named

    def _plan_or_raise(self) -> PassPlan | None:
        if isinstance(self._request, IPAdapterError):
            raise afresh(self._request)
        if not self._request.enabled:
            return None
        self._request.require_pictures()
        host = self._services.host
        for reason in (host.too_old(), host.refusal(self.p)):
            if reason:
                raise UnsupportedHostStateError(reason)
        plan = ready_plan(self.p, self._request, self._services, self._nets, self._warn)
        if plan is None:
            self._claims.retract(self.p)
            return None
        self._claims.foretell(self.p, plan)
        if self._scores is None:  # this job's first batch
            self._scores = scores_for(plan.units, self._services, self._warn, self._pictures)
        return plan

    def _verify(self, plan: PassPlan) -> None:
        """After sampling: raise when the units could not have acted; say nothing of those that did not."""
        if self._failure is not None:
            raise self._failure
        self._check_loras()
        interrupted = self._services.host.interrupted()
        if not self._passes and not interrupted:
            self._fail(UnsupportedHostStateError(
                "The picture was sampled without the image prompt: a script samples in its own way and does not tell "
                "extensions when it starts. Run it without that script, or switch the image prompt off."
            ))  # fmt: skip
            return
        self._claims.settle(self.p, plan, tell_idle=not interrupted)

    # -- shared

    def _attach(self, *, sampling: bool) -> None:
        if self._pass is not None:
            self._pass.close()
        unet = self._services.host.unet(self.p)
        assert self._plan is not None
        self._pass = attach_pass(
            self.p, unet, self._plan, self._read_call, self._warn, self._canvas, sampling=sampling
        )

    def _check_loras(self) -> None:
        if self._pass is not None:
            self._pass.check_loras(self._services.stop_on_failure(), self._warn)

    def _read_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> UNetCall | None:
        if self._failure is not None:
            raise self._failure
        try:
            call = self._reader(args, kwargs)
        except Exception as error:
            self._fail(as_named(error, WHAT))
            return None
        if self._pass is not None:
            self._pass.note(call)
        return call

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run a callback's work; what it raises is raised by the UNet, or told of while the job goes on."""
        try:
            action()
        except Exception as error:
            self._keep(as_named(error, WHAT))

    def _keep(self, failure: IPAdapterError) -> None:
        """See to it that the UNet raises the failure, or go on without image prompts."""
        if not self._services.stop_on_failure():
            self._go_on_without(failure)
            return
        self._failure = failure
        if self._pass is not None:
            self._pass.close()
        if self._plan is not None:
            self._pass = refuse_pass(self._services.host.unet(self.p), self._plan, failure)

    def _fail(self, error: IPAdapterError) -> None:
        """Raise, or go on where the user asked for that."""
        try:
            if self._services.stop_on_failure():
                raise error
            self._go_on_without(error)
        finally:
            del error  # as in `_prepare`

    def _go_on_without(self, error: IPAdapterError) -> None:
        """Take everything off the UNet; what is still to be sampled has no image prompts, and the warning says so."""
        plan, passes = self._plan, self._passes
        self._detach(sampling=True)
        self._claims.cut_short(self.p, plan, passes, error)

    def _warn(self, sentence: str) -> None:
        self._claims.warn(self.p, sentence)
