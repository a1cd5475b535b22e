from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pixelhdm.data.draw_list import class_draws
from pixelhdm.data.draws import Draws
from pixelhdm.errors import UserError
from pixelhdm.inference.drawable import check_weaker
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.model import Model
from pixelhdm.inference.request import Request
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.training.flow import FlowMatching
from tests.stubs import HashConditioner, perturb, randn, tiny_network

Z, T = randn(3, 4, 4, 3), 0.4
REQUEST = Request(torch.tensor([0, 1, 2]), [1, 2, 3], 4, 4)


def model(std: float = 0.1) -> Model:
    network = perturb(tiny_network(), std)  # it seeds what comes after it, too
    conditioner = perturb(ClassConditioner(32, 3, num_tokens=2), std)
    return Model(network.eval(), conditioner.eval(), FlowMatching())


def state(own: Model) -> dict[str, Tensor]:
    return nn.ModuleDict({"network": own.network, "conditioner": own.conditioner}).state_dict()


@pytest.fixture
def weak_file(tmp_path) -> Path:
    """A run's checkpoint: a weak average, a weaker raw model, and a loss's own weights."""
    average = {f"ema.{key}": value for key, value in state(model(0.05)).items()}
    raw = state(model(0.02)) | {"loss.terms.repa.weight": torch.ones(2)}
    file = tmp_path / "run/checkpoints/step_00000010.ckpt"
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": raw | average}, file)
    return file


@torch.no_grad()
def asked(own: Model, guidance: Guidance | None = None) -> Tensor:
    if guidance is None:
        return own.velocity(Z, T, REQUEST.given(own.conditioner))
    return guidance.velocity(own, REQUEST.given, REQUEST.away, REQUEST.seeds)(Z, T)


@pytest.mark.parametrize(("weights", "std"), [("ema", 0.05), ("raw", 0.02)])
@pytest.mark.parametrize("is_folder", [True, False])
def test_autoguidance_leads_away_from_the_weaker_model(weak_file, weights, std, is_folder):
    source = weak_file.parent.parent if is_folder else weak_file
    strong = model()
    before = {key: value.clone() for key, value in state(strong).items()}
    found = asked(strong, Guidance(2.5, weak=str(source), weak_weights=weights))
    c, w = asked(strong), asked(model(std))
    torch.testing.assert_close(found, w + 2.5 * (c - w), rtol=1e-5, atol=1e-5)
    assert (c - w).abs().max() > 0.01
    for key, value in state(strong).items():
        assert torch.equal(value, before[key])


def test_copies_of_another_strength_share_the_weaker_model(weak_file):
    guidance, strong = Guidance(2.0, weak=str(weak_file)), model()
    other = guidance.at(3.0)
    asked(strong, other)
    first = guidance.weaker.model_like(strong)
    assert guidance.at(None).weaker.model_like(strong) is first
    assert not first.network.training
    assert not any(p.requires_grad for p in first.network.parameters())
    weak_file.unlink()  # it was read once
    assert torch.isfinite(asked(strong, guidance)).all()


def test_it_is_not_read_where_guidance_is_off(tmp_path):
    file = tmp_path / "torn.ckpt"
    file.touch()
    guidance, strong = Guidance(1.0, weak=str(file)), model()
    assert torch.equal(asked(strong, guidance), asked(strong))
    with pytest.raises(UserError, match=r"torn\.ckpt is torn or not a checkpoint"):
        asked(strong, guidance.at(2.0))


def test_rescale_and_interval_hold_for_it_too(weak_file):
    strong = model()
    guidance = Guidance(6.0, interval=(0.5, 1.0), weak=str(weak_file))
    assert torch.equal(asked(strong, guidance), asked(strong))
    found = asked(strong, Guidance(6.0, rescale=1.0, weak=str(weak_file)))
    torch.testing.assert_close(found.std(dim=(1, 2, 3)), asked(strong).std(dim=(1, 2, 3)))


def test_it_follows_the_device(weak_file):
    guidance, strong = Guidance(2.0, weak=str(weak_file)), model()
    weak = guidance.weaker.model_like(strong)
    elsewhere = Model(strong.network.to("meta"), strong.conditioner.to("meta"), strong.flow)
    assert guidance.weaker.model_like(elsewhere) is weak
    assert weak.device == torch.device("meta")


def test_hooks_of_others_are_not_copied(weak_file):
    """Those of a callback hold the trainer, which cannot be copied."""
    strong, calls, trainer = model(), [], iter([])
    hook = strong.conditioner.register_forward_hook(lambda *_: calls.append(next(trainer, 1)))
    found = asked(strong, Guidance(2.0, weak=str(weak_file)))
    assert len(calls) == 1
    hook.remove()
    assert torch.equal(found, asked(strong, Guidance(2.0, weak=str(weak_file))))


def test_a_weaker_model_of_other_conditions_is_refused(weak_file):
    guidance, strong = Guidance(2.0, weak=str(weak_file)), model()
    items = class_draws(Draws(1), (4, 4)).items
    check_weaker(items, strong, guidance)
    guidance.weaker.model = strong._replace(conditioner=HashConditioner(32))
    with pytest.raises(UserError, match=r"^guidance.weak: conditions must be captions for Hash"):
        check_weaker(items, strong, guidance)
    with pytest.raises(UserError, match=r"^conditions must be captions for Hash"):
        asked(strong, guidance)


def test_missing_files_are_named_at_once(tmp_path):
    missing = str(tmp_path / "nothing.ckpt")
    with pytest.raises(UserError, match=r"guidance\.weak must .*nothing\.ckpt, which does not"):
        Guidance(2.0, weak=missing)
    with pytest.raises(UserError, match=r"guidance\.weak must be .* has none in checkpoints/"):
        Guidance(2.0, weak=str(tmp_path))


def test_what_does_not_fit_is_named(weak_file):
    small = Model(
        tiny_network(patch_depth=2), ClassConditioner(32, 3, num_tokens=2), FlowMatching()
    )
    with pytest.raises(
        UserError, match=r"step_00000010\.ckpt does not fit the config: \d+ tensors"
    ):
        asked(small, Guidance(2.0, weak=str(weak_file)))


def test_a_missing_average_is_named_with_the_flag_that_helps(tmp_path):
    file = tmp_path / "raw.ckpt"
    torch.save({"state_dict": state(model())}, file)
    with pytest.raises(UserError, match=r"EMA average.*--model\.guidance\.weak_weights raw"):
        asked(model(), Guidance(2.0, weak=str(file)))


def test_negative_prompts_have_no_effect_beside_it(weak_file):
    said = Guidance(2.0, weak=str(weak_file)).idle_negative
    assert said.startswith("beside a weaker model")
