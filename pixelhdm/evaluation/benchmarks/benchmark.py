"""What the benchmarks have in common that are scored by a program of their own."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

from pixelhdm.errors import UserError
from pixelhdm.evaluation.scores import Score


class Result(NamedTuple):
    """What a scorer has found.

    Attributes:
        scores: the overall score first.
        rows: the same as cells of a table.
        notes: sentences on what they can be trusted for.
    """

    scores: list[Score]
    rows: list[tuple[str, ...]]
    notes: list[str]


class Benchmark(ABC):
    """A folder of images in the layout of a benchmark, and the benchmark's own program.

    Attributes:
        source: where the program comes from.
        raw_files: names of what it writes; the first holds the results.
    """

    source: str
    raw_files: tuple[str, ...]

    @abstractmethod
    def check_images(self) -> None:
        """Raise a UserError where the program would score too few images, or others."""

    @abstractmethod
    def pictures(self) -> list[Path]:
        """The images that it judges, and those that they are made of."""

    @abstractmethod
    def check_scorer(self, python: str) -> None:
        """Raise a UserError where the program cannot run."""

    @abstractmethod
    def command(self, python: str, out: Path) -> list[str]:
        """The command line that scores the images and writes the raw files into `out`."""

    @abstractmethod
    def read(self, file: Path) -> Result:
        """The scores in a file that the program wrote.

        Raises:
            UserError: it is not whole, or of other images.
        """


def check_there(file: Path, remedy: str) -> None:
    """Raise a UserError where a file of a scorer is missing."""
    if not file.exists():
        raise UserError(f"scorer must have {file}, got none. {remedy}")


def text_of(file: Path) -> str:
    """The content of a results file."""
    if not file.is_file():
        raise UserError(f"results must be a file that the scorer wrote, got {file}, which is none.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"results must be text that the scorer wrote, got {file}.") from error


def name_of(benchmark: str, num_prompts: int, num_images: int, official: tuple[int, int]) -> str:
    """The benchmark's name, where prompts and images of each are as many as published figures have;
    else the name with their numbers.
    """
    is_official = (num_prompts, num_images) == official
    return benchmark if is_official else f"{benchmark}-{num_prompts}x{num_images}"


def size_note(num_prompts: int, num_images: int, official: tuple[int, int]) -> str:
    """Why figures of another number of prompts or images are not to be compared; or nothing."""
    if (num_prompts, num_images) == official:
        return ""
    return (
        f"Published figures have {official[1]} images of each of {official[0]:,} prompts, these "
        f"{num_images} of {num_prompts:,}: do not compare them."
    )


def show(found: Result) -> None:
    """Print the scores, and what they can be trusted for."""
    widths = [max(len(row[column]) for row in found.rows) for column in range(3)]
    print()
    for row in found.rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    print()
    for note in found.notes:
        print(note)
