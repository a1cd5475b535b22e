import logging

import pytest
import torch

from pixelhdm.data.draw_list import prompt_draws
from pixelhdm.data.draw_loader import DrawLoader
from pixelhdm.data.draws import Draws
from pixelhdm.data.prompt_fields import Prompt
from pixelhdm.data.prompts import PromptList
from pixelhdm.errors import UserError
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.request import Request
from pixelhdm.inference.samplers import HeunSampler
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.routing import TokenRouting
from pixelhdm.module import PixelHDMModule, mean_total, name_idle_routing
from pixelhdm.training.draws import draw
from pixelhdm.training.flow import FlowMatching
from pixelhdm.training.losses.frequency import FrequencyLoss
from pixelhdm.training.losses.repa import RepaLoss
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import HashConditioner, perturb, randn, tiny_network
from tests.tiny_dino import PatchMeans


def new_module(null_prob: float = 0.1, **rest) -> PixelHDMModule:
    parts = (HeunSampler(2), Guidance(2.0))
    network = perturb(tiny_network(), std=0.05)

    def conditioner(dim: int) -> ClassConditioner:
        return perturb(ClassConditioner(dim, 10, 2, null_prob))

    loss = TripleLoss(VelocityLoss(), FrequencyLoss())
    return PixelHDMModule(network, conditioner, *parts, loss=loss, **rest)


def text_module() -> PixelHDMModule:
    network = perturb(tiny_network(), std=0.1)

    def conditioner(dim: int) -> HashConditioner:
        return HashConditioner(dim)

    return PixelHDMModule(network, conditioner, HeunSampler(2), Guidance(2.0)).eval()


def batch(num: int = 4, size: int = 4) -> dict[str, torch.Tensor]:
    image = (randn(num, size, size, 3).clamp(-1, 1) * 127.5 + 127.5).to(torch.uint8)
    seed, weight = torch.arange(num) + 5, torch.ones(num)
    return {
        "image": image,
        "condition": torch.arange(num),
        "seed": seed,
        "weight": weight,
        "index": torch.arange(num),
    }


def loss(module: PixelHDMModule, given: dict[str, torch.Tensor]) -> torch.Tensor:
    values, _ = module.losses(given, module.network, module.conditioner)
    return (given["weight"] / mean_total(given["weight"]) * values["total"]).sum()


def test_padding_of_a_batch_leaves_loss_and_gradients_equal():
    module, whole = new_module(), batch(3)
    padded = {key: torch.cat([value, value[:1]]) for key, value in whole.items()}
    padded["weight"][3] = 0
    gradients = []
    for given in (whole, padded):
        module.zero_grad()
        loss(module, given).backward()
        gradients.append([p.grad.clone() for p in module.parameters()])
    torch.testing.assert_close(loss(module, padded), loss(module, whole))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_loss_of_a_batch_is_the_mean_over_its_samples_whatever_their_company():
    module, given = new_module(null_prob=0.5), batch(6)
    alone = [
        loss(module, {key: value[i : i + 1] for key, value in given.items()}) for i in range(6)
    ]
    torch.testing.assert_close(loss(module, given), torch.stack(alone).mean(), rtol=1e-5, atol=1e-6)


def test_loss_of_a_batch_of_padding_is_zero():
    given = batch() | {"weight": torch.zeros(4)}
    assert loss(new_module(), given).item() == 0


def test_a_new_network_loses_the_mean_square_of_the_velocity():
    module = new_module()
    module.network.reset_parameters()
    white = batch(200, 4) | {"image": torch.full((200, 4, 4, 3), 255, dtype=torch.uint8)}
    white["condition"] = white["condition"] % 10
    values, _ = module.losses(white, module.network, module.conditioner)
    assert values["velocity"].mean().item() == pytest.approx(2.0, abs=0.1)  # |1 - noise|²


@pytest.mark.parametrize(("null_prob", "dropped"), [(0.0, 0), (1.0, 400), (0.25, 100)])
@pytest.mark.parametrize("training", [True, False])
def test_conditions_are_dropped_in_training_alone(null_prob, dropped, training):
    module, seen = new_module(null_prob).train(training), []
    module.conditioner.pooled.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    given = batch(400, 2) | {"condition": torch.zeros(400, dtype=torch.long)}
    loss(module, given)
    assert (seen[0] == 10).sum().item() == pytest.approx(dropped * training, abs=25)
    first = seen[0]
    loss(module, given)
    assert torch.equal(first, seen[1])  # by the samples' seeds


