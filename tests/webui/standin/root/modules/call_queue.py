"""One job at a time, and a job's exception as a line on the page."""

from __future__ import annotations

import html
import time
from functools import wraps
from threading import Lock

from modules import errors, shared

queue_lock = Lock()


def wrap_gradio_gpu_call(func, extra_outputs=None):
    """Run a page's job under the lock; an exception becomes `ClassName: text` in the last output."""

    @wraps(func)
    def call(*args, **kwargs):
        started = time.perf_counter()
        try:
            with queue_lock:
                shared.state.begin(job="page")
                try:
                    result = list(func(*args, **kwargs))
                finally:
                    shared.state.end()
        except Exception as error:
            errors.report("Error completing request", exc_info=True)
            message = html.escape(f"{type(error).__name__}: {error}")
            result = [*(extra_outputs or [None, ""]), f"<div class='error'>{message}</div>"]
        elapsed = time.perf_counter() - started
        result[-1] += f"<div class='performance'><p class='time'>Time taken: {elapsed:.1f} sec.</p></div>"
        return tuple(result)

    return call
