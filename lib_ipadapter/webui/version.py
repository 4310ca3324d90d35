"""The extension's version: the API reports it, and the script compares it with its own after a UI reload."""

VERSION = "0.1.0"
