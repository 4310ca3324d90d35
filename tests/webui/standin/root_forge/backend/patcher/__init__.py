"""Patchers: nets with what is to be changed while they run."""
