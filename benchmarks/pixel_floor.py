"""The fewest bytes that the pixel path's element-wise work can move.

Between two matrix products whose sums are long (selective.MIN_PRODUCTS) a block's pixels need one
pass, which reads its inputs once, keeps everything else in registers, norms, modulation, residual
and the products inside a pixel included, and writes its outputs once. x is what a block gets, m
what its modulation is made of (factored: one tensor like x; full: the vectors themselves), h what
enters the attention, a what comes out of it, d before a name its gradient. In tensors like x:

    before the attention    reads x, m           writes h
    after it                reads x, a, m        writes x
    backward, after it      reads dx, x, a, m    writes da, dx, dm
    backward, before it     reads dh, dx, x, m   writes dx, dm     (factored: dm is read too)

With post_modulation nothing is modulated before the attention. The embedding, and the last norm
with the output layer, are a pass each. Inside the attention, in tensors of its width: the norms
before and after it and the gate read and write one each, the norm and rotation of queries and keys
those; backward each reads one more. What the long products and the attention kernel themselves
read and write is theirs, not in here.
"""

from torch import nn

from pixelhdm.models.attention import Attention
from pixelhdm.models.blocks import PixelBlock, PixelModulator

COLOURS = 3


def vectors(modulator: PixelModulator, num: int) -> int:
    """Tensors like x that `num` vectors of a modulation are read from."""
    return min(num, 1) if modulator.factored else num


def pixel_passes(block: PixelBlock) -> int:
    """Tensors like x that the passes over a block's pixels move, forward and backward."""
    before = 0 if block.post_modulation else 2
    after = vectors(block.modulator, block.modulator.num - before)
    num = vectors(block.modulator, before)
    again = num if block.modulator.factored else 0  # dm of both passes is one tensor
    return (2 + num) + (3 + after) + (5 + 2 * after) + (4 + 2 * num + again)


def token_passes(attention: Attention, normed: bool) -> float:
    """Tensors of its width that the passes around and inside an attention move, both ways."""
    turned = attention.num_heads + attention.num_kv_heads
    passes = turned / attention.num_heads + (2 if normed else 0)
    passes += 0 if attention.gate is None else 1
    return passes * (2 + 3)


def floor_bytes(blocks: list[PixelBlock], num_pixels: int, item: int) -> float:
    """Bytes of the path's element-wise work, forward and backward.

    Args:
        blocks: the path's blocks.
        num_pixels: of all images.
        item: bytes of a number.
    """
    dim = blocks[0].norm1.weight.numel()
    total = 5 * dim + 4 * COLOURS  # of a pixel: embedding and output layer
    for block in blocks:
        compaction = block.compaction
        area = compaction.compress.in_features // dim
        attention = compaction.attention
        width = attention.num_heads * attention.head_dim / area
        normed = not isinstance(compaction.norm, nn.Identity)
        total += pixel_passes(block) * dim + token_passes(attention, normed) * width
    return total * num_pixels * item