def test_drawing_is_the_same_at_any_batch_size_and_leaves_the_generator_alone():
    """Within one level of 255."""
    module = new_module().eval()
    classes, seeds = torch.tensor([3, 1, 3]), [0, 1, 2]
    before = torch.get_rng_state()
    whole = module.draw(Request(classes, seeds, 4, 6))
    assert torch.equal(before, torch.get_rng_state())
    assert whole.shape == (3, 4, 6, 3)
    assert whole.dtype == torch.uint8
    alone = [module.draw(Request(classes[i : i + 1], [i], 4, 6)) for i in range(3)]
    assert (torch.cat(alone).int() - whole.int()).abs().max() <= 1


def test_prompts_are_drawn_the_same_in_any_company():
    """Of their own text, negative, seed, size and scale alone; within one level of 255."""
    module = text_module()
    both = Prompt("a red barn", "", "rain and snow"), Prompt("sea", "", "")
    prompts = [*both, both[0]._replace(scale=4.0), both[1]._replace(height=6)]
    items = prompt_draws(PromptList(prompts, "plain", ""), Draws(num_images=2), (4, 4)).items
    drawn = []
    for batch_size in (1, 3):
        own = {}
        for batch in DrawLoader(items, batch_size):
            own |= zip(batch["items"], module.predict_step(batch, 0).int(), strict=True)
        drawn.append(own)
    assert [drawn[0][item].shape for item in items[-3:]] == [(4, 4, 3), (6, 4, 3), (6, 4, 3)]
    for item in items:
        assert (drawn[0][item] - drawn[1][item]).abs().max() <= 1
    assert len({str(drawn[0][item].tolist()) for item in items}) == 8


def test_a_negative_prompt_takes_the_place_of_the_null():
    module, texts, negative = text_module(), ["a red barn", "sea"], ["rain and snow", ""]
    request = Request(texts, [0, 1], 4, 4)

    def drawn(scale: float, request: Request) -> torch.Tensor:
        drawing = module.drawing._replace(guidance=module.guidance.at(scale))
        return module.draw(request, drawing=drawing)

    plain = module.draw(request)
    away = module.draw(request._replace(negative=negative))
    assert (away[0].int() - plain[0].int()).abs().max() > 3
    assert (away[1].int() - plain[1].int()).abs().max() <= 1
    at_one = [drawn(1.0, request._replace(negative=n)) for n in (negative, None)]
    assert torch.equal(*at_one)
    assert not torch.equal(at_one[0], plain)
    assert module.guidance.scale == 2.0
    at_zero = drawn(0.0, Request(texts[:1], [0], 4, 4, negative[:1]))
    of_it = drawn(1.0, Request(negative[:1], [0], 4, 4))
    assert (at_zero.int() - of_it.int()).abs().max() <= 1


def test_drawing_refuses_wrong_sizes_and_classes():
    module = new_module()
    with pytest.raises(UserError, match="multiples of patch_size=2, got 5x4"):
        module.draw(Request(torch.tensor([1]), [0], 5, 4))
    with pytest.raises(UserError, match="class must lie in 0 … 9"):
        module.draw(Request(torch.tensor([10]), [0], 4, 4))


def test_optimizer_has_every_trained_parameter_and_not_the_average():
    module = new_module(optimizer=lambda parts: torch.optim.SGD(parts, lr=1.0))
    module.add_average()
    groups = module.configure_optimizers().param_groups
    trained = [*module.network.parameters(), *module.conditioner.parameters()]
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in trained}
    with pytest.raises(UserError, match="optimizer must be given to train, got none"):
        new_module().configure_optimizers()


def test_held_out_images_have_the_same_even_times_in_every_run():
    module, given = new_module(null_prob=0.5).eval(), batch(400)
    given["condition"] = given["condition"] % 10
    values, t = module.losses(given, module.network, module.conditioner)
    again, _ = module.losses(given, module.network, module.conditioner)
    assert all(torch.equal(values[name], again[name]) for name in values)
    assert torch.equal(t, FlowMatching().even_time(torch.arange(400)))
    counts = torch.histc((t - 0.05) / 0.9, bins=10, min=0, max=1)
    assert counts.min() >= 38
    assert counts.max() <= 42


