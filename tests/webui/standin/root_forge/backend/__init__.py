"""Forge's own package, as far as an extension touches it."""
