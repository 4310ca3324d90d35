"""The WebUIs behind one interface; with `webui`, the only place that imports the host's own modules."""
