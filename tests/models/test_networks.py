"""What all networks of the field must do alike."""

import pytest
import torch

from pixelhdm.errors import UserError
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.dit import DiT, PixelDiT
from pixelhdm.models.jit import JiT
from pixelhdm.models.mmdit import MMDiT, MMPixelDiT
from pixelhdm.models.text_jit import TextJiT
from pixelhdm.training.optim.groups import parameter_groups
from tests.models.networks import DIM, TAKES_TOKENS, TINY, small
from tests.stubs import perturb, randn

T = torch.tensor([0.1, 0.8])
ALL = pytest.mark.parametrize("kind", TINY, ids=lambda kind: kind.__name__)
TEXT = pytest.mark.parametrize("kind", TAKES_TOKENS, ids=lambda kind: kind.__name__)
OVERSIZED = {"depth": 9, "patch_depth": 9}


def context(kind: type, length: int = 3, mask: torch.Tensor | None = None) -> Context:
    length = length if kind in TAKES_TOKENS else 0
    return Context(randn(2, length, DIM, seed=5), mask, randn(2, DIM, seed=6))


def image(height: int = 8, width: int = 12) -> torch.Tensor:
    return randn(2, height, width, 3, seed=7)


@ALL
def test_a_new_network_predicts_zero_and_learns_at_its_last_layer(kind):
    network = small(kind)
    out = network(image(), T, context(kind))
    assert out.output.shape == (2, 8, 12, 3)
    assert out.features.shape == (2, 6, DIM)
    assert not out.output.any()
    (out.output - image()).square().mean().backward()
    learns = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    last = {n for n, p in network.named_parameters() if p is network.last_layer.weight}
    assert last <= learns
    assert {name.rpartition(".")[0] for name in learns} == {next(iter(last)).rpartition(".")[0]}


@ALL
def test_every_trained_parameter_gets_a_gradient_and_the_condition_reaches_the_pixels(kind):
    network = perturb(small(kind))
    given = context(kind)
    given.pooled.requires_grad_()
    given.tokens.requires_grad_()
    out = network(image(), T, given)
    (out.output.square().mean() + out.features.square().mean()).backward()
    lacking = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking
    assert given.pooled.grad.any()
    assert kind not in TAKES_TOKENS or given.tokens.grad.abs().sum(-1).all()
    trained = {p for group in parameter_groups(network) for p in group["params"]}
    assert trained == {p for p in network.parameters() if p.requires_grad}


@TEXT
def test_padding_changes_nothing(kind):
    network = perturb(small(kind)).eval()
    tokens, pooled = randn(2, 5, DIM, seed=5), randn(2, DIM, seed=6)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]).bool()
    short = network(image(), T, Context(tokens[:, :3], None, pooled))
    filled = Context(torch.where(mask[..., None], tokens, 100.0), mask, pooled)
    torch.testing.assert_close(network(image(), T, filled), short, atol=1e-5, rtol=1e-5)
    one = Context(tokens, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool(), pooled)
    both = network(image(), T, one)
    torch.testing.assert_close(both.output[1], short.output[1], atol=1e-5, rtol=1e-5)
    assert (both.output[0] - short.output[0]).abs().max() > 1e-3


@ALL
def test_images_of_a_batch_do_not_mix_and_height_is_not_width(kind):
    network = perturb(small(kind)).eval()
    given = context(kind)
    both = network(image(), T, given).output
    alone = network(image()[1:], T[1:], Context(given.tokens[1:], None, given.pooled[1:])).output
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-5)
    turned = network(image().transpose(1, 2), T, given).output.transpose(1, 2)
    assert (turned - both).abs().max() > 1e-3


@ALL
def test_features_are_those_of_the_block_asked_for(kind):
    """The last block's features of a network are those of a later block of a deeper one."""
    depth = "patch_depth" if "patch_depth" in TINY[kind] else "depth"
    num = TINY[kind][depth]
    deep = perturb(small(kind, feature_block=num, **{depth: num + 1})).eval()
    flat = small(kind, feature_block=num).eval()
    own = flat.state_dict()
    flat.load_state_dict({key: value for key, value in deep.state_dict().items() if key in own})
    args = image(), T, context(kind)
    torch.testing.assert_close(deep(*args).features, flat(*args).features)


@ALL
def test_recomputing_activations_changes_no_gradient(kind):
    gradients = []
    for mode in ("none", "selective", "all"):
        torch.manual_seed(0)
        network = perturb(small(kind, grad_checkpoint=mode)).train()
        network(image(), T, context(kind)).output.square().mean().backward()
        gradients.append([p.grad for p in network.parameters() if p.requires_grad])
    none, *others = gradients
    assert all(all(map(torch.equal, none, other)) for other in others)


@ALL
def test_bfloat16_under_autocast_is_near(kind):
    learned = {"learned_grid": 2} if issubclass(kind, (DiT, MMDiT)) else {}
    network = perturb(small(kind, **learned)).eval()
    args = image(), T, context(kind)
    with torch.no_grad():
        exact = network(*args).output
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(*args).output.float()
    assert (rough - exact).abs().mean() < 0.03 * exact.abs().mean()


