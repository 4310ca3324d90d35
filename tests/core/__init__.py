"""Tests of the image attention: projectors, adapters, hooks."""
