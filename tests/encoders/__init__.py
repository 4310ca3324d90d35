"""Tests of `lib_ipadapter.encoders`."""
