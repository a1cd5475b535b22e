"""Frozen text encoders: from captions to the hidden states of a language model."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixelhdm.errors import UserError, check_at_least, reason_of
from pixelhdm.models.encoders.frozen import Frozen
from pixelhdm.models.encoders.text_files import PACKAGE, digest_of_files, folder_of, width_of
from pixelhdm.models.encoders.tokenization import Tokenization

WIDTHS = {
    "Qwen/Qwen3-0.6B": 1024,
    "Qwen/Qwen3-1.7B": 2048,
    "Qwen/Qwen3-4B": 2560,
    "google/gemma-2-2b-it": 2304,
}


class Excess(NamedTuple):
    """What of a text is beyond the limit.

    Attributes:
        num_tokens: tokens of the whole text.
        cut: its end, which is left out.
    """

    num_tokens: int
    cut: str


class TextEncoder(Frozen):
    """A frozen text encoder of the library transformers, one bfloat16 state for each token.

    Args:
        source: Hub name; a folder with config.json, tokenizer and weights; or package:NAME/FOLDER,
            a folder inside an installed Python package.
        width: width of its states; empty takes that of the known sizes of Qwen3 and Gemma 2, or
            what the folder's config.json says.
        layer: which hidden states: -1 the last after the final norm, -2 the layer before, as they
            leave it; 0 the token embeddings.
        template: how a caption becomes the encoder's text: empty for the caption itself, chat for
            the tokenizer's chat template, or a text with {} in the caption's place.
        max_length: most tokens of a text, template included; longer captions lose their end.
        instruction: text before every caption, which the encoder reads and whose states are left
            out: of its n tokens the states of the first and the last alone are kept, and count for
            max_length (SANA's complex human instruction, arXiv:2410.10629). The empty text has
            none. Not beside a template.
        attends_padding: whether each text is filled up to max_length with padding tokens, as
            transformers does with padding="max_length" on the right, and has the filler's states
            too. Inside the encoder filler is masked.

    Attributes:
        known: states of texts that need not be encoded, on the CPU.
        rests_between: whether its network leaves the GPU after each use.
    """

    def __init__(
        self,
        source: str,
        width: int | None = None,
        layer: int = -1,
        template: str | None = None,
        max_length: int = 256,
        instruction: str | None = None,
        attends_padding: bool = False,
    ):
        super().__init__()
        check_at_least(1, max_length=max_length)
        if template and instruction:
            raise UserError(
                f"template must be empty where there is an instruction, got {template!r}. Put all "
                "that stands before a caption into one of them."
            )
        if template not in (None, "chat") and template.count("{}") != 1:
            raise UserError(
                f"template must be chat or a text with one {{}} for the caption, got {template!r}."
            )
        self.source, self.layer = source, layer
        self.template, self.max_length = template, max_length
        self.instruction, self.attends_padding = instruction, attends_padding
        self.width = width or WIDTHS.get(source) or width_of(source)
        check_at_least(1, width=self.width)
        self.tokenization: Tokenization | None = None
        self.known: dict[str, Float[Tensor, "_ C"]] = {}
        self.rests_between = False

    def settings(self) -> dict[str, str | int]:
        """What the states depend on, as far as it is known without the files.

        Options that came later are there where they are set, so that older caches stay valid.
        """
        name = self.source.rstrip("/")
        later = {"instruction": self.instruction, "attends_padding": self.attends_padding}
        return {
            "name": name if name.startswith(PACKAGE) else name.rpartition("/")[2],
            "layer": self.layer,
            "template": self.template or "",
            "max_length": self.max_length,
            "width": self.width,
        } | {option: value for option, value in later.items() if value}

    def files_digest(self) -> str:
        """A short text that differs when the encoder's files differ; "" where they are not here."""
        return digest_of_files(self.source)

    def tokens(self) -> Tokenization:
        """The tokenizer, read at first use."""
        if self.tokenization is None:
            self.tokenization = Tokenization(
                folder_of(self.source),
                self.template,
                self.max_length,
                self.instruction,
                self.attends_padding,
            )
        return self.tokenization

    def excess(self, text: str) -> Excess | None:
        """What of a text is beyond max_length, where it is."""
        num_tokens, kept = self.tokens().fit(text)
        if kept == len(text):
            return None
        self.tokens().has_warned = True  # who asks says it
        return Excess(num_tokens, text[kept:])

    def read(self) -> nn.Module:
        try:
            network = TransformersText(folder_of(self.source), self.layer)
        except UserError:
            raise
        except Exception as error:  # an offline Hub or a damaged file can fail in any way
            raise unreadable(self.source, error) from error
        if network.width != self.width:
            raise UserError(
                f"width of text encoder {self.source} must be {network.width}, as its files say, "
                f"got {self.width}."
            )
        if len(self.tokens().tokenizer) > network.num_tokens:
            raise UserError(
                f"text encoder {self.source} must have a tokenizer of at most "
                f"{network.num_tokens} tokens, as its network knows no more, got one of "
                f"{len(self.tokens().tokenizer)}. Are both of the same model?"
            )
        limit = min(network.max_length or math.inf, self.tokens().tokenizer.model_max_length)
        limit -= self.tokens().num_left_out
        if self.max_length > limit:
            raise UserError(
                f"max_length must be at most {limit}, which is all that text encoder "
                f"{self.source} can read, got {self.max_length}."
            )
        return network

    @torch.no_grad()
    def encode(self, texts: list[str], device: torch.device) -> list[Float[Tensor, "_ C"]]:
        """The states of each text in bfloat16, as many as it has tokens, or max_length where
        padding is attended.

        Padding is masked and comes last, so it changes a state by float32 rounding at most.

        Raises:
            UserError: the files are missing or do not fit.
        """
        network, tokens = self.load(device), self.tokens()
        rows, mask = tokens.batch(texts)
        with torch.autocast(device.type, enabled=False):
            states = network(rows.to(device, non_blocking=True), mask.to(device, non_blocking=True))
        states = states.to(torch.bfloat16)
        if self.rests_between:
            self.rest()
        each = zip(texts, mask.sum(dim=1).tolist(), states, strict=True)
        return [chosen(own, *tokens.kept(text, number)) for text, number, own in each]


class TransformersText(nn.Module):
    """A text encoder of the library transformers: the hidden states of one layer.

    Of a language model the trunk alone, of an encoder-decoder the encoder, of a model of images
    and texts the text's part.

    Args:
        source: Hub name or folder.
        layer: which of the hidden states, see TextEncoder.

    Attributes:
        width: width of a state.
        max_length: most tokens that it can read; None where there is no limit.
        num_tokens: size of its vocabulary.
    """

    def __init__(self, source: str, layer: int):
        super().__init__()
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding
        from transformers.utils import logging

        logging.disable_progress_bar()  # seconds long, once
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        has_own = type(config) in AutoModelForTextEncoding._model_mapping
        network, report = (AutoModelForTextEncoding if has_own else AutoModel).from_pretrained(
            source,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
        # The library fills what is missing with random numbers. Heads and decoders may be left
        # over, and a pooler is not used.
        lacks = {*report["missing_keys"], *report["mismatched_keys"]}
        if keys := sorted(key for key in map(str, lacks) if "pooler" not in key):
            raise ValueError(f"{len(keys)} missing or mismatched tensors, such as {keys[0]}")
        self.network = getattr(network, "text_model", network)
        config = self.network.config
        config.use_cache = False  # no text is continued
        self.width, self.layer, self.num_tokens = config.hidden_size, layer, config.vocab_size
        # Rotary positions go on for ever, and so do relative ones.
        rotary = getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None)
        limit = getattr(config, "max_position_embeddings", None)
        self.max_length = None if rotary else limit
        if not -config.num_hidden_layers - 1 <= layer <= config.num_hidden_layers:
            raise UserError(
                f"layer must lie in -{config.num_hidden_layers + 1} … {config.num_hidden_layers} "
                f"for text encoder {source}, got {layer}."
            )

    def forward(self, ids: Int[Tensor, "B T"], mask: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        is_last = self.layer == -1
        out = self.network(input_ids=ids, attention_mask=mask, output_hidden_states=not is_last)
        return out.last_hidden_state if is_last else out.hidden_states[self.layer]


def chosen(states: Float[Tensor, "_ C"], start: int, end: int) -> Float[Tensor, "_ C"]:
    """The first of some states, and those from start to end."""
    return states[:end] if start == 1 else torch.cat([states[:1], states[start:end]])


def unreadable(source: str, error: Exception) -> UserError:
    """What to say where a text encoder or its tokenizer cannot be read."""
    return UserError(
        f"text encoder {source} must be readable by transformers, from a folder with config.json, "
        "tokenizer.json and model.safetensors or from the Hub, got "
        f"{reason_of(error)}. Without a network give a local folder as "
        "model.conditioner.source, or cache the texts on another machine (main.py cache-text)."
    )