def test_a_batch_can_be_overfitted():
    module, given = new_module(null_prob=0.0), batch(4)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.0)
    first = loss(module, given).item()
    for _ in range(120):
        optimizer.zero_grad()
        value = loss(module, given)
        value.backward()
        optimizer.step()
    assert value.item() < 0.2 * first


def test_the_teacher_is_read_before_the_first_step():
    module = new_module()
    term = RepaLoss(PatchMeans())
    module.loss = TripleLoss(VelocityLoss(), repa=term)
    module.on_fit_start()
    assert term.teacher.num_reads == 1


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_stage_that_needs_a_loss_says_so(stage):
    module = new_module()
    module.loss = None
    with pytest.raises(UserError, match="loss must be given to fit and to validate, got none"):
        module.setup(stage)
    module.setup("predict")


def test_training_times_follow_the_flows_law():
    module, given = new_module(flow=FlowMatching(time_mean=-1.0, time_std=0.5)), batch(400, 2)
    given["condition"] = given["condition"] % 10
    _, t = module.losses(given, module.network, module.conditioner)
    drawn = draw(given["seed"], 2, 2, t.device).time
    assert torch.equal(t, module.flow.time(drawn, 2, 2))
    assert torch.logit((t - 0.05) / 0.9).mean().item() == pytest.approx(-1.0, abs=0.1)


@pytest.mark.parametrize("training", [True, False])
def test_times_and_noise_follow_the_size_of_the_images(training, monkeypatch):
    """A batch of 4x4 pixels where the values hold at 2x2; held-out times stay even."""
    plain, large = (
        FlowMatching(time_shift=3.0),
        FlowMatching(time_shift=1.5, reference_size=2, time_shift_power=1.0, noise_scale_power=1.0),
    )
    seen, sample = [], FlowMatching.sample
    monkeypatch.setattr(
        FlowMatching, "sample", lambda *given: seen.append(sample(*given)) or seen[-1]
    )
    for flow in (plain, large):
        module, given = new_module(flow=flow).train(training), batch(4, 4)
        module.losses(given, module.network, module.conditioner)
    assert torch.equal(seen[0].t, seen[1].t)
    torch.testing.assert_close(seen[1].noise, 2 * seen[0].noise)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_only_the_ratio_of_weights_matters(factor):
    module, given = new_module(), batch()
    scaled = given | {"weight": factor * given["weight"]}
    torch.testing.assert_close(loss(module, scaled), loss(module, given))


def routed_module() -> PixelHDMModule:
    """One whose images of 8x8 pixels have 16 tokens, 8 of which go around the second block."""
    module = new_module(null_prob=0.5)
    module.network.take_routing(TokenRouting(min_tokens=16), 3)
    return module


def test_routes_of_training_are_the_samples_own():
    module, given, seen = routed_module(), batch(6, size=8), []
    module.network.patch_blocks[1].register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0][:, -8:])
    )
    alone = [
        loss(module, {key: value[i : i + 1] for key, value in given.items()}) for i in range(6)
    ]
    torch.testing.assert_close(loss(module, given), torch.stack(alone).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen[6], torch.cat(seen[:6]))
    other = given | {"seed": given["seed"] + 100}
    assert loss(module, other) != loss(module, given)


def test_all_tokens_take_all_blocks_where_nothing_is_trained_or_images_are_small():
    module, plain = routed_module(), new_module(null_prob=0.5)
    for given, training in ((batch(4, size=8), False), (batch(4, size=6), True)):
        module.train(training)
        plain.train(training)
        assert torch.equal(loss(module, given), loss(plain, given))


def test_routing_that_no_image_is_large_enough_for_is_named(caplog):
    network = routed_module().network
    with caplog.at_level(logging.INFO):
        name_idle_routing(network, [(6, 6), (8, 8)])
        assert not caplog.messages
        name_idle_routing(network, [(6, 6), (4, 8)])
    (said,) = caplog.messages
    assert said.startswith("Warning: routing leaves no tokens out in this run, whose images have")
    assert "at most 9, below min_tokens=16." in said
