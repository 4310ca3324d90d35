"""Routes under /ipadapter/v1, there when the WebUI runs with --api, behind --api-auth when that is set."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import Depends, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from ..units.schema import schema
from . import settings
from .face_route import faces
from .process import services
from .version import VERSION

PREFIX = "/ipadapter/v1"


def add_routes(demo: Any, app: Any) -> None:
    """Add the routes to the FastAPI application `app`; the host's callback hands over the page `demo` too."""
    from modules import shared

    if not getattr(shared.cmd_opts, "api", False) and not getattr(shared.cmd_opts, "nowebui", False):
        return
    guards = [Depends(_guard(shared.cmd_opts.api_auth))] if getattr(shared.cmd_opts, "api_auth", None) else []
    for name, answer in (("version", version), ("schema", unit_schema), ("models", models)):
        app.add_api_route(f"{PREFIX}/{name}", answer, methods=["GET"], dependencies=guards, tags=["IP-Adapter"])
    app.add_api_route(f"{PREFIX}/faces", faces, methods=["POST"], dependencies=guards, tags=["IP-Adapter"])


def version() -> dict[str, Any]:
    """The extension's version, the host it runs in, and why it cannot run there if it cannot."""
    host = services().host
    return {"version": VERSION, "host": host.name, "host_version": host.version(), "notice": host.too_old()}


def unit_schema() -> dict[str, Any]:
    """A unit's fields as JSON Schema, with the number of units a job may have."""
    return {**schema(), "maxUnits": settings.max_units()}


def models() -> dict[str, Any]:
    """Every model file in the searched folders and what it is, and what could not be searched."""
    return services().models.describe()


def _guard(credentials: str) -> Any:
    """A dependency that lets through who gives one of the `user:password` pairs (parted by commas)."""
    known = [tuple(pair.split(":", 1)) for pair in credentials.split(",")]

    def check(given: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008 - FastAPI's form
        pairs = [
            secrets.compare_digest(given.username.encode(), user.encode())
            and secrets.compare_digest(given.password.encode(), password.encode())
            for user, password in known
        ]
        if not any(pairs):
            raise HTTPException(401, "Incorrect username or password", {"WWW-Authenticate": "Basic"})

    return check
