"""Pictures to features: the CLIP vision tower and the squares it is fed."""
