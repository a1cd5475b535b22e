"""Evaluations by trainer.test, again and again, without a command line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from pixelhdm.callbacks.evaluate import Evaluate
from pixelhdm.callbacks.evaluation_report import shares
from pixelhdm.data.draws import DrawItem
from pixelhdm.datamodule import PixelHDMDataModule
from pixelhdm.errors import UserError
from pixelhdm.evaluation import image_store
from pixelhdm.evaluation.distances import frechet_distance
from pixelhdm.evaluation.moments import Moments
from pixelhdm.evaluation.record import read_records
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import EulerSampler, HeunSampler
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.module import PixelHDMModule
from tests.stubs import ColourFeatures, Numbers, perturb, tiny_network

BOTH = [ColourFeatures(), ColourFeatures("inception", "more")]


class Reals(Numbers):
    """Images of random colours."""

    def load(self, index: int, seed: int, height: int, width: int):
        colours = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return super().load(index, seed, height, width)._replace(image=colours)


class Run:
    """A model of 10 classes in its run folder, which is evaluated again and again.

    Attributes:
        drawn: seeds of what the last call drew.
        stop_at: number of images after which it is interrupted.
    """

    def __init__(self, folder: Path):
        self.folder, self.stop_at = folder, 10**6
        self.drawn: list[int] = []
        weights = folder / "checkpoints/step_00000007.ckpt"
        weights.parent.mkdir(parents=True)
        torch.save({"state_dict": perturb(self.new_module()).state_dict()}, weights)
        self.module = self.new_module(init_from=str(weights))
        self.data = PixelHDMDataModule(8, 4, train=Reals(40), num_workers=0)
        draw_batch = self.module.draw_batch

        def noted(batch: dict, *rest: object) -> torch.Tensor:
            if len(self.drawn) >= self.stop_at:
                raise KeyboardInterrupt
            self.drawn.extend(batch["seed"].tolist())
            return draw_batch(batch, *rest)

        self.module.draw_batch = noted

    def new_module(self, **settings: object) -> PixelHDMModule:
        def conditioner(dim: int) -> ClassConditioner:
            return ClassConditioner(dim, 10, num_tokens=1)

        parts = (tiny_network(), conditioner, HeunSampler(2), Guidance(2.0))
        return PixelHDMModule(*parts, weights="raw", **settings)

    def __call__(self, evaluate: Evaluate, **settings: object) -> list[int]:
        """Evaluate with a new trainer; the seeds of what was drawn."""
        evaluate.folder = evaluate.folder or str(self.folder / "out")
        self.drawn.clear()
        self.trainer(evaluate, **settings).test(self.module, self.data, verbose=False)
        return list(self.drawn)

    def trainer(self, evaluate: Evaluate, **settings: object) -> Trainer:
        return Trainer(
            accelerator="cpu",
            logger=False,
            callbacks=[evaluate],
            default_root_dir=self.folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )

    def images(self, folder: str = "out") -> np.ndarray:
        files = sorted(self.folder.glob(f"{folder}/images/*.npz"))
        return np.concatenate([np.load(file)["images"] for file in files])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(image_store, "CHUNK", 8)
    return Run(tmp_path / "run")


def evaluate(num_images: int, **settings: object) -> Evaluate:
    return Evaluate(num_images, **({"extractors": BOTH[:1]} | settings))


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The arrays below a folder."""
    files = sorted(folder.rglob("*.npz"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def distance(images: np.ndarray) -> float:
    """The Fréchet distance of images' colours to those of all real ones."""
    real = np.stack([Reals(40).load(index, 0, 8, 8).image for index in range(40)])
    features = [ColourFeatures()(torch.from_numpy(own)).pool for own in (images, real)]
    return frechet_distance(*map(Moments.of, features))


def test_scores_are_those_of_the_stored_images(run):
    own = evaluate(12)
    before = set(run.module.state_dict())
    assert run(own) == list(range(12))
    named = {score.name: score for score in own.scores}
    assert named["FD-Colours"].value == pytest.approx(distance(run.images()), rel=1e-6)
    assert (named["FD-Colours"].num_images, named["FD-Colours"].num_real) == (12, 40)
    assert named["FD-Colours"].floor is not None
    (record,) = read_records(run.folder)
    assert record == own.entry == json.loads((run.folder / "out/scores.json").read_text("utf-8"))
    assert (record["step"], record["weights"], record["reference"]) == (7, "raw", "data.train")
    assert set(run.module.state_dict()) == before


def test_an_interrupted_call_goes_on_and_finds_the_same(run):
    whole, parts = evaluate(28, extractors=BOTH), evaluate(28, extractors=BOTH)
    whole.folder = str(run.folder / "whole")
    run(whole)
    run.stop_at = 20  # in the middle of the third chunk
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(parts)
    assert parts.scores == []
    assert len(bytes_of(run.folder / "out/images")) == 2
    run.stop_at = 10**6
    assert run(parts) == list(range(16, 28))
    assert bytes_of(run.folder / "out") == bytes_of(run.folder / "whole")
    assert parts.scores == whole.scores
    assert len(parts.scores) == 2 + 6


def test_a_call_with_a_limit_draws_the_rest_later(run):
    own = evaluate(20)
    assert run(own, limit_test_batches=3) == list(range(12))
    assert own.scores == []
    assert not (run.folder / "out/scores.json").exists()
    assert run(own) == list(range(8, 20))
    assert own.scores != []


def test_more_images_and_another_extractor_add_what_is_missing(run):
    run(evaluate(12))
    first = run.images()
    assert run(evaluate(20)) == list(range(12, 20))
    np.testing.assert_array_equal(run.images()[:12], first)
    both = evaluate(20, extractors=BOTH)
    assert run(both) == []
    assert {"FD-Colours", "sFD-Colours", "precision"} <= {score.name for score in both.scores}
    fewer = evaluate(12)
    assert run(fewer) == []
    assert fewer.scores[0].value == pytest.approx(distance(first), rel=1e-6)
    assert [own["num_images"] for own in read_records(run.folder)] == [12, 20, 20, 12]


def test_images_that_are_not_kept_are_drawn_again_when_they_are_needed(run):
    own = evaluate(12, keep_images=False)
    run(own)
    found = own.scores
    assert bytes_of(run.folder / "out/images") == {}
    assert run(own) == []
    assert own.scores == found
    assert run(evaluate(18, keep_images=False)) == list(range(8, 18))  # the first chunk is whole
    assert bytes_of(run.folder / "out/images") == {}
    assert run(evaluate(18, keep_images=False, extractors=BOTH)) == list(range(18))
    assert run(evaluate(18, save_npz=True)) == list(range(18))
    with np.load(run.folder / "out/samples_18x8x8x3.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], run.images())
        np.testing.assert_array_equal(arrays["arr_1"], np.arange(18) % 10)


def change_guidance(run: Run) -> None:
    run.module.guidance = Guidance(2.0, interval=(0.1, 0.9))


def change_sampler(run: Run) -> None:
    run.module.sampler = EulerSampler(2)


def change_weights(run: Run) -> None:
    state = run.module.state_dict()
    state["conditioner.pooled.weight"] += 0.5
    torch.save({"state_dict": state}, run.module.init_from)


@pytest.mark.parametrize("change", [change_guidance, change_sampler, change_weights])
def test_one_trainer_evaluates_other_settings_in_turn(run, change: Callable[[Run], None]):
    own = evaluate(10)
    own.kind, own.is_quiet, own.folder = "sweep", True, str(run.folder / "out")
    trainer = run.trainer(own)
    trainer.test(run.module, run.data, verbose=False)
    first = own.scores
    change(run)
    for _ in range(2):  # the second has nothing to draw
        trainer.test(run.module, run.data, verbose=False)
        assert run.drawn == list(range(10)) * 2
    assert own.scores != first
    assert {entry["kind"] for entry in read_records(run.folder)} == {"sweep"}
    assert not (run.folder / "tensorboard").exists()


def test_another_seed_draws_anew_and_another_batch_size_does_not(run):
    run(evaluate(10))
    run.data.batch_size = 3
    assert run(evaluate(10)) == []
    assert run(evaluate(10, seed=1)) == list(range(1, 11))


def test_the_reference_is_computed_once_and_may_be_a_file(run):
    own = evaluate(10)
    run(own)
    file = run.folder / "reference_8x8_colours.npz"
    made = file.stat().st_mtime_ns
    given = evaluate(10, reference=str(file))
    run(given)
    assert given.scores == own.scores
    run(evaluate(10))
    assert file.stat().st_mtime_ns == made
    file.write_bytes(file.read_bytes()[:-100])
    run(evaluate(10))  # a torn one is made again
    run.data.sources["train"] = Reals(30)
    other = evaluate(10)
    run(other)
    assert other.scores[0].num_real == 30
    run.data.sources["train"] = None
    with pytest.raises(UserError, match=r"must be a file of statistics where data.train is empty"):
        run(evaluate(10))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_images": 9}, "num_images must be at least 10, got 9"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 2**63 - 5}, "seed must leave room below 2^63"),
        ({"extractors": []}, r"must be different ones or be left out, got \[\]"),
        ({"extractors": [BOTH[0], ColourFeatures()]}, "got colours, colours"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings, words):
    with pytest.raises(UserError, match=words.replace("^", r"\^")):
        Evaluate(**settings)


@pytest.mark.parametrize(
    ("num", "groups", "words"),
    [
        (20, 10, "2 of each of 10 classes"),
        (24, 10, "3 of each of the first 4 of 10 classes, 2 of the others"),
        (20, 1000, "one of each of the first 20 of 1,000 classes"),
        (20, 1, "all of one class"),
    ],
)
def test_a_report_says_how_many_there_are_of_each_class(num, groups, words):
    each = [DrawItem(number, 0, 8, 8, "", number, "") for number in range(groups)]
    assert shares(each, {"num_images": num}) == words
