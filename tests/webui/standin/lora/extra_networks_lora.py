"""`<lora:name:strength>`: called in every job, with an empty list as well, before each pass's conditionings."""

from __future__ import annotations

import networks
from modules import extra_networks


class ExtraNetworkLora(extra_networks.ExtraNetwork):
    """Hands the prompt's names and strengths to `networks`."""

    def __init__(self):
        super().__init__("lora")
        self.errors: dict[str, int] = {}

    def activate(self, p, params_list) -> None:
        """Load what the prompt names; what was on before goes."""
        self.errors.clear()
        names = [params.positional[0] for params in params_list]
        text = [float(params.positional[1]) if len(params.positional) > 1 else 1.0 for params in params_list]
        unet = [float(params.positional[2]) if len(params.positional) > 2 else strength
                for params, strength in zip(params_list, text, strict=True)]
        networks.load_networks(names, text, unet, [None] * len(names))

    def deactivate(self, p) -> None:
        """What failed is a remark under the picture."""
        if self.errors:
            p.comment("Networks with errors: " + ", ".join(f"{name} ({n})" for name, n in self.errors.items()))
            self.errors.clear()
