"""Extra networks in prompts: `<lora:name:1>` is parsed and taken out; no network is built in."""

from __future__ import annotations

import re
from collections import defaultdict

_NETWORK = re.compile(r"<(\w+):([^>]+)>")


class ExtraNetworkParams:
    """The parts of one `<kind:a:b>`."""

    def __init__(self, items=None):
        self.items = items or []
        self.positional = [item for item in self.items if "=" not in item]
        self.named = dict(item.split("=", 1) for item in self.items if "=" in item)


def parse_prompts(prompts):
    """Plain prompts, and the networks of the first one by kind."""
    data: dict[str, list[ExtraNetworkParams]] = defaultdict(list)
    for kind, args in _NETWORK.findall(prompts[0] if prompts else ""):
        data[kind].append(ExtraNetworkParams(args.split(":")))
    return [_NETWORK.sub("", prompt) for prompt in prompts], data


def activate(p, extra_network_data) -> None:
    """Tell the scripts that the networks are on; called again in the hires pass."""
    if p.scripts is not None:
        p.scripts.after_extra_networks_activate(
            p, batch_number=p.iteration, prompts=p.prompts, seeds=p.seeds, subseeds=p.subseeds,
            extra_network_data=extra_network_data)


def deactivate(p, extra_network_data) -> None:
    """Nothing is built in, so nothing has to be taken off."""
