"""The extension's face in the WebUI: script, panel, API, settings."""
