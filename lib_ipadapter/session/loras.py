"""The LoRAs of a job's FaceID units: read when sampling starts, on in the passes of their units, gone afterwards.

`session.job` makes one `JobLoras` and asks it to read every unit's; `session.passes` puts them on. A LoRA is on for a
whole pass, whatever the unit's window. The same one is on once: at the larger strength where two units bring it, and
not at all where the prompt has it already.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..core.lora import FaceLora, read_adapter_lora, read_companion_lora, same_shapes
from ..hosts.loras import HostLora, PlacedLora
from ..library.companions import companion_of, file_sha256, find_companion, is_published, published_companions
from ..library.errors import AdapterFileError, IPAdapterError
from ..library.files import fingerprint
from ..library.headers import read_header
from ..library.spec import AdapterSpec
from .services import Services

logger = logging.getLogger("ipadapter")

TYPED = "from the prompt"
"""What the infotext says of a LoRA that was not put on, because the user had typed it."""


@dataclass(frozen=True)
class LoraRequest:
    """A unit's LoRA: of the adapter at `path`, which is described by `spec`, at `strength`; 0 is off."""

    number: int
    strength: float
    spec: AdapterSpec
    path: Path
    fingerprint: str


@dataclass(frozen=True)
class _Wanted:
    """A request whose LoRA was read."""

    request: LoraRequest
    lora: FaceLora

    @property
    def digest(self) -> str:
        return self.lora.digest


class PassLoras:
    """What is on in a pass; `close` takes it off."""

    def __init__(self, placed: Sequence[PlacedLora]) -> None:
        self._placed = tuple(placed)

    def failure(self) -> str:
        """After a call of the UNet: why the host did not apply a LoRA, or an empty string."""
        return next((failure for placed in self._placed if (failure := placed.failure())), "")

    def close(self, *, sampling: bool = False) -> None:
        """Take all off; `sampling` says that the pass goes on without them."""
        for placed in self._placed:
            placed.remove(sampling=sampling)


