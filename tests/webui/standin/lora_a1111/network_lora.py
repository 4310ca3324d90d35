"""A LoRA of one linear layer, in the host's own form: two small linears on the CPU."""

from __future__ import annotations

import torch
from modules import devices
from network import Network, NetworkWeights


class ModuleType:
    """A kind of network; answers None for weights of another kind."""

    def create_module(self, net: Network, weights: NetworkWeights):
        """The module of a layer."""
        raise NotImplementedError


class ModuleTypeLora(ModuleType):
    """lora_up and lora_down."""

    def create_module(self, net: Network, weights: NetworkWeights):
        """The module of a layer, or None without both halves."""
        if not {"lora_up.weight", "lora_down.weight"} <= weights.w.keys():
            return None
        return NetworkModuleLora(net, weights)


class NetworkModuleLora:
    """strength * alpha / rank * up @ down, to be added to a layer's weight or to its output."""

    def __init__(self, net: Network, weights: NetworkWeights):
        self.network = net
        self.network_key, self.sd_key, self.sd_module = weights.network_key, weights.sd_key, weights.sd_module
        self.alpha = weights.w["alpha"].item() if "alpha" in weights.w else None
        self.up_model = self._linear(weights.w["lora_up.weight"])
        self.down_model = self._linear(weights.w["lora_down.weight"])
        self.dim = weights.w["lora_down.weight"].shape[0]

    def _linear(self, weight: torch.Tensor) -> torch.nn.Linear:
        if type(self.sd_module) is not torch.nn.Linear:
            raise AssertionError(f"Lora layer {self.network_key} matched a layer with unsupported type: "
                                 f"{type(self.sd_module).__name__}")  # fmt: skip
        module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        with torch.no_grad():
            module.weight.copy_(weight)
        module.to(device=devices.cpu, dtype=devices.dtype)
        return module.requires_grad_(False)

    def multiplier(self) -> float:
        """Text encoders have a strength of their own."""
        return self.network.te_multiplier if "transformer" in self.sd_key[:20] else self.network.unet_multiplier

    def calc_scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.dim

    def calc_updown(self, orig_weight: torch.Tensor):
        """What is added to the weight, and to the bias."""
        up, down = (m.weight.to(orig_weight.device) for m in (self.up_model, self.down_model))
        return up @ down * self.calc_scale() * self.multiplier(), None

    def forward(self, x, y):
        """The same on the layer's output."""
        return y + self.up_model(self.down_model(x)) * self.multiplier() * self.calc_scale()
