import pytest
import torch
from torch import Tensor, nn

from pixelhdm.errors import UserError
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.pixelhdm import PixelHDM
from tests.stubs import TINY, context, perturb, randn, tiny_network

VARIANTS = {
    "default": {},
    "full": {"pixel_modulation": "full"},
    "post": {"post_modulation": True},
    "full post": {"pixel_modulation": "full", "post_modulation": True},
    "patch network": {"pixel_depth": 0},
    "one head each": {"num_kv_heads": 4},
}
variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def inputs(height: int = 4, width: int = 6) -> tuple[Tensor, Tensor]:
    return randn(2, height, width, 3), torch.tensor([0.2, 0.7])


@variant
def test_a_new_network_predicts_exactly_zero(changes):
    output, features, _ = tiny_network(**changes)(*inputs(), context(2, 3))
    assert torch.equal(output, torch.zeros(2, 4, 6, 3))
    assert features.abs().max() > 0


@variant
def test_every_parameter_of_a_trained_network_has_a_gradient(changes):
    network, conditioner = perturb(tiny_network(**changes)), ClassConditioner(32, 2, num_tokens=3)
    out = network(*inputs(), conditioner(torch.tensor([0, 1])))
    out.output.square().sum().backward()
    unused = [name for name, p in network.named_parameters() if not p.grad.abs().max() > 0]
    assert unused == []
    for table in (conditioner.tokens, conditioner.pooled):
        assert (table.weight.grad.abs().amax(dim=1) > 0).tolist() == [True, True, False]


