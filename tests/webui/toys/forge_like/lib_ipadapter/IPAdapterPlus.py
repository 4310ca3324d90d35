"""A module of the namesake package, which has no `__init__.py`."""

WHOSE = "forge-like"
