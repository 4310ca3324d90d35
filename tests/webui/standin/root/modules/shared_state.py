"""The running job's state: interrupt, skip and progress."""

from __future__ import annotations


class State:
    """Flags that a button or a route sets and the sampling loop reads."""

    def __init__(self) -> None:
        self.server_command = None
        self.end()

    def begin(self, job: str = "(unknown)") -> None:
        """A job starts."""
        self.end()
        self.job = job
        self.job_count = -1

    def end(self) -> None:
        """No job runs."""
        self.job = ""
        self.job_no = 0
        self.job_count = 0
        self.job_timestamp = "0"
        self.sampling_step = 0
        self.sampling_steps = 0
        self.skipped = False
        self.interrupted = False
        self.stopping_generation = False
        self.textinfo = None
        self.processing_has_refined_job_count = False

    def interrupt(self) -> None:
        """Stop the job before its next step."""
        self.interrupted = True

    def skip(self) -> None:
        """Leave the current batch."""
        self.skipped = True

    def nextjob(self) -> None:
        """One of the job's passes is done."""
        self.job_no += 1

    def dict(self):
        """What `/sdapi/v1/progress` shows."""
        names = ("skipped", "interrupted", "job", "job_count", "job_no", "sampling_step", "sampling_steps")
        return {name: getattr(self, name) for name in names}
