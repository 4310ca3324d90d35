"""Tests of the extension; they mirror `lib_ipadapter`."""
