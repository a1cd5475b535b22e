"""Condition on text: the states of a frozen language model, normalised and projected."""

from collections import ChainMap
from typing import ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from pixelhdm.errors import UserError, check_at_least, check_one_of
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.encoders.text_encoder import TextEncoder
from pixelhdm.models.layers import init_linear
from pixelhdm.models.linear import Linear
from pixelhdm.models.norm import RMSNorm

Pooling = Literal["last", "mean"]
Null = Literal["learned", "empty"]
Text = str | Float[Tensor, "_ C"]
NORM_EPS = 1e-6
START_STD = 0.02


class TextConditioner(Conditioner):
    """Captions as the hidden states of a frozen text encoder, one context token each.

    tokens = Linear(RMSNorm(states)), pooled = Linear(RMSNorm(last or mean state)). Both are trained
    and always there, so that an encoder of any width serves a network of any width. A batch has as
    many tokens as its longest caption; what is filled up is masked and changes nothing. Where all
    captions are equally long there is no mask, and attention takes its fastest way.

    Args:
        dim: width of the context; the module gives the network's hidden_dim here.
        source: text encoder of the library transformers: Hub name; a folder with config.json,
            tokenizer and weights; or package:NAME/FOLDER, a folder inside an installed Python
            package. Empty takes Qwen/Qwen3-0.6B in Qwen3Conditioner.
        width: width of the encoder's states; empty takes that of Qwen3's sizes, or what the
            encoder's config.json says.
        layer: which hidden states: -1 the last after the final norm, -2 the layer before.
        template: how a caption becomes the encoder's text: empty for the caption itself, chat for
            the tokenizer's chat template, or a text with {} in the caption's place.
        max_length: most tokens of a caption, template included; longer ones lose their end.
        pooling: what steers the whole picture: last, the state of the last token, or mean, that of
            all.
        null: the empty condition: learned (one token and one pooled vector), or empty, the
            encoder's states of the empty text.
        null_prob: probability of training a sample on the empty condition, for classifier-free
            guidance.
        pad_multiple: captions of different length are filled up to a multiple of it, in tokens.
        num_remembered: captions whose states stay in memory once they were encoded, each alone, for
            sets of so few: a caption of 70 tokens takes 140 KB with Qwen3-0.6B. Larger sets are
            encoded before the training by main.py cache-text.

    Attributes:
        encoder: the text encoder; read when a text is first encoded, never saved.
    """

    default_source: ClassVar[str | None] = None

    def __init__(
        self,
        dim: int,
        source: str | None = None,
        width: int | None = None,
        layer: int = -1,
        template: str | None = None,
        max_length: int = 256,
        pooling: Pooling = "last",
        null: Null = "learned",
        null_prob: float = 0.1,
        pad_multiple: int = 16,
        num_remembered: int = 0,
    ):
        super().__init__(dim, null_prob)
        check_one_of(Pooling, pooling=pooling)
        check_one_of(Null, null=null)
        self.pooling = pooling
        self.hold_encoder(
            TextEncoder(self.given(source), width, layer, template, max_length),
            pad_multiple,
            num_remembered,
        )
        self.token_norm = RMSNorm(self.encoder.width, eps=NORM_EPS)
        self.token_projection = Linear(self.encoder.width, dim)
        self.pooled_norm = RMSNorm(self.encoder.width, eps=NORM_EPS)
        self.pooled_projection = Linear(self.encoder.width, dim)
        init_linear(self)
        self.null_token = self.null_pooled = None
        if null == "learned":
            self.null_token = nn.Parameter(torch.randn(dim) * START_STD)
            self.null_pooled = nn.Parameter(torch.randn(dim) * START_STD)

    def given(self, source: str | None) -> str:
        """A source, or the class's own in the place of none."""
        source = self.default_source if source is None else source
        if source is None:
            raise UserError(
                f"source of {type(self).__name__} must be a text encoder, got none. Set "
                "model.conditioner.source to a folder or a name of the Hub, or use a class that "
                "has one, such as Qwen3Conditioner."
            )
        return source

    def hold_encoder(self, encoder: TextEncoder, pad_multiple: int, num_remembered: int) -> None:
        """Take an encoder, and how its states are batched and remembered."""
        check_at_least(1, pad_multiple=pad_multiple)
        check_at_least(0, num_remembered=num_remembered)
        self.encoder, self.pad_multiple = encoder, pad_multiple
        self.num_remembered = num_remembered

    @property
    def first_weight(self) -> Tensor:
        """The weight that states meet first, whose device and type they get."""
        return self.token_projection.weight

    @property
    def known(self) -> dict[str, Float[Tensor, "_ C"]]:
        """States of texts for which no encoder is needed, on the CPU."""
        return self.encoder.known

    def check(self, condition: Tensor | list[Text]) -> None:
        """Raise unless these are captions."""
        if isinstance(condition, Tensor):
            raise UserError(
                f"conditions must be captions for {type(self).__name__}, got class numbers such as "
                f"{int(condition[0])}. Set condition: caption in the data's sources, and "
                "data.prompts in the place of data.draw.classes."
            )

    def forward(self, condition: list[Text], null: Bool[Tensor, "B"] | None = None) -> Context:
        """Embed captions, or states that the encoder gave for them before; "" is the null.

        All parameters take part in every batch, as DDP asks for.
        """
        dropped = [False] * len(condition) if null is None else null.tolist()
        texts = ["" if drop else text for text, drop in zip(condition, dropped, strict=True)]
        if self.null_token is None:
            return self.embed(self.states(texts))
        given = [text for text in texts if not is_empty(text)]
        states = self.states(given) or [self.null_token.new_zeros(1, self.encoder.width)]
        return self.placed(self.embed(states), [is_empty(text) for text in texts])

    def empty(self, batch_size: int) -> Context:
        return self([""] * batch_size)

    def states(self, texts: list[Text]) -> list[Float[Tensor, "_ C"]]:
        """The states of each text; equal ones are encoded once."""
        captions = [text for text in texts if isinstance(text, str)]
        new = list(dict.fromkeys(text for text in captions if text not in self.known))
        device = self.first_weight.device
        # What is remembered, and so what is not, must not depend on a batch: each is encoded alone.
        size = 1 if self.num_remembered else max(1, len(new))
        encoded = {}
        for start in range(0, len(new), size):
            part = new[start : start + size]
            encoded |= zip(part, self.encoder.encode(part, device), strict=True)
        for text in new[: max(0, self.num_remembered - len(self.known))]:
            self.known[text] = encoded[text].cpu()
        found = ChainMap(encoded, self.known)
        return [found[text] if isinstance(text, str) else text for text in texts]

    def embed(self, states: list[Float[Tensor, "_ C"]]) -> Context:
        """Normalise, project and pool."""
        rows, count = self.batch(states)
        tokens = self.token_projection(self.token_norm(rows))
        if self.pooling == "last":
            pooled = rows[torch.arange(len(rows), device=rows.device), count - 1]
        else:
            pooled = rows.sum(dim=1) / rearrange(count, "b -> b 1")  # padding is zero
        pooled = self.pooled_projection(self.pooled_norm(pooled))
        return self.masked(Context(tokens, None, pooled), states, count)

    def batch(
        self, states: list[Float[Tensor, "_ C"]]
    ) -> tuple[Float[Tensor, "B T C"], Int[Tensor, "B"]]:
        """States of texts in one tensor, as long as the longest and zero behind the others, and
        the length of each.
        """
        weight = self.first_weight
        if len({own.device for own in states}) > 1:
            states = [own.to(weight.device) for own in states]
        # One copy to the device, whatever the number of captions.
        rows = pad_sequence(states, batch_first=True).to(weight.device, non_blocking=True)
        count = torch.tensor(list(map(len, states))).to(weight.device, non_blocking=True)
        return rows.to(weight.dtype), count

    def masked(
        self, context: Context, states: list[Float[Tensor, "_ C"]], count: Int[Tensor, "B"]
    ) -> Context:
        """The context of a batch with the padding masked, where there is any."""
        lengths = set(map(len, states))
        if len(lengths) == 1:
            return context
        place = torch.arange(max(lengths), device=count.device)
        valid = place < rearrange(count, "b -> b 1")
        return context._replace(mask=valid).padded(self.rounded(max(lengths)))

    def rounded(self, length: int) -> int:
        """A number of tokens, rounded up to the multiple."""
        return -(-length // self.pad_multiple) * self.pad_multiple

    def placed(self, given: Context, is_null: list[bool]) -> Context:
        """The contexts that were given in their places, the learned null in the others.

        torch.where, not an index, repeats the null: its gradient is summed up in a fixed order.
        """
        if any(is_null) and not all(is_null) and given.tokens.shape[1] > 1:
            given = given.padded(self.rounded(given.tokens.shape[1]))
        tokens, pooled, own = given.tokens, given.pooled, iter(range(len(is_null)))
        length, device = tokens.shape[1], tokens.device
        rows = torch.tensor([0 if drop else next(own) for drop in is_null])
        rows = rows.to(device, non_blocking=True)
        drop = rearrange(torch.tensor(is_null).to(device, non_blocking=True), "b -> b 1")
        token = F.pad(rearrange(self.null_token, "d -> 1 1 d"), (0, 0, 0, length - 1))
        mask = None
        if not all(is_null) and (given.mask is not None or any(is_null)) and length > 1:
            first = torch.arange(length, device=device) < 1
            mask = torch.where(drop, first, given.full_mask[rows])
        return Context(
            torch.where(rearrange(drop, "b 1 -> b 1 1"), token.to(tokens.dtype), tokens[rows]),
            mask,
            torch.where(drop, self.null_pooled.to(pooled.dtype), pooled[rows]),
        )


class Qwen3Conditioner(TextConditioner):
    """Captions as the hidden states of a frozen Qwen3 (arXiv:2505.09388), see TextConditioner.

    The source is Qwen/Qwen3-0.6B unless another is given: Qwen/Qwen3-1.7B, Qwen/Qwen3-4B, a folder.
    The other defaults are PixelHDM's too: the last states after the final norm, of the caption
    itself, and the last token's state as the pooled vector. Z-Image takes layer -2 of the chat
    template.
    """

    default_source = "Qwen/Qwen3-0.6B"


def is_empty(text: Text) -> bool:
    """Whether this stands for the null condition."""
    return isinstance(text, str) and not text
