"""From captions to token numbers, within a limit and inside a template."""

from lightning.pytorch.utilities import rank_zero_warn

from pixelhdm.errors import UserError, one_line

CHAT = "chat"
MARK = "caption-goes-here"
SHOWN = 200  # characters of what is cut


class Tokenization:
    """A tokenizer of the library transformers, with a template and a limit.

    What is too long is cut from the caption's end, so that the template stays whole.

    Args:
        source: Hub name or folder.
        template: None, "chat" or a text with {}; see TextEncoder.
        max_length: most tokens of a text.

    Raises:
        UserError: there is no tokenizer, no chat template, or the template alone is too long.
    """

    def __init__(self, source: str, template: str | None, max_length: int):
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
        self.before, self.after = self.around(template)
        self.adds_special = template != CHAT  # a chat template has them in its text
        if len(self.numbers("")) >= max_length:
            raise UserError(
                f"max_length must be above the {len(self.numbers(''))} tokens of the template "
                f"alone, got {max_length}."
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

    def numbers(self, caption: str) -> list[int]:
        """The token numbers of a caption in its template, whatever their count."""
        text = f"{self.before}{caption}{self.after}"
        return self.tokenizer(text, add_special_tokens=self.adds_special, verbose=False)[
            "input_ids"
        ]

    def fit(self, caption: str) -> tuple[int, int]:
        """The number of tokens of a whole caption in its template, and how many of its characters
        stay within the limit.
        """
        numbers = self.numbers(caption)
        kept, over = len(caption), len(numbers) - self.max_length
        while over > 0:
            offsets = self.tokenizer(
                caption[:kept],
                add_special_tokens=False,
                return_offsets_mapping=True,
                verbose=False,
            )["offset_mapping"]
            # Tokens at the seam of caption and template may merge, so the result is counted anew.
            kept = offsets[-over][0] if over <= len(offsets) else 0
            over = len(self.numbers(caption[:kept])) - self.max_length
        return len(numbers), kept

    def ids(self, caption: str) -> list[int]:
        """The token numbers of a caption, at least one and at most max_length.

        The first caption that is cut is said; with many of them more would not help.
        """
        numbers = self.numbers(caption)
        if len(numbers) > self.max_length:
            kept = self.fit(caption)[1]
            if not self.has_warned:
                rank_zero_warn(beyond(len(numbers), caption[kept:], self.max_length))
                self.has_warned = True
            numbers = self.numbers(caption[:kept])
        return numbers or [self.nothing()]

    def nothing(self) -> int:
        """The token that stands for a text without any: the end of a text, or padding."""
        ends = (self.tokenizer.eos_token_id, self.tokenizer.pad_token_id, 0)
        return next(number for number in ends if number is not None)


def beyond(num_tokens: int, cut: str, max_length: int) -> str:
    """What to say of a caption whose end is cut."""
    end = cut if len(cut) <= SHOWN else f"{cut[:SHOWN]} …"
    return (
        f"A text must have at most max_length={max_length} tokens, got {num_tokens}; its end is "
        f"left out: {end!r}. Raise model.conditioner.max_length to keep it."
    )
