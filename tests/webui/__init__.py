"""Tests of the WebUI side, on the stand-in host that lives in `standin/`."""
