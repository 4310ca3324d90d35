"""The host's own modules, imitated: same names and rules, own code."""
