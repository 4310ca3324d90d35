"""Calls of the UNet with guidance."""
