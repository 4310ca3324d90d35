"""Row kinds of image tokens, shared by `core.adapter` and the attention."""

from __future__ import annotations

COND = 0
UNCOND = 1
