"""A small imitation of the parts of the WebUI that an extension touches, for tests and for newcomers without one.

`root/` is put on `sys.path` and gives the host's own module names (`modules.scripts`, `modules.processing`, ...);
`root_forge/` adds Forge's (`backend`, `modules_forge`). Module names are global, so there is one host per process.
`host.StandIn` is the in-process form (tests), `__main__` the server.
"""

from __future__ import annotations

from tests.webui.standin.host import StandIn
from tests.webui.standin.launching import installed_flavour

__all__ = ["StandIn", "installed_flavour"]
