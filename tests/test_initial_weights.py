"""What a new run takes from a checkpoint, and what it says about it."""

import copy
from pathlib import Path

import pytest
import torch

from pixelhdm.errors import UserError
from pixelhdm.module import PixelHDMModule
from pixelhdm.training.losses.repa import RepaLoss
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import perturb
from tests.test_module import new_module
from tests.tiny_dino import PatchMeans

RAW = ("network.", "conditioner.")


def drawn(module: PixelHDMModule) -> dict[str, torch.Tensor]:
    """Its weights and averages, without what losses have trained."""
    state = module.state_dict().items()
    return {key: value.clone() for key, value in state if not key.startswith("loss.")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A checkpoint after 3 steps, of an average that has seen 20 more, other than the weights."""
    trained = new_module()
    trained.add_average()
    perturb(trained.network)
    perturb(trained.conditioner)
    content = {"state_dict": trained.state_dict(), "global_step": 3}
    torch.save(content | {"training": {"average_steps": 20}}, tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt"


def started(file: Path, stage: str = "fit", **settings: object) -> PixelHDMModule:
    """A module after setup, with an average in fit, as the EMA callback adds it."""
    module = new_module(init_from=str(file), **settings)
    for part in (module.network, module.conditioner):
        perturb(part, std=0.3)
    if stage == "fit":
        module.add_average()
        module.profiles = torch.nn.ModuleDict({"0_1": copy.deepcopy(module.ema)})
    module.setup(stage)
    return module


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("carry", [True, False])
def test_fit_takes_weights_and_average_as_the_flags_say(file, weights, carry, caplog):
    saved = torch.load(file, weights_only=True)["state_dict"]
    raw = {key: value for key, value in saved.items() if key.startswith(RAW)}
    assert not any(torch.equal(value, saved[f"ema.{key}"]) for key, value in raw.items())
    flags = {} if carry and weights == "raw" else {"init_weights": weights, "init_ema": carry}
    with caplog.at_level("INFO"):
        module = started(file, weights="raw", **flags)
    state = module.state_dict()
    prefix = {"raw": "", "ema": "ema."}[weights]
    for key in raw:
        assert torch.equal(state[key], saved[prefix + key])
        assert torch.equal(state[f"ema.{key}"], saved[f"ema.{key}" if carry else prefix + key])
    assert module.average_steps == (23 if carry else 0)
    kept = "goes on after its 23 steps" if carry else "starts anew"
    assert caplog.messages == [
        f"Took {weights} weights of step 3 from {file}, {len(raw)} tensors, none missing, none "
        f"left over; the average {kept}; the averages of sigma_rel start anew; optimizer, steps, "
        "schedule and data start anew."
    ]


@pytest.mark.parametrize("stage", ["validate", "predict"])
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_elsewhere_weights_chooses(file, stage, weights):
    saved = torch.load(file, weights_only=True)["state_dict"]
    prefix = {"raw": "", "ema": "ema."}[weights]
    other = {"raw": "ema", "ema": "raw"}[weights]
    module = started(file, stage, weights=weights, init_weights=other)
    assert module.ema is None
    for key, value in drawn(module).items():
        assert torch.equal(value, saved[prefix + key])


def test_what_was_trained_is_not_taken_away_again(file):
    module = started(file)
    perturb(module.network)
    before = drawn(module)
    module.setup("validate")
    module.setup("fit")
    assert all(torch.equal(value, before[key]) for key, value in drawn(module).items())


def test_an_average_without_its_steps_or_none_at_all_is_an_error_with_the_flag_that_helps(file):
    content = torch.load(file, weights_only=True)
    torch.save({"state_dict": content["state_dict"]}, file)
    with pytest.raises(UserError, match=r"say after how many steps .*Use --model.init_ema false,"):
        started(file)
    assert started(file, init_ema=False).average_steps == 0
    raw = {key: value for key, value in content["state_dict"].items() if key.startswith(RAW)}
    torch.save(content | {"state_dict": raw}, file)
    with pytest.raises(UserError, match=r"hold an EMA average, got none\. Use --model.init_ema f"):
        started(file)
    with pytest.raises(UserError, match=r"got none\. Use --model.init_weights raw\."):
        started(file, init_weights="ema", init_ema=False)
    with pytest.raises(UserError, match=r"got none\. Use --model.weights raw\."):
        started(file, "predict")
    assert started(file, init_ema=False).average_steps == 0


@pytest.mark.parametrize("broken", ["network.final.weight", "ema.network.final.weight"])
def test_nothing_is_taken_of_a_file_that_does_not_fit(file, broken):
    content = torch.load(file, weights_only=True)
    del content["state_dict"][broken]
    torch.save(content, file)
    module = new_module(init_from=str(file))
    module.add_average()
    before = drawn(module)
    with pytest.raises(UserError, match=r"1 tensors it lacks \(network\.final\.weight\)"):
        module.setup("fit")
    assert all(torch.equal(value, before[key]) for key, value in drawn(module).items())


def with_teacher(dim: int = 3, **settings: object) -> PixelHDMModule:
    module, teacher = new_module(**settings), PatchMeans()
    teacher.dim = dim
    module.loss = TripleLoss(VelocityLoss(), repa=RepaLoss(teacher))
    module.loss.connect(module.network)
    return module


def saved_as(path: Path, module: PixelHDMModule) -> str:
    module.add_average()
    torch.save({"state_dict": module.state_dict(), "global_step": 1}, path)
    return str(path)


def test_a_stage_without_the_teacher_may_follow_one_with_it_and_the_reverse(tmp_path, caplog):
    with_repa, plain = with_teacher(), new_module()
    file = saved_as(tmp_path / "with.ckpt", with_repa)
    with caplog.at_level("INFO"):
        assert started(Path(file)).average_steps == 1  # of a file that tells no earlier ones
    assert "; repa of the loss (6 tensors) is left out; opt" in caplog.text
    file = saved_as(tmp_path / "without.ckpt", plain)
    after = with_teacher(init_from=file)
    before = {key: value.clone() for key, value in after.loss.state_dict().items()}
    with caplog.at_level("INFO"):
        after.setup("fit")
    assert "; repa of the loss (6 tensors) starts anew; opt" in caplog.text
    assert all(torch.equal(value, before[key]) for key, value in after.loss.state_dict().items())


def test_a_projector_is_taken_and_what_of_it_has_another_shape_starts_anew(tmp_path, caplog):
    small = with_teacher(3)
    large = with_teacher(5, init_from=saved_as(tmp_path / "small.ckpt", small))
    before = {key: value.clone() for key, value in large.loss.state_dict().items()}
    with caplog.at_level("INFO"):
        large.setup("fit")
    assert "; repa of the loss (2 tensors) starts anew" in caplog.text
    for key, value in large.loss.state_dict().items():
        is_last = key.startswith("terms.repa.projector.4")
        assert torch.equal(value, (before if is_last else small.loss.state_dict())[key])
