"""Forge's LoRAs: the prompt's are patches of a clone of the UNet's patcher, which every later reset brings back."""

from __future__ import annotations

import network
from backend.args import dynamic_args
from backend.patcher.lora import load_lora, model_lora_keys_unet
from modules import extra_networks, sd_models, shared

loaded_networks: list[network.Network] = []
available_networks: dict[str, network.NetworkOnDisk] = {}
available_network_aliases: dict[str, network.NetworkOnDisk] = {}
extra_network_lora = None


def list_available_networks() -> None:
    """Read the folder again."""
    available_networks.clear()
    available_network_aliases.clear()
    for entry in network.files_in(shared.cmd_opts.lora_dir):
        available_networks[entry.name] = available_network_aliases[entry.name] = entry


def load_networks(names, te_multipliers=None, unet_multipliers=None, dyn_dims=None) -> None:
    """Put these on and everything else off; nothing is done when they are the model's already."""
    del te_multipliers, dyn_dims
    model = sd_models.model_data.get_sd_model()
    loaded_networks.clear()
    if any(name not in available_network_aliases for name in names):
        list_available_networks()
    targets = []
    for name, strength in zip(names, unet_multipliers or [], strict=True):
        entry = available_network_aliases.get(name)
        if entry is None:
            continue
        net = network.Network(name, entry)  # strengths are not entered here, as on Forge
        net.mentioned_name = name
        entry.read_hash()
        loaded_networks.append(net)
        targets.append([entry.filename, strength, dynamic_args.get("online_lora", False)])
    if model.current_lora_hash == str(targets):
        return
    model.current_lora_hash = str(targets)
    model.forge_objects.unet = model.forge_objects_original.unet
    for filename, strength, _ in targets:
        patches, _ = load_lora(sd_models.read_state_dict(filename), model_lora_keys_unet(
            model.forge_objects.unet.model, {}))  # fmt: skip
        unet = model.forge_objects.unet.clone()
        unet.add_patches(filename=filename, patches=patches, strength_patch=strength, online_mode=False)
        model.forge_objects.unet = unet
    model.forge_objects_after_applying_lora = model.forge_objects.shallow_copy()


def begin() -> None:
    """What the extension's script does each time that scripts are loaded."""
    global extra_network_lora  # noqa: PLW0603 (the host's own name)
    from extra_networks_lora import ExtraNetworkLora

    extra_network_lora = ExtraNetworkLora()
    extra_networks.register_extra_network(extra_network_lora)
    list_available_networks()
