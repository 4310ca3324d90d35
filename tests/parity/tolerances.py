"""How close is equal, in one place: the largest difference allowed against an independent implementation, float32."""

PROJECTION = 1e-5
VISION_ENCODER = 1e-5
PIXELS = 1e-6
WHOLE_UNET = 1e-4
FACE_PIXELS = 1e-3
"""Boxes and keypoints, in pixels of the picture."""
FACE_COSINE = 0.9999
"""At least."""
RESIDUALS = 1e-4
CONTROLLED_UNET = 1e-3