@variant
@pytest.mark.parametrize("part", ["tokens", "pooled"])
def test_condition_and_time_reach_the_output(changes, part):
    network, given = perturb(tiny_network(**changes)), context(2, 3)
    z, t = inputs()
    other = given._replace(**{part: getattr(context(2, 3, seed=9), part)})
    output = network(z, t, given).output
    for changed in (network(z, t, other), network(z, t + 0.1, given), network(z + 0.1, t, given)):
        assert ((changed.output - output).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize("part", ["tokens", "pooled"])
def test_condition_and_time_reach_the_patch_path(part):
    network, given = perturb(tiny_network()), context(2, 3)
    z, t = inputs()
    other = given._replace(**{part: getattr(context(2, 3, seed=9), part)})
    features = network(z, t, given).features
    for changed in (network(z, t, other), network(z, t + 0.1, given)):
        assert ((changed.features - features).abs().amax(dim=(1, 2)) > 1e-3).all()


def test_pooled_condition_and_time_reach_the_pixel_path_by_themselves():
    network, given = perturb(tiny_network()), context(2, 3)
    for block in network.patch_blocks:  # the patch path no longer knows them
        block.modulation.weight.data.zero_()
    z, t = inputs()
    pooled = network(z, t, given._replace(pooled=-given.pooled))
    for changed in (pooled, network(z, t + 0.1, given)):
        assert torch.equal(changed.features, network(z, t, given).features)
        assert (changed.output - network(z, t, given).output).abs().max() > 1e-3


@pytest.mark.parametrize("mask_of", ["padding", "all true"])
def test_padding_and_masks_change_nothing(mask_of):
    network, given = perturb(tiny_network()), context(2, 3)
    plain = network(*inputs(), given)
    mask = torch.ones(2, 3, dtype=torch.bool)
    masked = given._replace(mask=mask)
    if mask_of == "padding":
        junk = torch.cat([given.tokens, 50 * randn(2, 4, 32)], dim=1)
        masked = Context(junk, torch.cat([mask, torch.zeros(2, 4).bool()], dim=1), given.pooled)
    torch.testing.assert_close(network(*inputs(), masked), plain, rtol=1e-4, atol=1e-5)


def test_samples_of_different_context_length_share_a_batch():
    network, z, t = perturb(tiny_network()), *inputs()
    short, long = context(1, 2), context(1, 5, seed=4)
    both = network(z, t, short.cat(long)).output
    for i, alone in enumerate((short, long)):
        one = network(z[i : i + 1], t[i : i + 1], alone).output
        torch.testing.assert_close(both[i : i + 1], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("patch_size", "height", "width"), [(1, 3, 2), (3, 6, 9), (8, 16, 8)])
def test_any_patch_size_and_shape(patch_size, height, width):
    network = perturb(tiny_network(patch_size=patch_size))
    output, features, _ = network(*inputs(height, width), context(2, 0))
    assert output.shape == (2, height, width, 3)
    assert features.shape == (2, height * width // patch_size**2, 32)
    assert output.std() > 0


def test_patches_are_told_apart_by_their_place():
    network = perturb(tiny_network())
    z = randn(1, 2, 2, 3).repeat(1, 2, 3, 1)
    z[:, :2, :2] += 1
    output = network(z, torch.tensor([0.5]), context(1, 1)).output
    cells = output.unfold(1, 2, 2).unfold(2, 2, 2).flatten(0, 2).flatten(1)[1:]  # the equal ones
    assert (torch.cdist(cells, cells) + torch.eye(5) > 1e-5).all()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_features_are_the_image_tokens_after_the_feature_block(number):
    network = perturb(tiny_network(feature_block=number))
    seen = []
    network.patch_blocks[number - 1].register_forward_hook(lambda m, i, out: seen.append(out))
    features = network(*inputs(), context(2, 3)).features
    assert torch.equal(features, seen[0][:, 3:])
    assert features.shape == (2, 6, 32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_kv_heads": 3}, ["num_kv_heads must divide num_heads=4", "got 3"]),
        ({"num_kv_heads": 0}, ["num_kv_heads must divide num_heads=4", "got 0"]),
        ({"rope_dims": (2, 2, 2)}, ["rope_dims", "head_dim=8", "got [2, 2, 2]", "Give about"]),
        ({"rope_dims": (3, 3, 2)}, ["even numbers", "got [3, 3, 2]"]),
        ({"rope_dims": (12, -2, -2)}, ["even numbers", "got [12, -2, -2]"]),
        ({"feature_block": 4}, ["feature_block must lie in 1 … patch_depth=3", "got 4"]),
        ({"feature_block": 0}, ["feature_block must lie in 1 … patch_depth=3", "got 0"]),
    ],
)
def test_wrong_arguments_are_named(changes, words):
    with pytest.raises(UserError) as error:
        tiny_network(**changes)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("name", ["hidden_dim", "pixel_dim", "patch_size", "num_heads", "head_dim"])
def test_sizes_are_positive(name):
    with pytest.raises(UserError, match=rf"{name} must .*got 0"):
        tiny_network(**{name: 0} | ({"rope_dims": (0, 0, 0)} if name == "head_dim" else {}))


@pytest.mark.parametrize(
    ("height", "width", "remedy"), [(5, 4, "4x4"), (4, 7, "4x8"), (1, 2, "2x2"), (0, 4, "2x4")]
)
def test_wrong_image_sizes_are_named(height, width, remedy):
    words = f"multiples of patch_size=2, got {height}x{width}. Use {remedy}"
    with pytest.raises(UserError, match=words):
        tiny_network()(torch.zeros(1, height, width, 3), torch.zeros(1), context(1, 0))


def test_negative_image_sizes_are_refused():
    with pytest.raises(UserError, match="-4x4"):
        tiny_network().check_size(-4, 4)


def test_bfloat16_autocast_stays_near_float32():
    network = perturb(tiny_network())
    exact = network(*inputs(), context(2, 3)).output
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(*inputs(), context(2, 3)).output
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()


def test_reset_parameters_makes_a_new_network():
    network = perturb(tiny_network(), std=1.0)
    network.reset_parameters()
    assert torch.equal(network(*inputs(), context(2, 3)).output, torch.zeros(2, 4, 6, 3))


def test_parts_of_the_default_network():
    with torch.device("meta"):
        network = PixelHDM()

    def count(part: nn.Module) -> int:
        return sum(p.numel() for p in part.parameters())

    assert count(network) == 356_708_483
    assert count(network.patch_embedding) == 458_752
    assert count(network.time_embedding) == 1_312_768
    assert count(network.patch_blocks[0]) == 18_376_832
    assert count(network.patch_blocks[0].attention) == 2_637_952
    assert count(network.pixel_embedding) == 64
    assert count(network.final) == 51
    assert TINY.keys() <= PixelHDM.__init__.__annotations__.keys()
