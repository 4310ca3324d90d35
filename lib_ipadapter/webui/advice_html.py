"""The HTML of a unit's advice: buttons that wait, hidden, until what the host's fields hold differs from them.

`events` draws with it; `javascript/ipadapter_advice.js` shows the buttons and does what a click asks.
"""

from __future__ import annotations

import json
from html import escape

from ..session.advice import Advice


def advice_html(advice: Advice) -> str:
    """The chips of a unit; nothing where there is no advice."""
    chips = [
        _chip(one.label, f"Set {one.name} to {one.value:g}. {one.why}", "range", one._asdict())
        for one in advice.ranges
    ]
    if advice.sizes is not None:
        chips.append(_chip("", advice.sizes.why, "size", advice.sizes._asdict()))
    chips += [
        f'<span class="ipadapter-chip ipadapter-chip-plain" title="{escape(why)}">{escape(label)}</span>'
        for label, why in advice.plain
    ]
    if not chips:
        return ""
    return (
        f'<div class="ipadapter-advice" role="group" aria-label="Advice for InstantID" '
        f'data-fast="{escape(json.dumps(dict(advice.fast)))}"><span class="ipadapter-advice-name">InstantID works best '
        f'with</span>{"".join(chips)}</div>'
    )


def _chip(label: str, title: str, kind: str, rule: dict[str, object]) -> str:
    """A button that is hidden until it applies; the script gives a size's its label."""
    return (
        f'<button type="button" class="ipadapter-chip" data-{kind}="{escape(json.dumps(rule))}" '
        f'title="{escape(title)}" aria-label="{escape(title)}" hidden>{escape(label)}</button>'
    )
