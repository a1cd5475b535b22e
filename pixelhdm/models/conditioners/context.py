"""What a conditioner gives to a network."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from pixelhdm.models.routing import Route


class Context(NamedTuple):
    """An embedded condition.

    Attributes:
        tokens: T tokens for the joint sequence; T may be 0.
        mask: true where a token is valid, or None when all are (the fast path). Valid tokens come
            first.
        pooled: one vector per sample, added to the time embedding.
        route: the image tokens that go through all blocks; none leaves none out.
    """

    tokens: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"] | None
    pooled: Float[Tensor, "B D"]
    route: Route | None = None

    @property
    def num_valid(self) -> Tensor:
        """Number of valid tokens of each sample (B)."""
        if self.mask is None:
            return torch.full(
                self.pooled.shape[:1], self.tokens.shape[1], device=self.tokens.device
            )
        return self.mask.sum(dim=1)

    def cat(self, other: "Context") -> "Context":
        """Stack two contexts without routes along the batch; the shorter one is padded and
        masked.
        """
        length = max(self.tokens.shape[1], other.tokens.shape[1])
        parts = [part.padded(length) for part in (self, other)]
        masks = None
        if any(part.mask is not None for part in parts):
            masks = torch.cat([part.full_mask for part in parts])
        tokens = torch.cat([part.tokens for part in parts])
        return Context(tokens, masks, torch.cat([self.pooled, other.pooled]))

    def padded(self, length: int) -> "Context":
        """The same context with `length` tokens; added ones are zero and masked."""
        extra = length - self.tokens.shape[1]
        if extra == 0:
            return self
        tokens = F.pad(self.tokens, (0, 0, 0, extra))
        mask = F.pad(self.full_mask, (0, extra), value=False)
        return self._replace(tokens=tokens, mask=mask)

    @property
    def full_mask(self) -> Tensor:
        """The mask, written out where it is None (B T)."""
        if self.mask is not None:
            return self.mask
        return torch.ones(self.tokens.shape[:2], dtype=torch.bool, device=self.tokens.device)
