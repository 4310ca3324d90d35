"""`python -m lib_ipadapter.library inspect [--json] PATH...`: what model files are, for users and support.

Runs on a bare Python. Exit status: 0 when every file was read, 1 when one could not be, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .detection import inspect_file
from .files import MODEL_EXTENSIONS, walk
from .headers import UNFINISHED_SUFFIXES
from .printable import shown_path
from .spec import FileReport

_WALKED = (*MODEL_EXTENSIONS, *UNFINISHED_SUFFIXES, ".onnx", ".zip", ".gguf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. Raises: SystemExit(2) for wrong usage."""
    parser = argparse.ArgumentParser("python -m lib_ipadapter.library", description="What model files are.")
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="say what each file is")
    inspect.add_argument("--json", action="store_true", help="print one JSON array")
    inspect.add_argument("paths", nargs="+", metavar="PATH", help="a file, or a folder to look through")
    options = parser.parse_args(arguments)
    try:
        return _inspect(options.paths, options.json)
    except BrokenPipeError:
        # Whoever read the output has closed it (`| head`). Python flushes stdout once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _inspect(paths: Sequence[str], as_json: bool) -> int:
    problems: list[str] = []
    reports: list[FileReport] = []
    for given in paths:
        before = len(problems)
        found = _reports(given, problems)
        if not found and len(problems) == before and not as_json:
            print(f"No model files in {shown_path(given)}.", file=sys.stderr)
        reports += found
    if as_json:
        print(json.dumps([_fields(report) for report in reports], indent=2))
    else:
        for report in reports:
            print(_text(report))
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.stdout.flush()
    return 1 if problems or any(report.status == "unreadable" for report in reports) else 0


def _reports(given: str, problems: list[str]) -> list[FileReport]:
    if not given:
        return [FileReport("", "unreadable", message="The path is empty; name a file or a folder.")]
    path = Path(given)
    if not os.path.isdir(given):  # unlike Path.is_dir it never raises
        return [replace(inspect_file(path), path=given)]
    found = walk(path, _WALKED, set(), problems)
    return [replace(inspect_file(one), path=os.path.join(given, one.relative_to(path))) for one in found]


def _fields(report: FileReport) -> dict[str, object]:
    return {
        "path": report.path,
        "status": report.status,
        "kind": report.kind,
        "variant": report.variant,
        "base": report.base,
        "tokens": report.tokens or None,
        "encoder": list(report.encoder),
        "decided_by": report.decided_by,
        "message": report.message,
    }


def _text(report: FileReport) -> str:
    facts = [report.kind, report.variant, report.base, f"{report.tokens} tokens" if report.tokens else ""]
    if report.encoder:
        facts.append("+".join(report.encoder))
    if report.decided_by:
        facts.append(f"by {report.decided_by}")
    known = ", ".join(fact for fact in facts if fact)
    first = f"{shown_path(report.path)}\n  {report.status}" + (f": {known}" if known else "")
    return f"{first}\n  {report.message}"


if __name__ == "__main__":
    # A console that cannot print a file's name must not hide what the file is.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(main())
