"""Condition on text as the published text-to-image models do: tokens with learned positions."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixelhdm.errors import UserError
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.conditioners.text_conditioner import NORM_EPS, TextConditioner
from pixelhdm.models.encoders.text_encoder import TextEncoder
from pixelhdm.models.layers import init_linear
from pixelhdm.models.linear import Linear
from pixelhdm.models.norm import RMSNorm


class PositionedTextConditioner(TextConditioner):
    """Captions as the hidden states of a frozen text encoder, each at a learned position.

    tokens_i = RMSNorm(W states_i + b) + position_i, pooled = 0: the network is steered by the time
    alone. So in PixelDiT-T2I (arXiv:2511.20645) and PixelGen-T2I (arXiv:2602.02493). The null
    condition is the encoder's states of the empty text.

    Args:
        dim: width of the context; the module gives the network's hidden_dim here.
        source: text encoder, see TextConditioner; empty takes google/gemma-2-2b-it in
            GemmaConditioner.
        width: width of the encoder's states; empty takes that of known encoders, or what the
            encoder's config.json says.
        layer: which hidden states: -1 the last after the final norm, -2 the layer before.
        template: how a caption becomes the encoder's text, see TextConditioner.
        max_length: most tokens of a caption, and number of positions; longer captions lose their
            end. Empty takes 300 in GemmaConditioner and 256 elsewhere.
        position_std: standard deviation that the positions start from: 0.02, PixelGen's;
            PixelDiT-T2I starts from 1.
        null_prob: probability of training a sample on the empty condition, for classifier-free
            guidance.
        pad_multiple: captions of different length are filled up to a multiple of it, in tokens.
        num_remembered: captions whose states stay in memory, see TextConditioner.
        instruction: text before every caption but the empty one, for the encoder alone: of its
            tokens the first and the last stay and count for max_length. PixelDiT-T2I and SANA
            (arXiv:2410.10629) ask for a richer prompt here. In the template's place.
        attends_padding: whether every text has max_length tokens, the states of padding tokens in
            the places that it leaves, and none is masked. So the published weights were trained.
            Without, padding is masked and changes nothing.
    """

    default_max_length: ClassVar[int] = 256

    def __init__(
        self,
        dim: int,
        source: str | None = None,
        width: int | None = None,
        layer: int = -1,
        template: str | None = None,
        max_length: int | None = None,
        position_std: float = 0.02,
        null_prob: float = 0.1,
        pad_multiple: int = 16,
        num_remembered: int = 0,
        instruction: str | None = None,
        attends_padding: bool = False,
    ):
        Conditioner.__init__(self, dim, null_prob)  # TextConditioner's has other layers
        if not position_std >= 0:
            raise UserError(f"position_std must be at least 0, got {position_std}.")
        length = self.default_max_length if max_length is None else max_length
        text = width, layer, template, length, instruction, attends_padding
        self.hold_encoder(TextEncoder(self.given(source), *text), pad_multiple, num_remembered)
        self.projection = Linear(self.encoder.width, dim)
        self.norm = RMSNorm(dim, eps=NORM_EPS)
        init_linear(self)
        self.position = nn.Parameter(torch.randn(length, dim) * position_std)
        self.null_token = None  # the null is a text

    @property
    def first_weight(self) -> Tensor:
        return self.projection.weight

    def embed(self, states: list[Float[Tensor, "_ C"]]) -> Context:
        """Project, normalise and place."""
        rows, count = self.batch(states)
        tokens = self.norm(self.projection(rows))
        tokens = tokens + self.position[: rows.shape[1]].to(tokens.dtype)
        pooled = tokens.new_zeros(len(states), self.dim)
        return self.masked(Context(tokens, None, pooled), states, count)


class GemmaConditioner(PositionedTextConditioner):
    """Captions as the hidden states of a frozen Gemma 2, each at a learned position: PixelDiT-T2I's
    conditioner (arXiv:2511.20645), see PositionedTextConditioner.

    The source is google/gemma-2-2b-it unless another is given. Its files are gated: accept Google's
    terms on the Hub and run hf auth login, or give a folder that has them.
    """

    default_source = "google/gemma-2-2b-it"
    default_max_length = 300
