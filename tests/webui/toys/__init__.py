"""Small extensions that the stand-in host is tested with."""
