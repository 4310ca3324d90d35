"""The extension's version, and whether the files on disk are newer than what this process imported."""

VERSION = "0.1.0"
_installed = VERSION


def note_installed(version: str) -> None:
    """Called by `scripts/ipadapter.py`, which the host runs again at UI reload, with the version it was written for."""
    global _installed  # noqa: PLW0603 - the one fact that a reload brings
    _installed = version


def installed_notice() -> str:
    """What to tell the user when the extension was updated while the WebUI ran, or an empty string."""
    if _installed == VERSION:
        return ""
    return (
        f"IP-Adapter was updated from {VERSION} to {_installed} while the WebUI ran: restart the WebUI "
        "(reloading the UI is not enough)."
    )
