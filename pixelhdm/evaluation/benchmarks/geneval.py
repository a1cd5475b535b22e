"""GenEval: are objects, their number, colours and places those that the prompt asks for?"""

import json
import re
from pathlib import Path
from typing import Any

from pixelhdm.data.prompts import from_json, lines_of
from pixelhdm.errors import UserError, counted
from pixelhdm.evaluation.benchmarks.benchmark import Benchmark, Result, check_there, text_of
from pixelhdm.evaluation.benchmarks.geneval_results import from_result, place_of, result_of
from pixelhdm.evaluation.benchmarks.running import find_modules

DETECTOR = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco"
CLONE = "Clone github.com/djghosh13/geneval and give its folder as --scorer."
INSTALL = (
    "GenEval wants an environment of its own, with mmcv-full 1.x, open-clip-torch, clip-benchmark, "
    "pandas, and mmdet from a clone (git clone -b 2.x https://github.com/open-mmlab/mmdetection; "
    "pip install -e .): give its --python."
)


class GenEval(Benchmark):
    """GenEval (arXiv:2310.11513), scored by evaluate_images.py of github.com/djghosh13/geneval.

    An image is correct or not; a task's score is the share of its images, the overall score the
    mean over tasks, as in its summary_scores.py. Errors are those of a mean over prompts.

    Args:
        images: folder that predict wrote: NUMBER/metadata.jsonl and NUMBER/samples/*.png.
        scorer: folder of the repository; None where its results are only read.
        prompts: metadata that the images were drawn from; None takes the repository's.
        models: folder with the detector's weights; None takes models/ of the repository.
        detector_config: mmdet's description of the detector; None takes that of mmdet's clone.
    """

    source = "github.com/djghosh13/geneval"
    raw_files = ("geneval_results.jsonl",)

    def __init__(
        self,
        images: Path,
        scorer: Path | None = None,
        prompts: Path | None = None,
        models: Path | None = None,
        detector_config: Path | None = None,
    ):
        self.images, self.scorer, self.detector_config = images, scorer, detector_config
        self.prompts, self.models = prompts, models
        if scorer is not None:
            self.prompts = prompts or scorer / "prompts/evaluation_metadata.jsonl"
            self.models = models or scorer / "models"

    def folders(self) -> list[Path]:
        """The folders that the scorer takes for prompts, by number."""
        found = self.images.iterdir() if self.images.is_dir() else ()
        numbered = [path for path in found if path.is_dir() and path.name.isdigit()]
        return sorted(numbered, key=lambda path: int(path.name))

    def judged(self, folder: Path) -> list[Path]:
        """The files of a prompt that the scorer takes for images."""
        return sorted(p for p in folder.glob("samples/*") if re.match(r"\d+\.png", p.name))

    def pictures(self) -> list[Path]:
        return [file for folder in self.folders() for file in self.judged(folder)]

    def check_images(self) -> None:
        folders = self.folders()
        if not folders:
            raise UserError(
                f"images must be a folder with 00000/samples and so on, got {self.images}. Draw "
                "them with predict --data.prompts evaluation_metadata.jsonl."
            )
        if [int(folder.name) for folder in folders] != list(range(len(folders))):
            names = [folder.name for folder in folders]
            raise UserError(
                f"images must be in folders from 00000 on, each number once, got "
                f"{counted(names, 'folders')} up to {names[-1]}."
            )
        nums = {folder.name: len(self.judged(folder)) for folder in folders}
        most = max(nums, key=lambda name: nums[name])
        if fewer := [name for name in nums if nums[name] < max(nums[most], 1)]:
            raise UserError(
                f"images must be as many of every prompt, got {nums[fewer[0]]} in {fewer[0]} and "
                f"{nums[most]} in {most}. The same predict call draws those that are left."
            )
        own = [metadata_of(folder) for folder in folders]
        if self.prompts is not None and self.prompts.exists():
            check_same(own, self.prompts)

    def check_scorer(self, python: str) -> None:
        for name in ("evaluate_images.py", "object_names.txt"):
            check_there(self.scorer / "evaluation" / name, CLONE)
        check_there(self.prompts, CLONE)
        check_there(
            self.models / f"{DETECTOR}.pth",
            f"Run bash {self.scorer}/evaluation/download_models.sh {self.models}, or give the "
            "folder as --models.",
        )
        modules = ("torch", "mmcv", "mmdet", "open_clip", "clip_benchmark", "pandas")
        places = find_modules(python, modules, INSTALL)
        default = Path(places["mmdet"]).parent / f"../configs/mask2former/{DETECTOR}.py"
        check_there(
            self.detector_config or default,
            "mmdet that pip alone installed has none: install it from a clone of its branch 2.x, "
            "or give the file as --detector_config.",
        )

    def command(self, python: str, out: Path) -> list[str]:
        config = self.detector_config
        return [
            python,
            str(self.scorer / "evaluation/evaluate_images.py"),
            str(self.images),
            "--outfile",
            str(out / self.raw_files[0]),
            "--model-path",
            str(self.models),
            *([] if config is None else ["--model-config", str(config)]),
        ]

    def read(self, file: Path) -> Result:
        lines = [from_result(line, file) for line in text_of(file).split("\n") if line.strip()]
        judged = {place_of(line["filename"]): line for line in lines}
        folders = self.folders()
        own = {p.relative_to(self.images).as_posix() for p in self.pictures()}
        if judged.keys() != own or len(lines) != len(judged):
            raise UserError(
                f"results must have each of the {len(own)} images in {self.images} once, got "
                f"{len(lines)} lines in {file}, {len(judged.keys() & own)} of them of these images."
            )
        correct: dict[str, list[list[bool]]] = {}
        for folder in folders:
            metadata = metadata_of(folder)
            names = [path.relative_to(self.images).as_posix() for path in self.judged(folder)]
            asked = [json.loads(judged[name]["metadata"]) for name in names]
            if any(other != metadata for other in asked):
                raise UserError(
                    f"results must be of the prompts of these images, got {asked[0]['prompt']!r} "
                    f"in {file} for {folder.name}, which is of {metadata['prompt']!r}."
                )
            marks = [judged[name]["correct"] for name in names]
            correct.setdefault(metadata["tag"], []).append(marks)
        is_blind = all(line.get("details") == "{}" for line in lines)
        return result_of(correct, is_blind)


def metadata_of(folder: Path) -> dict[str, Any]:
    """What the scorer is told of a prompt."""
    file = folder / "metadata.jsonl"
    if not file.is_file():
        raise UserError(f"images must have {file}, got none. The same predict call writes it.")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} must hold one JSON object, got {error}.") from error


def check_same(own: list[dict[str, Any]], prompts: Path) -> None:
    """Raise a UserError where images are not of these prompts."""
    asked = [from_json(line, place) for line, place in lines_of(prompts)]
    other = [number for number, (a, b) in enumerate(zip(own, asked, strict=False)) if a != b]
    if len(own) != len(asked) or other:
        what = f"another prompt in {other[0]:05d}" if other else f"{len(own):,}"
        raise UserError(
            f"images must be of all {len(asked):,} prompts of {prompts}, got {what}. Draw the "
            "rest, or give the file that they were drawn from as --prompts."
        )