class JobLoras:
    """The LoRAs of one job; `warn` is told of a unit that has to run without."""

    def __init__(self, services: Services, warn: Callable[[str], None]) -> None:
        self._host = services.host
        self._cache = services.cache
        self._shelf = services.shelf
        self._stop_on_failure = services.stop_on_failure
        self._warn = warn
        self._read: dict[str, FaceLora] = {}
        self._wanted: dict[int, _Wanted] = {}
        self._built: dict[str, tuple[weakref.ref[nn.Module], HostLora]] = {}
        self._told: dict[int, list[str]] = {}
        self._was_on: dict[int, list[str]] = {}
        self._denied = False

    @property
    def told(self) -> dict[int, str]:
        """What the infotext says of each unit's LoRA, by the units' numbers: of every pass so far, or of the first."""
        said = self._was_on or self._told
        return {} if self._denied else {n: ", then ".join(dict.fromkeys(passes)) for n, passes in said.items()}

    def deny(self) -> None:
        """Say nothing any more: the host did not apply one."""
        self._denied = True

    def prepare(self, p: Any, request: LoraRequest, *, fits_now: bool) -> None:
        """Read a unit's LoRA and, where the unit fits the loaded checkpoint, bring it into the host's form.

        Where the user asked to go on after failures, the unit runs without it, and `warn` says so.
        Raises: AdapterFileError, WrongBaseError, UnsupportedHostStateError.
        """
        if request.strength == 0.0:
            return
        try:
            lora = self._lora_of(request)
            if lora is None:
                return
            wanted = _Wanted(request, lora)
            if fits_now and not self._is_typed(wanted):
                self._in_hosts_form(p, wanted)
        except IPAdapterError as error:
            if self._stop_on_failure():
                raise
            self._warn(f"Unit {request.number} runs without its LoRA. {error}")
            return
        self._wanted[request.number] = wanted

    def expect(self, numbers: Sequence[int]) -> None:
        """Say of these units what is going to be on in the first pass."""
        self._told = {number: [said] for number, said in self._statements(numbers).items()}

    def _statements(self, numbers: Sequence[int]) -> dict[int, str]:
        return {
            number: TYPED if self._is_typed(wanted) else f"{wanted.digest[:10]} at {strength:g}"
            for number, (wanted, strength) in self._strengths(numbers).items()
        }

    def put_on(self, p: Any, numbers: Sequence[int], *, sampling: bool) -> PassLoras:
        """Put on the LoRAs of these units, whose pass is about to start, or is under way (`sampling`).

        Raises: IPAdapterError; then none is on.
        """
        placed: list[PlacedLora] = []
        done: set[str] = set()
        for number, said in self._statements(numbers).items():
            self._was_on.setdefault(number, []).append(said)
        try:
            for wanted, strength in self._strengths(numbers).values():
                if wanted.digest in done or self._is_typed(wanted):
                    continue
                done.add(wanted.digest)
                placed.append(self._in_hosts_form(p, wanted).put(strength, sampling=sampling))
                logger.info("unit %d: LoRA %s on at %g", wanted.request.number, wanted.digest[:10], strength)
        except BaseException:
            PassLoras(placed).close(sampling=sampling)
            raise
        return PassLoras(placed)

    def finish(self) -> None:
        """The job is over: what it read is kept for the next one, unless the user keeps no results."""
        self._shelf.replace(self._read if self._cache.cap_bytes else {})
        self._built.clear()

    def _strengths(self, numbers: Sequence[int]) -> dict[int, tuple[_Wanted, float]]:
        """Each unit's LoRA and the largest strength that these units ask of the same one."""
        wanted = [self._wanted[number] for number in numbers if number in self._wanted]
        return {
            one.request.number: (one, max(other.request.strength for other in wanted if other.digest == one.digest))
            for one in wanted
        }

    # -- where a LoRA is

    def _lora_of(self, request: LoraRequest) -> FaceLora | None:
        """The LoRA inside the adapter, or its companion; None where there is none to be had."""
        spec, path = request.spec, request.path
        if spec.lora_rank:
            return self._once(request.fingerprint, lambda: read_adapter_lora(spec, path))
        published = published_companions(spec.kind, spec.base)
        if not published:
            return None
        folders = (*self._host.lora_folders(), path.parent, *self._host.folders(()))
        companion = find_companion(path, published, folders, self._sha256)
        if companion is not None:
            names = read_header(companion).tensors.keys()
            return self._once(fingerprint(companion), lambda: read_companion_lora(companion, names))
        names = " or ".join(known.name for known in published)
        where = folders[0]
        raise AdapterFileError(
            f"The LoRA of {path.name} is missing: it has none inside, and {names} is not in {where}. Put it there, or "
            "set the unit's LoRA strength to 0."
        )

    def _once(self, identity: str, read: Callable[[], FaceLora]) -> FaceLora:
        """Read a file once in this job, or not at all where the job before it did."""
        lora = self._read.get(identity) or self._shelf.get(identity) or read()
        self._read[identity] = lora
        return lora

    # -- the host's form

    def _in_hosts_form(self, p: Any, wanted: _Wanted) -> HostLora:
        """For the UNet that is loaded now; built once while that stays."""
        unet = self._host.unet(p)
        built = self._built.get(wanted.digest)
        if built is None or built[0]() is not unet:
            lora = self._host.build_lora(p, wanted.digest[:16], wanted.lora.weights)
            # Weak, so that a checkpoint that another one replaces is not kept in memory.
            built = self._built[wanted.digest] = (weakref.ref(unet), lora)
        return built[1]

    # -- what the prompt has

    def _is_typed(self, wanted: _Wanted) -> bool:
        """Whether the prompt put the same LoRA on: the published companion, or a file of equal weights."""
        return any(self._is_same(wanted, path) for path in self._host.typed_loras() if path.is_file())

    def _is_same(self, wanted: _Wanted, path: Path) -> bool:
        status = path.stat()
        key = ("lora typed", wanted.digest, str(path), status.st_size, status.st_mtime_ns)
        return self._cache.get_or_make(key, bool, lambda: (self._compare(wanted, path), 256))

    def _compare(self, wanted: _Wanted, path: Path) -> bool:
        """Read as little as can decide: lengths, a header, and the weights only where all shapes agree."""
        request = wanted.request
        companion = companion_of(request.path)
        if companion is not None and is_published(path, companion, self._sha256):
            return True
        try:
            tensors = read_header(path, lenient=True).tensors
            if not same_shapes(wanted.lora, {name: info.shape for name, info in tensors.items()}):
                return False
            return read_companion_lora(path, tensors.keys()).digest == wanted.digest
        except IPAdapterError:
            # Whatever it is, it is not the file that this adapter's LoRA lies in a second time.
            return False

    def _sha256(self, path: Path) -> str:
        status = path.stat()
        key = ("sha256", str(path), status.st_size, status.st_mtime_ns)
        return self._cache.get_or_make(key, str, lambda: (file_sha256(path), 256))