@ALL
def test_a_step_overfits_one_batch(kind):
    torch.manual_seed(0)
    network, given, target = small(kind), context(kind), image().flip(1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(40):
        loss = (network(image(), T, given).output - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.35 * target.square().mean()


@pytest.mark.parametrize("kind", [DiT, PixelDiT, MMDiT, MMPixelDiT], ids=lambda k: k.__name__)
def test_learned_positions_and_integer_rotary_positions(kind):
    network = perturb(small(kind, learned_grid=2, rope_extent=None)).eval()
    for size in ((8, 8), (8, 12), (4, 4)):
        assert network(image(*size), T, context(kind)).output.isfinite().all()
    own = network.positions(2, 2)
    assert torch.equal(own, network.positions.table.flatten(0, 1))
    assert network.positions(3, 5).shape == (15, DIM)


@pytest.mark.parametrize("kind", [PixelDiT, MMPixelDiT], ids=lambda k: k.__name__)
@pytest.mark.parametrize("changes", [{"post_modulation": True}, {"pixel_modulation": "factored"}])
def test_other_modulations_start_at_zero_and_learn(kind, changes):
    network = small(kind, **changes)
    assert not network(image(), T, context(kind)).output.any()
    perturb(network)(image(), T, context(kind)).output.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_the_last_text_stream_is_frozen_and_has_no_say():
    network = perturb(small(MMDiT)).eval()
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    own = "blocks.1.text."
    parts = ("attention.out.weight", "attention.out.bias", "attention.q_norm.weight")
    mlp = [f"{own}mlp.{name}.weight" for name in ("gate", "up", "out")]
    assert frozen == {*(own + part for part in parts), own + "norm2.weight", *mlp}
    before = network(image(), T, context(MMDiT)).output
    for name, value in network.named_parameters():
        if name in frozen:
            value.data.normal_()
    assert torch.equal(network(image(), T, context(MMDiT)).output, before)


def test_noise_time_embeds_what_is_left_of_the_time():
    """1000 (1 - t) in one network is t in another whose sinusoids are scaled so."""
    noise, plain = small(MMDiT, noise_time=True), small(MMDiT)
    plain.load_state_dict(noise.state_dict())
    plain.time_embedding.scale = 1000.0
    torch.testing.assert_close(noise.embed_time(1 - T), plain.embed_time(T), atol=1e-3, rtol=1e-3)


def test_dropout_works_in_the_middle_blocks_in_training_alone():
    network = perturb(small(JiT, depth=8, dropout=0.5))
    rates = [block.attention.dropout for block in network.blocks]
    assert rates == [block.mlp.dropout for block in network.blocks]
    assert rates == [0.0] * 2 + [0.5] * 4 + [0.0] * 2
    args = image(), T, context(JiT)
    assert torch.equal(network.eval()(*args).output, network(*args).output)
    assert not torch.equal(network.train()(*args).output, network(*args).output)


def test_class_tokens_enter_at_their_block():
    """Before in_context_start the blocks cannot see them; a network without them differs."""
    network = perturb(small(JiT, feature_block=1, in_context_start=1)).eval()
    first = network(image(), T, context(JiT))
    network.in_context_position.data.normal_()
    second = network(image(), T, context(JiT))
    assert torch.equal(first.features, second.features)
    assert not torch.equal(first.output, second.output)
    assert small(JiT, in_context_len=0)(image(), T, context(JiT)).output.shape == (2, 8, 12, 3)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (DiT, {"num_heads": 3}, "num_heads must divide the width 32 into heads of a multiple of 4"),
        (DiT, {"mlp_ratio": 0}, "mlp_ratio must be above 0, got 0"),
        (DiT, {"rope_extent": -1.0}, "rope_extent must be above 0 or empty, got -1"),
        (DiT, {"learned_grid": 0}, "side must be at least 1, got 0"),
        (PixelDiT, {"pixel_depth": 0}, "pixel_depth must be at least 1, got 0"),
        (PixelDiT, {"pixel_dim": 6}, "pixel_dim must be a multiple of 4, got 6"),
        (MMDiT, {"num_heads": 0}, "num_heads must divide the width 32"),
        (MMPixelDiT, {"pixel_num_heads": 0}, "num_heads must divide the width 16"),
        (JiT, {"num_heads": 0}, "num_heads must divide the width 32"),
        (MMPixelDiT, {"pixel_num_heads": 3}, "num_heads must divide the width 16"),
        (MMDiT, {"feature_block": 3}, "feature_block must lie in 1 … 2, got 3"),
        (JiT, {"in_context_start": 4}, "in_context_start must lie in 0 … 3, below depth=4, got 4"),
        (JiT, {"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        (JiT, {"bottleneck_dim": 0}, "bottleneck_dim must be at least 1, got 0"),
        (TextJiT, {"text_depth": -1}, "text_depth must be at least 0, got -1"),
        (TextJiT, {"num_heads": 5}, "num_heads must divide the width 32"),
    ],
)
def test_wrong_settings_are_errors(kind, changes, message):
    with pytest.raises(UserError, match=message):
        small(kind, **changes)


def test_jit_starts_with_the_bounds_of_its_joined_matrices():
    torch.manual_seed(0)
    block = small(JiT, hidden_dim=64).blocks[0]
    inner = block.mlp.gate.out_features
    for layer, outputs in ((block.attention.qkv, 3 * 64), (block.mlp.gate, 2 * inner)):
        bound = (6 / (64 + outputs)) ** 0.5
        assert 0.98 * bound < layer.weight.abs().max() <= bound


def test_jit_refuses_tokens_of_its_own():
    with pytest.raises(UserError, match=r"got 3 context tokens\. Set model\.conditioner"):
        small(JiT)(image(), T, Context(randn(2, 3, DIM), None, randn(2, DIM)))


@ALL
def test_wrong_sizes_are_errors(kind):
    with pytest.raises(UserError, match=r"multiples of patch_size=4, got 8x10\. Use 8x8"):
        small(kind)(image(8, 10), T, context(kind))
