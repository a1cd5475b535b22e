"""From captions to token numbers, within a limit, inside a template or behind an instruction."""

import torch
from einops import rearrange
from jaxtyping import Int
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from pixelhdm.errors import UserError, one_line

CHAT = "chat"
MARK = "caption-goes-here"
SHOWN = 200  # characters of what is cut


class Tokenization:
    """A tokenizer of the library transformers, with a template or an instruction and a limit.

    What is too long is cut from the caption's end, so that the rest stays whole.

    Args:
        source: Hub name or folder.
        template: None, "chat" or a text with {}; see TextEncoder.
        max_length: most tokens of a text, those left out not counted.
        instruction: text before every caption, see TextEncoder; the empty text has none.
        attends_padding: whether texts are filled up, see TextEncoder.

    Attributes:
        num_left_out: tokens of the instruction whose states nobody sees: all but the first and the
            last.

    Raises:
        UserError: there is no tokenizer, no chat template or no padding token, the template alone
            is too long, or the instruction too short.
    """

    def __init__(
        self,
        source: str,
        template: str | None,
        max_length: int,
        instruction: str | None = None,
        attends_padding: bool = False,
    ):
        from transformers import AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except Exception as error:  # an offline Hub or a damaged file can fail in any way
            raise UserError(
                f"text encoder {source} must have a tokenizer that transformers can read, got "
                f"{type(error).__name__}: {one_line(error)[:200].rstrip('.!')}. Its folder needs "
                "tokenizer.json and tokenizer_config.json."
            ) from error
        if not self.tokenizer("a", add_special_tokens=False)["input_ids"]:
            raise UserError(  # the library makes an empty one where there are no files
                f"text encoder {source} must have a tokenizer with a vocabulary, got none. Its "
                "folder needs tokenizer.json and tokenizer_config.json."
            )
        self.source, self.max_length, self.has_warned = source, max_length, False
        self.adds_special = template != CHAT  # a chat template has them in its text
        self.before, self.after = self.around(template)
        self.num_left_out = 0
        if instruction:
            self.before, self.num_left_out = instruction, self.left_out(instruction)
        alone = len(self.numbers("")) - self.num_left_out
        if alone >= max_length:
            raise UserError(
                f"max_length must be above the {alone} tokens of the "
                f"{'instruction that are kept' if instruction else 'template alone'}, got "
                f"{max_length}."
            )
        self.has_instruction, self.attends_padding = bool(instruction), attends_padding
        if attends_padding and self.tokenizer.pad_token_id is None:
            raise UserError(
                f"attends_padding must be false for text encoder {source}, whose tokenizer has no "
                "padding token, got true."
            )

    def around(self, template: str | None) -> tuple[str, str]:
        """What stands before and after a caption."""
        if template is None:
            return "", ""
        if template == CHAT:
            if not self.tokenizer.chat_template:
                raise UserError(
                    f"template must be empty or a text with {{}} for text encoder {self.source}, "
                    "whose tokenizer has no chat template, got chat."
                )
            template = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": MARK}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            ).replace(MARK, "{}")
        before, _, after = template.partition("{}")
        return before, after

    def left_out(self, instruction: str) -> int:
        """How many of an instruction's tokens are for the encoder alone."""
        number = len(self.of_text(instruction))
        if number < 2:
            raise UserError(
                f"instruction must have at least 2 tokens, got {number} in {instruction!r}. Leave "
                "it empty to have none."
            )
        return number - 2

    def of_text(self, text: str) -> list[int]:
        """The token numbers of a text as it is."""
        return self.tokenizer(text, add_special_tokens=self.adds_special, verbose=False)[
            "input_ids"
        ]

    def numbers(self, caption: str) -> list[int]:
        """The token numbers of a caption with what surrounds it, whatever their count."""
        return self.of_text(f"{self.before}{caption}{self.after}")

    def fit(self, caption: str) -> tuple[int, int]:
        """The number of tokens of a whole caption with what surrounds it, those left out not
        counted, and how many of its characters stay within the limit.
        """
        num_tokens = len(self.numbers(caption)) - self.num_left_out
        kept, over = len(caption), num_tokens - self.max_length
        while over > 0:
            offsets = self.tokenizer(
                caption[:kept],
                add_special_tokens=False,
                return_offsets_mapping=True,
                verbose=False,
            )["offset_mapping"]
            # Tokens at the seam of caption and template may merge, so the result is counted anew.
            kept = offsets[-over][0] if over <= len(offsets) else 0
            over = len(self.numbers(caption[:kept])) - self.num_left_out - self.max_length
        return num_tokens, kept

    def ids(self, caption: str) -> list[int]:
        """The token numbers of a caption, at most max_length, and those left out.

        At least one, unless filler follows. The first caption that is cut is said; with many of
        them more would not help.
        """
        if self.has_instruction and not caption:
            return self.of_text("") or self.nothing()
        numbers = self.numbers(caption)
        if len(numbers) > self.max_length + self.num_left_out:
            num_tokens, kept = self.fit(caption)
            if not self.has_warned:
                rank_zero_warn(beyond(num_tokens, caption[kept:], self.max_length))
                self.has_warned = True
            numbers = self.numbers(caption[:kept])
        return numbers or self.nothing()

    def nothing(self) -> list[int]:
        """What stands for a text without tokens: the end of a text, or padding; nothing where
        filler follows.
        """
        if self.attends_padding:
            return []
        ends = (self.tokenizer.eos_token_id, self.tokenizer.pad_token_id, 0)
        return [next(number for number in ends if number is not None)]

    def batch(self, texts: list[str]) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """The token numbers of texts, filler behind each, and a mask that is 1 where none is."""
        ids, filler = [self.ids(text) for text in texts], 0
        longest = max(map(len, ids))
        if self.attends_padding:
            filler, longest = self.tokenizer.pad_token_id, self.max_length + self.num_left_out
        rows = torch.tensor([own + [filler] * (longest - len(own)) for own in ids])
        lengths = torch.tensor(list(map(len, ids)))
        return rows, (torch.arange(longest) < rearrange(lengths, "b -> b 1")).long()

    def kept(self, text: str, num_tokens: int) -> tuple[int, int]:
        """Which of a text's states count where it has `num_tokens` tokens without filler: the
        first, and those from one number up to another.
        """
        num_left_out = self.num_left_out if text else 0
        end = self.max_length + num_left_out if self.attends_padding else num_tokens
        return 1 + num_left_out, end


def beyond(num_tokens: int, cut: str, max_length: int) -> str:
    """What to say of a caption whose end is cut."""
    end = cut if len(cut) <= SHOWN else f"{cut[:SHOWN]} …"
    return (
        f"A text must have at most max_length={max_length} tokens, got {num_tokens}; its end is "
        f"left out: {end!r}. Raise model.conditioner.max_length to keep it."
    )
