"""Extra networks in prompts: `<lora:name:1>` is parsed, taken out, and handed to whoever registered for its kind."""

from __future__ import annotations

import re
from collections import defaultdict

from modules import errors

_NETWORK = re.compile(r"<(\w+):([^>]+)>")


class ExtraNetworkParams:
    """The parts of one `<kind:a:b>`."""

    def __init__(self, items=None):
        self.items = items or []
        self.positional = [item for item in self.items if "=" not in item]
        self.named = dict(item.split("=", 1) for item in self.items if "=" in item)


class ExtraNetwork:
    """One kind; registered ones are called in every job, with an empty list where the prompt names none."""

    def __init__(self, name: str):
        self.name = name

    def activate(self, p, params_list) -> None:
        """Put on what the prompt names."""
        raise NotImplementedError

    def deactivate(self, p) -> None:
        """The job is over."""
        raise NotImplementedError


extra_network_registry: dict[str, ExtraNetwork] = {}


def register_extra_network(extra_network: ExtraNetwork) -> None:
    """Enter a kind."""
    extra_network_registry[extra_network.name] = extra_network


def parse_prompts(prompts):
    """Plain prompts, and the networks of the first one by kind."""
    data: dict[str, list[ExtraNetworkParams]] = defaultdict(list)
    for kind, args in _NETWORK.findall(prompts[0] if prompts else ""):
        data[kind].append(ExtraNetworkParams(args.split(":")))
    return [_NETWORK.sub("", prompt) for prompt in prompts], data


def activate(p, extra_network_data) -> None:
    """Put the networks on and tell the scripts; called again in the hires pass. What one raises is swallowed."""
    for name, network in extra_network_registry.items():
        try:
            network.activate(p, extra_network_data.get(name, []))
        except Exception:
            errors.report(f"activating extra network {name}", exc_info=True)
    if p.scripts is not None:
        p.scripts.after_extra_networks_activate(
            p, batch_number=p.iteration, prompts=p.prompts, seeds=p.seeds, subseeds=p.subseeds,
            extra_network_data=extra_network_data)


def deactivate(p, extra_network_data) -> None:
    """The job is over."""
    del extra_network_data
    for network in extra_network_registry.values():
        network.deactivate(p)
