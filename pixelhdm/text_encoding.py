"""From texts to files of their states."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import BFloat16
from torch import Tensor

from pixelhdm.data.prepare.lock import room_in
from pixelhdm.data.text_file import TextFile, write_text_file
from pixelhdm.errors import UserError, check_at_least
from pixelhdm.files import TEMPORARY
from pixelhdm.memory_advice import ran_out
from pixelhdm.models.encoders.text_encoder import TextEncoder

WINDOW = 8  # batches whose texts are sorted by length, so that little is padded


@dataclass
class Encoding:
    """How texts are encoded, and a count of what was.

    Args:
        encoder: the training's text encoder.
        device: to encode on.
        batch_size: texts at once.
    """

    encoder: TextEncoder
    device: torch.device
    batch_size: int

    def __post_init__(self) -> None:
        check_at_least(1, batch_size=self.batch_size)
        files = self.encoder.files_digest()
        if not files:  # they come from the Hub when they are first needed
            self.encoder.load(self.device)
            files = self.encoder.files_digest()
        self.about = {"settings": self.encoder.settings(), "files": files}
        self.written: list[TextFile] = []

    def write(
        self,
        path: str,
        about: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        texts: list[str],
        watch: Callable[[Iterable[Tensor]], Iterable[Tensor]] = iter,
    ) -> None:
        """Write a file of texts' states."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        for left in file.parent.glob(f".{file.name}.*{TEMPORARY}"):  # of a run that was killed
            left.unlink(missing_ok=True)
        states = watch(self.states(texts))
        with room_in(file.parent):
            written = write_text_file(file, about, arrays, len(texts), self.encoder.width, states)
        self.written.append(written)

    def states(self, texts: list[str]) -> Iterator[BFloat16[Tensor, "T C"]]:
        """The states of each text in order, on the CPU; of equal texts near each other, one is
        encoded.
        """
        window = WINDOW * self.batch_size
        for start in range(0, len(texts), window):
            part = texts[start : start + window]
            new, found = sorted(dict.fromkeys(part), key=len), {}
            for at in range(0, len(new), self.batch_size):
                batch = new[at : at + self.batch_size]
                found |= zip(batch, self.encode(batch), strict=True)
            yield from (found[text] for text in part)

    def encode(self, texts: list[str]) -> tuple[BFloat16[Tensor, "T C"], ...]:
        """The states of a batch, brought to the CPU in one copy."""
        try:
            states = self.encoder.encode(texts, self.device)
        except RuntimeError as error:
            if not ran_out(error):
                raise
            raise UserError(
                "cache-text must fit into the device's memory, got out of it with "
                f"batch_size={self.batch_size}. Set --batch_size={max(1, self.batch_size // 2)}."
            ) from error
        return torch.cat(states).cpu().split([len(own) for own in states])
