"""Tensors out of an adapter file: safetensors or torch's zip pickle. Called by `core.adapter` and the encoders.

What to read was decided from the header by `library`; here the names are only looked up. Both containers are mapped
while they are read, so that unwanted tensors cost nothing, and every tensor is copied out before the mapping closes.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..library.errors import AdapterFileError

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_ERRORS = (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError)


def read_tensors(path: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Read the wanted tensors of one file, on the CPU, in the dtype they are stored in.

    `names` maps the name to answer with to the name in the file; nested pickles are flattened with dots. Each tensor
    owns its storage and no mapping of the file outlives the call: the file may be replaced or deleted afterwards.

    Raises: AdapterFileError when the file cannot be read or lacks a wanted tensor.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(_ZIP_MAGIC))
    except OSError as error:
        raise AdapterFileError(f"{path.name} cannot be opened ({error.strerror or error}): check the file.") from error
    if magic == _ZIP_MAGIC:
        return _read_pickle(path, names)
    return _read_safetensors(path, names)


class _TensorFile(Protocol):
    """What safetensors' untyped handle offers."""

    def keys(self) -> list[str]: ...

    def get_tensor(self, name: str) -> Tensor: ...


def _open_safetensors(path: Path) -> AbstractContextManager[_TensorFile]:
    return cast("AbstractContextManager[_TensorFile]", safe_open(str(path), framework="pt", device="cpu"))


def _read_safetensors(path: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    try:
        with _open_safetensors(path) as file:
            present = set(file.keys())
            for wanted, stored in names.items():
                if stored not in present:
                    raise _missing(path, stored)
                found[wanted] = _own(file.get_tensor(stored))
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise _unreadable(path, error) from error
    return found


def _read_pickle(path: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    # torch.serialization.load, because hosts replace torch.load by a checker that answers None for files it does not
    # know. weights_only executes nothing from the file, and mmap refuses everything that is not torch's zip format.
    try:
        content: object = torch.serialization.load(str(path), map_location="cpu", weights_only=True, mmap=True)
        stored_tensors = dict(_flatten("", content))
        found: dict[str, Tensor] = {}
        for wanted, stored in names.items():
            if stored not in stored_tensors:
                raise _missing(path, stored)
            found[wanted] = _own(stored_tensors[stored])
    except _PICKLE_ERRORS as error:
        raise _unreadable(path, error) from error
    return found


def _flatten(prefix: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor below a (nested) mapping with its dotted name."""
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, Mapping):
        for key, child in cast("Mapping[object, object]", value).items():
            yield from _flatten(f"{prefix}.{key}" if prefix else str(key), child)


def _own(tensor: Tensor) -> Tensor:
    """Copy a tensor into a storage of exactly its size (published files keep all tensors in one flat storage)."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _missing(path: Path, stored: str) -> AdapterFileError:
    return AdapterFileError(f"{path.name} has no tensor {stored}: it is incomplete or was replaced; re-download it.")


def _unreadable(path: Path, error: Exception) -> AdapterFileError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return AdapterFileError(f"{path.name} cannot be read ({reason}): re-download it.")
