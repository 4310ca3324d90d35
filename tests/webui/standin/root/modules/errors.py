"""The host's error log: an exception in a script is reported here and swallowed."""

from __future__ import annotations

import sys
import traceback

exception_records: list[str] = []


def report(message: str, *, exc_info: bool = False) -> None:
    """Print `message`, with the traceback under it, and keep it for tests."""
    text = message
    if exc_info:
        text += "\n" + traceback.format_exc()
    exception_records.append(text)
    print("*** " + text, file=sys.stderr)


def display(error: Exception, task: str) -> None:
    """Report an exception that is at hand rather than being handled."""
    report(f"{task}: {type(error).__name__}: {error}")


def run(code, task: str) -> None:
    """Call `code()`, reporting what it raises."""
    try:
        code()
    except Exception as error:
        display(error, task)
