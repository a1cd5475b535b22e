"""DPG-Bench: how many questions on a long prompt does a model answer with yes?"""

import csv
import math
from collections import Counter
from pathlib import Path

from PIL import Image

from pixelhdm.errors import UserError, counted
from pixelhdm.evaluation.benchmarks.benchmark import Benchmark, Result, check_there
from pixelhdm.evaluation.benchmarks.dpg_results import answers_in, result_of
from pixelhdm.evaluation.benchmarks.running import find_modules

MOST_IMAGES = 4
CLONE = "Clone github.com/TencentQQGYLab/ELLA and give its folder as --scorer."
INSTALL = (
    "DPG wants an environment of its own, made with pip install -r requirements-for-dpg_bench.txt "
    "(requirements.txt in older clones) of the repository: give its --python."
)


class DPG(Benchmark):
    """DPG-Bench (arXiv:2403.05135), scored by compute_dpg_bench.py of ELLA's repository.

    An image's score is the share of its questions that mPLUG answers with yes, those whose parent
    question is not excluded; the overall score the mean over images and prompts, in percent. Errors
    are those of a mean over prompts.

    Args:
        images: folder that predict wrote: grids/PROMPT.png and samples/PROMPT_seed….png.
        scorer: folder of the repository; None where its results are only read.
        prompts: csv of the questions; None takes the repository's.
        num_processes: processes that score, each on a GPU.
    """

    source = "github.com/TencentQQGYLab/ELLA"
    raw_files = ("dpg_results.txt", "dpg_results_detail.txt")

    def __init__(
        self,
        images: Path,
        scorer: Path | None = None,
        prompts: Path | None = None,
        num_processes: int = 1,
    ):
        self.images, self.scorer, self.prompts = images, scorer, prompts
        self.num_processes = num_processes
        if scorer is not None:
            self.prompts = prompts or scorer / "dpg_bench/dpg_bench.csv"

    def grids(self) -> list[Path]:
        """All that the scorer takes for grids: all that lies there."""
        folder = self.images / "grids"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def samples(self) -> list[Path]:
        """The single images."""
        return sorted((self.images / "samples").glob("*_seed*.png"))

    def pictures(self) -> list[Path]:
        return [*self.grids(), *self.samples()]

    def num_images(self) -> int:
        """Images of each prompt."""
        return Counter(prompt_of(sample) for sample in self.samples()).most_common(1)[0][1]

    def check_images(self) -> None:
        grids, nums = self.grids(), Counter(prompt_of(sample) for sample in self.samples())
        if not grids or not nums:
            raise UserError(
                f"images must be a folder with grids/ and samples/, got {self.images}. Draw them "
                "with predict --data.prompts and DPG's folder of prompts."
            )
        num = self.num_images()
        if num > MOST_IMAGES:
            raise UserError(f"images must be up to {MOST_IMAGES} of a prompt, got {num}.")
        if fewer := [name for name in nums if nums[name] < num]:
            raise UserError(
                f"images must be as many of every prompt, got {nums[fewer[0]]} of {fewer[0]} and "
                f"{num} of others. The same predict call draws those that are left."
            )
        if others := [file.name for file in grids if file.name not in {f"{n}.png" for n in nums}]:
            raise UserError(
                f"{self.images}/grids must hold the grids of the images in samples/ alone, got "
                f"{counted(others, 'others')}. Move them away: the scorer would count them."
            )
        drawn = {file.stem for file in grids}
        if missing := sorted(nums.keys() - drawn):
            raise UserError(
                f"grids must be there for every prompt, got none for {counted(missing, 'prompts')}"
                ". The same predict call makes them."
            )
        if self.prompts is not None and self.prompts.exists():
            check_same(drawn, self.prompts)
        self.side()

    def side(self) -> int:
        """Height and width of an image in the grids, which the scorer cuts into squares."""
        sizes = Counter()
        for file in self.grids():
            with Image.open(file) as grid:
                sizes[grid.size] += 1
        (width, height), _ = sizes.most_common(1)[0]
        rows = math.ceil(self.num_images() / 2)
        if len(sizes) > 1 or height * 2 != width * rows:
            shown = ", ".join(f"{w // 2}x{h // rows}" for w, h in sizes)
            raise UserError(
                f"images must be squares of one size, as DPG's scorer cuts them, got {shown}."
            )
        return width // 2

    def check_scorer(self, python: str) -> None:
        check_there(self.scorer / "dpg_bench/compute_dpg_bench.py", CLONE)
        check_there(self.prompts, CLONE)
        find_modules(python, ("torch", "accelerate", "modelscope", "pandas", "tqdm"), INSTALL)

    def command(self, python: str, out: Path) -> list[str]:
        several = ["-m", "accelerate.commands.launch", "--num_machines", "1", "--multi_gpu"]
        several += ["--num_processes", str(self.num_processes), "--mixed_precision", "fp16"]
        return [
            python,
            *(several if self.num_processes > 1 else []),
            str(self.scorer / "dpg_bench/compute_dpg_bench.py"),
            "--image-root-path",
            str(self.images / "grids"),
            "--resolution",
            str(self.side()),
            "--pic-num",
            str(self.num_images()),
            "--vqa-model",
            "mplug",
            "--csv",
            str(self.prompts),
            "--res-path",
            str(out / self.raw_files[0]),
        ]

    def read(self, file: Path) -> Result:
        answers, num = answers_in(file, self.num_images()), self.num_images()
        own = {grid.stem for grid in self.grids()}
        missing = sorted(own - answers.prompts.keys())
        if answers.prompts.keys() - own or len(missing) > 1:
            raise UserError(
                f"results must have each of the {len(own):,} prompts in {self.images} once, got "
                f"{len(answers.prompts):,} in {file}, {len(answers.prompts.keys() & own):,} of "
                "them of these. The scorer names those that it fails on: Failed filename."
            )
        return result_of(answers, num, file, missing)


def prompt_of(sample: Path) -> str:
    """The prompt's name in the name of its image."""
    return sample.stem.rsplit("_seed", 1)[0]


def check_same(drawn: set[str], prompts: Path) -> None:
    """Raise a UserError where grids are not those of the questions."""
    with open(prompts, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if "item_id" not in (rows.fieldnames or ()):
            raise UserError(f"prompts must be a csv with item_id, as DPG's, got {prompts} without.")
        asked = {row["item_id"] for row in rows}
    others, missing = sorted(drawn - asked), sorted(asked - drawn)
    if others or missing:
        what = counted(others, "others") if others else f"none of {counted(missing, 'of them')}"
        raise UserError(
            f"images must be of all {len(asked):,} prompts of {prompts}, got {what}. Draw the "
            "rest, or give a csv of those that were drawn as --prompts."
        )
