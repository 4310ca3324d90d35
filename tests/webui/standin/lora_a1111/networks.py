"""A1111's LoRAs: a list of what is on; a layer whose weights are of another list restores and merges in its forward.

The original weight is kept on the CPU from a layer's first merge on. Loading a checkpoint into a layer forgets both.
"""

from __future__ import annotations

import re

import network
import network_lora
import torch
from modules import extra_networks, script_callbacks, sd_models, shared
from network_lora import ModuleTypeLora

module_types = [ModuleTypeLora()]
loaded_networks: list[network.Network] = []
available_networks: dict[str, network.NetworkOnDisk] = {}
available_network_aliases: dict[str, network.NetworkOnDisk] = {}
networks_in_memory: dict[str, network.Network] = {}
extra_network_lora = None

_plain_forward = torch.nn.Linear.forward
_plain_load = torch.nn.Linear._load_from_state_dict


def convert_diffusers_name_to_compvis(key: str, is_sd2: bool) -> str:
    """The layer's name for a LoRA's, where it is one of diffusers' attentions; any other name as it is."""
    del is_sd2
    rules = ((r"lora_unet_down_blocks_(\d+)_attentions_(\d+)_(.+)", "input", 1),
             (r"lora_unet_up_blocks_(\d+)_attentions_(\d+)_(.+)", "output", 0))  # fmt: skip
    for pattern, side, first in rules:
        match = re.match(pattern, key)
        if match:
            return f"diffusion_model_{side}_blocks_{first + 3 * int(match[1]) + int(match[2])}_1_{match[3]}"
    match = re.match(r"lora_unet_mid_block_attentions_0_(.+)", key)
    return f"diffusion_model_middle_block_1_{match[1]}" if match else key


def assign_network_names_to_compvis_modules(sd_model) -> None:
    """Give every module of the model the name that LoRAs find it by."""
    mapping = {}
    for name, module in sd_model.model.named_modules():
        module.network_layer_name = name.replace(".", "_")
        mapping[module.network_layer_name] = module
    sd_model.network_layer_mapping = mapping


def list_available_networks() -> None:
    """Read the folder again."""
    available_networks.clear()
    available_network_aliases.clear()
    for entry in network.files_in(shared.cmd_opts.lora_dir):
        available_networks[entry.name] = available_network_aliases[entry.name] = entry


def load_network(name: str, network_on_disk) -> network.Network:
    """Read a file for the loaded model."""
    net = network.Network(name, network_on_disk)
    found: dict[str, network.NetworkWeights] = {}
    for full, weight in sd_models.read_state_dict(network_on_disk.filename).items():
        start, _, part = full.partition(".")
        key = convert_diffusers_name_to_compvis(start, False)
        module = shared.sd_model.network_layer_mapping.get(key)
        if module is not None:
            found.setdefault(key, network.NetworkWeights(full, key, {}, module)).w[part] = weight
    for key, weights in found.items():
        net.modules[key] = next(m for t in module_types if (m := t.create_module(net, weights)) is not None)
    return net


def load_networks(names, te_multipliers=None, unet_multipliers=None, dyn_dims=None) -> None:
    """Put these on and everything else off."""
    already = {net.name: net for net in loaded_networks if net.name in names}
    loaded_networks.clear()
    if any(name not in available_network_aliases for name in names):
        list_available_networks()
    for i, name in enumerate(names):
        entry = available_network_aliases.get(name)
        net = already.get(name)
        if net is None and entry is not None:
            net = load_network(name, entry)
        if net is None:
            continue
        net.mentioned_name = name
        net.network_on_disk.read_hash()
        net.te_multiplier = te_multipliers[i] if te_multipliers else 1.0
        net.unet_multiplier = unet_multipliers[i] if unet_multipliers else 1.0
        net.dyn_dim = dyn_dims[i] if dyn_dims else 1.0
        loaded_networks.append(net)


def network_restore_weights_from_backup(layer) -> None:
    """The layer as its checkpoint has it."""
    backup = getattr(layer, "network_weights_backup", None)
    if backup is not None:
        layer.weight.copy_(backup)


def network_apply_weights(layer) -> None:
    """Bring the layer's weight to what the list says; nothing where it is that already."""
    name = getattr(layer, "network_layer_name", None)
    if name is None:
        return
    current = getattr(layer, "network_current_names", ())
    wanted = tuple((net.name, net.te_multiplier, net.unet_multiplier, net.dyn_dim) for net in loaded_networks)
    if getattr(layer, "network_weights_backup", None) is None and wanted != ():
        if current != ():
            raise RuntimeError(f"{name} - no backup weights found and current weights are not unchanged")
        layer.network_weights_backup = layer.weight.to("cpu", copy=True)
    if current == wanted:
        return
    network_restore_weights_from_backup(layer)
    for net in loaded_networks:
        module = net.modules.get(name)
        if module is None:
            continue
        try:
            updown, _ = module.calc_updown(layer.weight)
            layer.weight.copy_((layer.weight.to(updown.dtype) + updown).to(layer.weight.dtype))
        except RuntimeError:
            extra_network_lora.errors[net.name] = extra_network_lora.errors.get(net.name, 0) + 1
    layer.network_current_names = wanted


def network_reset_cached_weight(layer) -> None:
    """The layer's weight is new, whatever was merged."""
    layer.network_current_names = ()
    layer.network_weights_backup = None


def _functional(layer, x):
    if not loaded_networks:
        return _plain_forward(layer, x)
    network_restore_weights_from_backup(layer)
    network_reset_cached_weight(layer)
    y = _plain_forward(layer, x)
    for net in loaded_networks:
        module = net.modules.get(getattr(layer, "network_layer_name", None))
        y = y if module is None else module.forward(x, y)
    return y


def network_Linear_forward(self, x):  # noqa: N802 (the host's own name)
    """What `torch.nn.Linear.forward` is while the extension is on."""
    if shared.opts.lora_functional:
        return _functional(self, x)
    with torch.no_grad():
        network_apply_weights(self)
    return _plain_forward(self, x)


def network_Linear_load_state_dict(self, *args, **kwargs):  # noqa: N802 (the host's own name)
    """What `torch.nn.Linear._load_from_state_dict` is while the extension is on."""
    network_reset_cached_weight(self)
    return _plain_load(self, *args, **kwargs)


def begin() -> None:
    """What the extension's script does each time that scripts are loaded."""
    global extra_network_lora  # noqa: PLW0603 (the host's own name)
    from extra_networks_lora import ExtraNetworkLora

    torch.nn.Linear.forward = network_Linear_forward
    torch.nn.Linear._load_from_state_dict = network_Linear_load_state_dict
    extra_network_lora = ExtraNetworkLora()
    extra_networks.register_extra_network(extra_network_lora)
    script_callbacks.on_model_loaded(assign_network_names_to_compvis_modules)
    list_available_networks()


__all__ = ["network", "network_lora"]
