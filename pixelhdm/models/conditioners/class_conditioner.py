"""Condition on a class number."""

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor, nn

from pixelhdm.errors import UserError, check_at_least
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.models.conditioners.context import Context


class ClassConditioner(Conditioner):
    """Learned tokens and a learned pooled vector for each class, and for the null class.

    Several tokens per class in the joint sequence follow JiT's in-context classes
    (arXiv:2511.13720, section 4).

    Args:
        dim: width of the context; the module gives the network's hidden_dim here.
        num_classes: number of classes; the null class comes after them.
        num_tokens: context tokens per class; 0 leaves the pooled vector alone.
        null_prob: probability of training a sample on the null class, for classifier-free guidance.
    """

    def __init__(self, dim: int, num_classes: int, num_tokens: int = 8, null_prob: float = 0.1):
        super().__init__(dim, null_prob)
        check_at_least(1, num_classes=num_classes)
        check_at_least(0, num_tokens=num_tokens)
        self.num_classes, self.num_tokens = num_classes, num_tokens
        self.pooled = nn.Embedding(num_classes + 1, dim)
        self.tokens = nn.Embedding(num_classes + 1, num_tokens * dim) if num_tokens else None
        for table in filter(None, (self.pooled, self.tokens)):
            nn.init.normal_(table.weight, std=0.02)

    def forward(
        self, condition: Int[Tensor, "B"], null: Bool[Tensor, "B"] | None = None
    ) -> Context:
        """Embed class numbers; `check` them first where they come from a person or from files."""
        if null is not None:
            condition = torch.where(null.to(condition.device), self.num_classes, condition)
        return self.embed(condition)

    def empty(self, batch_size: int) -> Context:
        return self(torch.full((batch_size,), self.num_classes, device=self.pooled.weight.device))

    def check(self, condition: Int[Tensor, "B"] | list[str]) -> None:
        """Raise unless these are class numbers, and all of them lie in 0 … num_classes - 1."""
        if isinstance(condition, list):
            raise UserError(
                f"conditions must be class numbers for ClassConditioner, got captions such as "
                f"{condition[0]!r}. Set condition: class in the data's sources, and "
                "data.draw.classes in the place of data.prompts."
            )
        low, high = int(condition.min()), int(condition.max())
        if low < 0 or high >= self.num_classes:
            wrong = low if low < 0 else high
            raise UserError(
                f"class must lie in 0 … {self.num_classes - 1} (num_classes={self.num_classes}), "
                f"got {wrong}. "
                "Set num_classes to the number of classes in the data, or choose another class."
            )

    def embed(self, numbers: Int[Tensor, "B"]) -> Context:
        """Look up both tables."""
        pooled = self.pooled(numbers)
        if self.tokens is None:
            return Context(pooled.new_zeros(len(pooled), 0, self.dim), None, pooled)
        tokens = rearrange(self.tokens(numbers), "b (t d) -> b t d", d=self.dim)
        return Context(tokens, None, pooled)
