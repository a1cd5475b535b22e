"""PixelHDM: pixel-space image diffusion with PyTorch Lightning.

Axis names used in every shape annotation:

    B batch            T context tokens        L patches          S = T + L
    H W image pixels   h w patch grid          p patch side       P = p * p
    D hidden width     d small channel (pixel or head width)      c colour (3)

Images are `B H W 3`, float, in [-1, 1]. Time t runs from 0 (noise) to 1 (clean image).
"""

import os

# Before torch is imported: a busy core must not stall the others, for spinning costs up to 30x.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
