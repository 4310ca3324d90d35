"""Choices of the page's top row that other parts read."""

from __future__ import annotations

dynamic_args: dict[str, object] = {"online_lora": False}
