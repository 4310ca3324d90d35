"""The AlwaysOn script: forwards the host's callbacks to the job of each processing object.

`scripts/ipadapter.py` puts the class where the host's loader finds it. Nothing here may raise into a callback: the
hosts would swallow it and generate without the image prompt. `session.job` raises where they cannot.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from modules import scripts

from ..library.errors import BadUnitError, IPAdapterError
from ..session.extension import JobExtension, reserve
from ..session.failures import afresh, as_named
from ..session.job import Job
from ..session.wrapping import WrappedSample
from ..units.unit import Request, parse_args
from . import settings, xyz
from .page import page_services
from .panel import build_panel
from .process import services

JOB = "ipadapter_job"
"""The attribute of a processing object that holds its job. Hosts copy such objects, so a job knows its own."""
EXTENSION = "ipadapter_extension"
"""The attribute that holds what its job has of the ControlNet extension, from before the job is made."""


class IPAdapterScript(scripts.Script):
    """Image prompts for txt2img and img2img."""

    def title(self) -> str:
        return "IP-Adapter"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        panel = build_panel(
            tab="img2img" if is_img2img else "txt2img", max_units=settings.max_units(), services=page_services()
        )
        self.infotext_fields = panel.infotext_fields
        self.paste_field_names = panel.paste_field_names
        return panel.inputs

    def before_process(self, p: Any, *args: Any) -> None:
        """Close what an earlier run of the same object left open; tell the ControlNet extension of an IdentityNet."""
        job = job_of(p)
        if job is not None:
            job.close()
        close_extension(p)
        request = read_request(p, args)
        if isinstance(request, Request) and request.enabled:
            try:
                setattr(p, EXTENSION, reserve(p, request, services()))
            except Exception as error:
                as_named(error, "Telling the ControlNet extension")  # the log has it; the unit stops for want of it

    def process(self, p: Any, *args: Any) -> None:
        request = read_request(p, args)
        setattr(p, JOB, None)
        if isinstance(request, Request) and not request.enabled:
            return
        # Copies of an object (X/Y/Z plot) and jobs inside a job (ADetailer) share its infotext, which the other may
        # still have to write.
        p.extra_generation_params = dict(p.extra_generation_params)
        try:
            job = Job(p, request, services(), extension_of(p))
            job.announce()
        except Exception as error:
            refuse(p, afresh(as_named(error, "Starting the image prompt")))
            return
        setattr(p, JOB, job)

    def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        job = job_of(p)
        if job is not None:
            job.before_batch()

    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        job = job_of(p)
        if job is not None:
            job.wrap_sample()

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        job = job_of(p)
        if job is not None:
            job.before_sampling(kwargs.get("x"))

    def postprocess_image_after_composite(self, p: Any, pp: Any, *args: Any) -> None:
        job = job_of(p)
        if job is not None:
            job.after_picture(pp.image)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        job = job_of(p)
        if job is not None:
            job.finish(processed)
            job.close()


def extension_of(p: Any) -> JobExtension | None:
    """What this very object's job has of the ControlNet extension."""
    extension = getattr(p, EXTENSION, None)
    return extension if extension is not None and extension.owner is p else None


def close_extension(p: Any) -> None:
    """Where a job was never made of what was reserved for it."""
    extension = extension_of(p)
    if extension is not None:
        extension.close()
    setattr(p, EXTENSION, None)


def refuse(p: Any, error: IPAdapterError) -> None:
    """Let the sampling of `p` raise, the one place from which the hosts let an error through."""

    def sampling(*_args: Any) -> None:
        raise error from None

    p.sample = WrappedSample(p, sampling)


def job_of(p: Any) -> Job | None:
    """The job of this very object, not of one that it was copied from."""
    job = getattr(p, JOB, None)
    return job if job is not None and job.p is p else None


def read_request(p: Any, args: tuple[Any, ...]) -> Request | IPAdapterError:
    """The units that the page or a program sent, with the XYZ plot's values in place; or what is wrong with them."""
    try:
        return _plotted(parse_args(args, settings.max_units()), xyz.values_of(p))
    except Exception as error:
        return afresh(as_named(error, "Reading the IP-Adapter units"))


def _plotted(request: Request, changes: dict[tuple[int, str], Any]) -> Request:
    """The request with a plot's values in it. Raises: BadUnitError."""
    units = tuple(
        replace(unit, **{field: value for (number, field), value in changes.items() if number == position})
        for position, unit in enumerate(request.units, start=1)
    )
    plotted = replace(request, units=units)
    _require_running(plotted, changes)
    return plotted


def _require_running(request: Request, changes: dict[tuple[int, str], Any]) -> None:
    """Refuse a plot whose axis would change nothing. Raises: BadUnitError."""
    running = {number for number, _ in request.numbered}
    for number, field in changes:
        if number not in running:
            raise BadUnitError(
                f"The X/Y/Z plot changes {field} of IP-Adapter unit {number}, which does not run. Switch it and "
                "IP-Adapter on and give the unit a reference picture, or choose another axis."
            )


def on_cfg_denoiser(params: Any) -> None:
    """Tell the job whose denoiser this is that a step begins."""
    p = getattr(getattr(params, "denoiser", None), "p", None)
    job = job_of(p) if p is not None else None
    if job is not None:
        job.before_step(params)


def add_axes() -> None:
    """Offer every field of every unit to the X/Y/Z plot."""
    xyz.add_axes(settings.max_units(), lambda: [name for name, _ in page_services().adapter_names()])
