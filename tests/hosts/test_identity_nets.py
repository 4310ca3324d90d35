"""A net in the hands of a memory manager: what reForge's, which neither stand-in has, asks for."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from lib_ipadapter.core.identity_net import IdentityNet
from lib_ipadapter.hosts import identity_nets
from lib_ipadapter.library.controlnets import read_controlnet
from tests.core.random_controlnets import SD15, as_published, narrow, random_controlnet, save_controlnet

CPU = torch.device("cpu")


class Patcher:
    """reForge's ModelPatcher as far as it is used, without current_device (ldm_patched model_patcher.py)."""

    def __init__(
        self, model: Any, load_device: Any, offload_device: Any, size: int = 0, weight_inplace_update: bool = False
    ) -> None:
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.detached = False
        self.extra_model_patchers_during_sampling: list[Any] = []

    def clone(self) -> Patcher:
        clone = Patcher(self.model, self.load_device, self.offload_device)
        clone.extra_model_patchers_during_sampling = self.extra_model_patchers_during_sampling.copy()
        return clone

    def add_extra_model_patcher_during_sampling(self, patcher: Any) -> None:
        self.extra_model_patchers_during_sampling.append(patcher)

    def is_clone(self, other: Patcher) -> bool:
        return self.model is other.model

    def detach(self) -> None:
        self.detached = True


class Loaded:
    """reForge's LoadedModel as far as it is used (model_management.py)."""

    def __init__(self, model: Patcher | None) -> None:
        self.model = model

    def model_unload(self) -> None:
        assert self.model is not None
        self.model.detach()


@pytest.fixture
def reforge(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A memory manager without `unload_model_clones`, and the module of its patchers."""
    for name in ("ldm_patched", "ldm_patched.modules", "ldm_patched.modules.model_patcher"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["ldm_patched.modules.model_patcher"].ModelPatcher = Patcher  # type: ignore[attr-defined]
    for name in ("backend", "backend.operations", "backend.patcher", "backend.patcher.base"):
        monkeypatch.setitem(sys.modules, name, None)  # not there, whatever the environment's stand-in has loaded
    return SimpleNamespace(get_torch_device=lambda: CPU, current_loaded_models=[])


def test_reforge_takes_the_net_along_and_forgets_it(reforge: SimpleNamespace, tmp_path: Path) -> None:
    spec = narrow(SD15)
    path = save_controlnet(tmp_path / "net.safetensors", as_published(spec, random_controlnet(spec)))
    unet = Patcher(None, CPU, CPU)
    objects = SimpleNamespace(unet=unet)
    described = replace(read_controlnet(path), heads=spec.heads)
    held = identity_nets.build_managed(
        SimpleNamespace(forge_objects=objects), described, path, torch.float32, reforge
    )
    assert isinstance(held.net, IdentityNet)
    held.enter(sampling=False)
    (patcher,) = objects.unet.extra_model_patchers_during_sampling
    assert patcher.model is held.net
    # What the sampler loads, beside a model whose patcher has died and one that stays.
    other = Patcher(torch.nn.Identity(), CPU, CPU)
    reforge.current_loaded_models += map(Loaded, (other, patcher, None))
    held.leave()
    assert objects.unet is unet
    assert not unet.extra_model_patchers_during_sampling
    held.release()
    assert [one.model for one in reforge.current_loaded_models] == [other, None]
    assert (patcher.detached, other.detached) == (True, False)
