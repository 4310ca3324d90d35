"""How close is equal, in one place: the largest difference allowed against an independent implementation, float32."""

PROJECTION = 1e-5
VISION_ENCODER = 1e-5
PIXELS = 1e-6
WHOLE_UNET = 1e-4
RESIDUALS = 1e-4
CONTROLLED_UNET = 1e-3
