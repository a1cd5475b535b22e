"""Token routing: some of an image's tokens go around the blocks in the middle of a network."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pixelhdm.errors import UserError, check_at_least
from pixelhdm.models.attention import Mask
from pixelhdm.models.rope import Rotation


class Route(NamedTuple):
    """Which of an image's tokens go through all blocks.

    Attributes:
        kept: their numbers in each image, rising; as many in all of a batch.
    """

    kept: Int[Tensor, "B K"]

    def is_kept(self, num_tokens: int) -> Bool[Tensor, "B L"]:
        """Whether each of an image's tokens is kept."""
        none = torch.zeros(len(self.kept), num_tokens, dtype=torch.bool, device=self.kept.device)
        return none.scatter(1, self.kept, True)


class TokenRouting:
    """TREAD (arXiv:2501.04765): in training a share of each image's tokens, drawn anew each time,
    goes around the blocks `first` to `last` and comes back after them as it was before them.

    The blocks in between work on fewer tokens, and all tokens still reach the output and its loss.
    Validation and drawing use all tokens in all blocks; a network trained so answers weakly to the
    empty condition, see Guidance's `routed`. Context tokens are never left out.

    Args:
        share: of the image tokens that go around; above 0 and below 1.
        first: number, from 1, of the first block they go around; below 0 it counts from the last
            block, which is -1.
        last: number of the last block they go around, counted in the same way.
        min_tokens: images with fewer tokens are not routed: at 256 tokens it costs quality and
            saves little.
    """

    def __init__(self, share: float = 0.5, first: int = 2, last: int = -2, min_tokens: int = 1024):
        if not 0 < share < 1:
            raise UserError(
                f"routing.share must be above 0 and below 1, got {share}. Set routing to null to "
                "leave no tokens out."
            )
        check_at_least(1, min_tokens=min_tokens)
        self.share, self.first, self.last, self.min_tokens = share, first, last, min_tokens

    def blocks(self, depth: int) -> range:
        """Numbers, from 1, of the blocks that tokens go around in a network of `depth` blocks.

        Raises:
            UserError: there are none, or they lie outside.
        """
        first, last = (
            number + depth + 1 if number < 0 else number for number in (self.first, self.last)
        )
        if not 1 <= first <= last <= depth:
            raise UserError(
                f"routing.first … routing.last must be blocks of the network, rising, in 1 … "
                f"{depth} or -{depth} … -1, got {self.first} … {self.last}, which are "
                f"{first} … {last}. Route a deeper network, or set routing to null."
            )
        return range(first, last + 1)

    def num_kept(self, num_tokens: int) -> int | None:
        """How many of an image's tokens are kept; None where it is not routed."""
        num_out = int(self.share * num_tokens)
        return num_tokens - num_out if num_out and num_tokens >= self.min_tokens else None


Side = tuple[Rotation, Mask]


class Detour:
    """One pass of a batch's tokens through numbered blocks, with a route or without one, when it
    changes nothing. The image's tokens are the last of the sequence.

    Args:
        route: the tokens that are kept.
        blocks: numbers of the blocks that the others go around.
        num_tokens: tokens of an image.

    Attributes:
        waiting: all image tokens as they were before these blocks, while the kept ones are inside.
    """

    def __init__(self, route: Route | None, blocks: range, num_tokens: int):
        self.route, self.blocks, self.num_tokens = route, blocks, num_tokens
        self.waiting: Tensor | None = None

    @property
    def is_open(self) -> bool:
        """Whether some tokens are going around now."""
        return self.waiting is not None

    def sides(self, by: Rotation, mask_of: Callable[[int], Mask]) -> tuple[Side, Side]:
        """Rotation and mask for the blocks outside, and for those that tokens go around.

        Args:
            by: rotation of the whole sequence.
            mask_of: makes the mask of a sequence with this many image tokens.
        """
        outside = by, mask_of(self.num_tokens)
        if self.route is None:
            return outside, outside
        cos, sin = by
        narrow = self.narrowed(cos), self.narrowed(sin)
        return outside, (narrow, mask_of(self.route.kept.shape[1]))

    def enter(self, number: int, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B _ D"]:
        """The tokens that block `number` gets."""
        if self.route is None or number != self.blocks.start:
            return x
        self.waiting = x[:, -self.num_tokens :]
        return self.narrowed(x)

    def leave(self, number: int, x: Float[Tensor, "B _ D"]) -> Float[Tensor, "B S D"]:
        """The tokens after block `number`."""
        if not self.is_open or number != self.blocks[-1]:
            return x
        x, self.waiting = self.whole(x), None
        return x

    def whole(self, x: Float[Tensor, "B _ D"]) -> Float[Tensor, "B S D"]:
        """The sequence with the image tokens that go around, as they wait."""
        if not self.is_open:
            return x
        num_before = x.shape[1] - self.route.kept.shape[1]
        before, kept = x[:, :num_before], x[:, num_before:]
        dtype = torch.promote_types(x.dtype, self.waiting.dtype)
        index = repeat(self.route.kept, "b k -> b k d", d=x.shape[-1])
        image = self.waiting.to(dtype).scatter(1, index, kept.to(dtype))
        return torch.cat([before, image], dim=1)

    def narrowed(self, whole: Float[Tensor, "_ S d"]) -> Float[Tensor, "B _ d"]:
        """A sequence without the image tokens that go around."""
        kept, num_before = self.route.kept, whole.shape[1] - self.num_tokens
        before = torch.arange(num_before, device=kept.device).expand(len(kept), -1)
        index = torch.cat([before, num_before + kept], dim=1)
        whole = whole.expand(len(kept), -1, -1)
        return whole.gather(1, repeat(index, "b s -> b s d", d=whole.shape[-1]))
