"""The host's HTTP interface."""
