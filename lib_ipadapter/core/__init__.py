"""Image attention itself: projectors, adapters, hooks. Torch only; knows no WebUI, no unit, no file names."""
