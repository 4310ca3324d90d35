"""What the toy extension saw, and what it is told to do wrong; shared between its script and the tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Record:
    """Cleared before each test by the `record` fixture."""

    calls: list[str] = field(default_factory=list)
    """Names of the callbacks in the order they came."""
    args: list[tuple[Any, ...]] = field(default_factory=list)
    """The arguments of each `process`."""
    steps: list[Any] = field(default_factory=list)
    """Per denoiser step: step, total_steps, sigma, sampling_step and the shapes of the conditionings."""
    unet_calls: list[tuple[int, int, Any]] = field(default_factory=list)
    """Per UNet call: rows, context length, `cond_or_uncond` (None on A1111)."""
    models: list[int] = field(default_factory=list)
    """Ids of the UNets that `process_before_every_sampling` saw."""
    pbes: list[dict[str, Any]] = field(default_factory=list)
    """Keyword arguments of each `process_before_every_sampling`."""
    ui_calls: int = 0
    fail_in: str = ""
    """Callback to raise in."""
    sample_error: Exception | None = None
    """Raised from the wrapped `p.sample`."""
    interrupt_at: int = -1
    """Denoiser step to interrupt at."""
    comments: list[str] = field(default_factory=list)
    infotext: dict[str, Any] = field(default_factory=dict)
    """Goes into `p.extra_generation_params`."""
    preloaded: list[Any] = field(default_factory=list)
    basedirs: list[str] = field(default_factory=list)
    sys_paths: list[list[str]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    """Callbacks that belong to no job: app_started, model_loaded, script_unloaded..."""


record = Record()


def clear() -> None:
    """Forget the job; what happened while loading stays."""
    fresh = Record(preloaded=record.preloaded, basedirs=record.basedirs, sys_paths=record.sys_paths,
                   ui_calls=record.ui_calls, events=record.events)
    record.__dict__.update(fresh.__dict__)
