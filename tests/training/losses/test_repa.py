import pytest
import torch
from torch import Tensor, nn

from pixelhdm.errors import UserError
from pixelhdm.models.encoders.dino import DINOv2, DINOv3
from pixelhdm.models.encoders.frozen import Frozen
from pixelhdm.models.network import Prediction
from pixelhdm.training.flow import FlowMatching, FlowSample
from pixelhdm.training.losses.repa import RepaLoss, resized, spatially_normalized
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import Sized, context, perturb, randn, tiny_network
from tests.tiny_dino import PatchMeans, quiet, save_dinov3

CPU = torch.device("cpu")


def sample_of(image: Tensor) -> FlowSample:
    return FlowMatching().sample(image, torch.zeros_like(image), torch.full((len(image),), 0.5))


def value(loss: RepaLoss, features: Tensor, image: Tensor) -> Tensor:
    return loss(Prediction(image, features), sample_of(image))


def connected(hidden_dim: int = 3, patch_size: int = 4, **settings: object) -> RepaLoss:
    """A RepaLoss with the teacher PatchMeans."""
    loss = RepaLoss(PatchMeans(), projector_dim=64, **settings)
    torch.manual_seed(0)
    loss.connect(Sized(hidden_dim, patch_size))
    return loss


def without_projector(**settings: object) -> RepaLoss:
    loss = connected(**settings)
    loss.projector = nn.Identity()
    return loss


@pytest.mark.parametrize(("h", "w"), [(3, 3), (2, 5), (1, 2)])
def test_value_is_one_minus_the_cosine_of_each_image(h, w):
    image = randn(3, 4 * h, 4 * w, 3).clamp(-1, 1)
    target = PatchMeans()(image).flatten(1, 2)
    orthogonal = torch.cross(target[2], randn(h * w, 3), dim=-1)
    features = torch.stack([7 * target[0], -target[1], orthogonal])
    expected = torch.tensor([0.0, 2.0, 1.0])
    torch.testing.assert_close(
        value(without_projector(), features, image), expected, rtol=1e-5, atol=1e-5
    )


def test_each_token_is_compared_with_its_own_patch():
    image = randn(1, 8, 12, 3).clamp(-1, 1)
    target, loss = PatchMeans()(image), without_projector()
    assert value(loss, target.flatten(1, 2), image) < 1e-5
    assert value(loss, target.transpose(1, 2).flatten(1, 2), image) > 0.01


@pytest.mark.parametrize("alpha", [1.0, 0.8, 0.0])
def test_conv_normalises_its_targets_over_the_patches(alpha):
    target = randn(2, 3, 5, 4)
    normal = spatially_normalized(target, alpha)
    for image in range(2):
        for channel in range(4):
            y = target[image, :, :, channel].flatten()
            deviation = ((y - y.mean()).square().sum() / (len(y) - 1)).sqrt()
            exact = (y - alpha * y.mean()) / (deviation + 1e-6)
            torch.testing.assert_close(normal[image, :, :, channel].flatten(), exact)
    image = randn(1, 12, 20, 3).clamp(-1, 1)
    features = spatially_normalized(PatchMeans()(image), alpha).flatten(1, 2)
    assert value(without_projector(projector="conv", alpha=alpha), features, image) < 1e-5


@pytest.mark.parametrize(("projector", "count"), [("mlp", 7_869_184), ("conv", 7_078_656)])
def test_sizes_of_the_default_projectors(projector, count):
    loss = RepaLoss(DINOv3(), projector=projector)
    assert list(loss.parameters()) == []
    with torch.device("meta"):
        loss.connect(Sized(1024, 16))
    assert sum(p.numel() for p in loss.parameters()) == count


@pytest.mark.parametrize("projector", ["mlp", "conv"])
def test_a_projector_starts_as_its_source_does_and_always_the_same(projector):
    one, two = connected(64, projector=projector), connected(64, projector=projector)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)
    for layer in one.projector:
        if isinstance(layer, nn.Linear):
            bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
            assert 0.95 * bound < layer.weight.abs().max() <= bound
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.std().item() == pytest.approx((2 / (3 * 9)) ** 0.5, rel=0.05)
        if hasattr(layer, "bias"):
            assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_conv_sees_the_neighbours_on_the_grid_of_any_aspect():
    projector, features = connected(8, projector="conv").projector, randn(1, 4, 6, 8)
    changed = features.clone()
    changed[0, 1, 4] += 1
    touched = (projector(changed) - projector(features)).abs().amax(-1)[0] > 1e-6
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[0:3, 3:6] = True
    assert torch.equal(touched, expected)


@pytest.mark.parametrize(
    ("patch_size", "teacher_size", "size", "grid"),
    [
        (16, None, (256, 256), (16, 16)),
        (16, None, (128, 512), (8, 32)),
        (2, None, (4, 6), (2, 3)),
        (16, 224, (256, 256), (16, 16)),
        (16, 224, (512, 512), (16, 16)),
        (16, 224, (128, 512), (8, 32)),
        (16, 112, (256, 384), (7, 10)),
        (16, 14, (16, 256), (1, 4)),
    ],
)
def test_grid_of_the_teacher(patch_size, teacher_size, size, grid):
    loss = RepaLoss(DINOv2(), teacher_size=teacher_size)
    loss.connect(Sized(8, patch_size))
    assert loss.teacher_grid(*size) == grid


@pytest.mark.parametrize(
    ("patch_size", "teacher_size", "seen"),
    [(8, None, (8, 12)), (4, None, (16, 24)), (2, None, (32, 48)), (8, 10, (8, 12))],
)
def test_the_teacher_sees_the_whole_clean_image_in_its_size(patch_size, teacher_size, seen):
    loss = connected(8, patch_size, teacher_size=teacher_size)
    sizes = []
    loss.teacher.load(CPU).register_forward_hook(lambda m, i, o: sizes.append(i[0].shape[2:]))
    image = randn(1, 16, 24, 3).clamp(-1, 1)
    value(loss, randn(1, 16 * 24 // patch_size**2, 8), image)
    assert sizes == [seen]
    assert resized(image, 16, 24, "bicubic") is image
    smaller = resized(image, 2, 3, "bicubic")
    assert smaller.shape == (1, 2, 3, 3)
    torch.testing.assert_close(smaller.mean(), image.mean(), rtol=0, atol=0.05)


def smooth_image() -> Tensor:
    """Red grows to the right, green downwards; 16 x 24."""
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 24), indexing="ij"
    )
    return torch.stack([columns, rows, torch.zeros(16, 24)], dim=-1)[None]


@pytest.mark.parametrize("resize", ["teacher", "student"])
@pytest.mark.parametrize("teacher_size", [10, 40])
def test_maps_of_different_grids_lie_on_each_other(resize, teacher_size):
    image = smooth_image()
    loss = without_projector(teacher_size=teacher_size, resize=resize)
    assert loss.teacher_grid(16, 24) != (4, 6)
    features = PatchMeans()(image)
    assert value(loss, features.flatten(1, 2), image) < 0.02
    for axis in (1, 2):
        assert value(loss, features.flip(axis).flatten(1, 2), image) > 0.1


@pytest.mark.parametrize("settings", [{}, {"projector": "conv"}, {"teacher_size": 8}])
@pytest.mark.parametrize("resize", ["teacher", "student"])
def test_projector_and_features_learn_and_the_image_does_not(settings, resize):
    loss = connected(8, resize=resize, **settings)
    image = randn(2, 16, 16, 3).clamp(-1, 1).requires_grad_()
    features = nn.Parameter(randn(2, 16, 8))
    optimizer = torch.optim.Adam([*loss.parameters(), features], lr=0.02)
    values = []
    for _ in range(10):
        optimizer.zero_grad()
        values.append(value(loss, features, image).mean())
        values[-1].backward()
        assert all(p.grad.abs().max() > 0 for p in [*loss.parameters(), features])
        optimizer.step()
    assert values[-1] < 0.7 * values[0]
    assert image.grad is None


@pytest.mark.parametrize("projector", ["mlp", "conv"])
def test_value_is_float32_under_bfloat16(projector):
    loss, image = connected(64, projector=projector), randn(2, 8, 12, 3).clamp(-1, 1)
    features = randn(2, 6, 64)
    exact = value(loss, features, image)
    with torch.autocast("cpu", torch.bfloat16):
        near = value(loss, features.bfloat16(), image)
    assert near.dtype == torch.float32
    assert not torch.equal(near, exact)  # the projector did run in bfloat16
    torch.testing.assert_close(near, exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("projector_dim", "width"), [(None, 24), (40, 40)])
def test_width_of_the_projector(projector_dim, width):
    loss = RepaLoss(PatchMeans(), projector_dim=projector_dim)
    loss.connect(Sized(24, 4))
    shapes = [tuple(value.shape) for value in loss.parameters() if value.ndim == 2]
    assert shapes == [(width, 24), (width, width), (3, width)]
    with pytest.raises(UserError, match="projector_dim must be at least 1, got 0"):
        RepaLoss(PatchMeans(), projector_dim=0)


def test_only_the_projector_is_saved_and_it_comes_back():
    loss = perturb(connected(8))
    loss.teacher.load(CPU)
    state = loss.state_dict()
    assert list(state) == [
        f"projector.{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")
    ]
    again = connected(8)
    again.load_state_dict(state)
    image, features = randn(1, 4, 8, 3).clamp(-1, 1), randn(1, 2, 8)
    assert torch.equal(value(again, features, image), value(loss, features, image))


def test_a_stopped_term_keeps_its_parameters_and_drops_the_teacher():
    term = connected(8)
    loss = TripleLoss(velocity=VelocityLoss(), repa=term)
    image, features = randn(2, 8, 8, 3).clamp(-1, 1), randn(2, 4, 8)
    before = loss(Prediction(image, features), sample_of(image))
    torch.testing.assert_close(before["total"], before["velocity"] + 0.5 * before["repa"])
    term.stop()
    term.start(CPU)
    after = loss(Prediction(image, features), sample_of(image))
    assert (term.teacher.network, term.teacher.num_reads) == (None, 1)
    assert after.keys() == {"velocity", "total"}
    after["total"].mean().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in term.parameters())


def test_a_missing_teacher_says_how_to_train_without_it():
    loss = RepaLoss(DINOv3("no/such/folder"))
    with quiet(), pytest.raises(UserError, match="no/such/folder") as error:
        loss.start(CPU)
    assert "--model.loss.repa=null" in str(error.value)
    assert "--repa_early_stop.step=0" in str(error.value)
    loss.stop()
    loss.start(CPU)


def test_features_that_are_not_one_per_patch_are_refused():
    with pytest.raises(UserError, match="one per patch, 2x3, got 7"):
        value(connected(8), randn(1, 7, 8), torch.zeros(1, 8, 12, 3))


@pytest.mark.parametrize(
    ("size", "settings"),
    [((4, 4), {}), ((16, 16), {"teacher_size": 4}), ((4, 4), {"teacher_size": 16})],
)
def test_conv_needs_more_than_one_patch_of_network_and_teacher(size, settings):
    loss = connected(8, projector="conv", **settings)
    features = randn(1, size[0] * size[1] // 16, 8)
    with pytest.raises(UserError, match=r"more than one patch an image .*1x1.* or teacher_size"):
        value(loss, features, torch.zeros(1, *size, 3))


def test_too_small_a_teacher_size_is_refused():
    with pytest.raises(UserError, match="teacher_size must be at least"):
        RepaLoss(DINOv3(), teacher_size=15)


@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_with_a_real_network_and_a_dinov3(tmp_path, library):
    teacher, network = save_dinov3(tmp_path, library), perturb(tiny_network())
    assert isinstance(teacher, Frozen)
    loss = RepaLoss(teacher, projector_dim=64)
    loss.connect(network)
    image = randn(2, 4, 6, 3).clamp(-1, 1)
    sample = sample_of(image)
    prediction = network(sample.z_t, sample.t, context(2, 3))
    with quiet():
        values = loss(prediction, sample)
    target = teacher(resized(image, 32, 48, "bicubic")).flatten(1, 2)
    projected = loss.projector(prediction.features)
    cosine = (projected * target).sum(-1) / projected.norm(dim=-1) / target.norm(dim=-1)
    torch.testing.assert_close(values, (1 - cosine).mean(-1), rtol=1e-4, atol=1e-5)
    values.sum().backward()
    seen = network.patch_blocks[: network.feature_block]
    assert all(p.grad.abs().max() > 0 for p in seen.parameters())


def with_kept(loss: RepaLoss, features: Tensor, image: Tensor, kept: Tensor) -> Tensor:
    return loss(Prediction(image, features, kept), sample_of(image))


@pytest.mark.parametrize("projector", ["mlp", "conv"])
def test_tokens_that_went_around_the_feature_block_do_not_count(projector):
    """The mean over the kept ones alone; a convolution still sees their neighbours."""
    loss, image = connected(8, projector=projector), randn(2, 12, 8, 3).clamp(-1, 1)
    features = randn(2, 6, 8).requires_grad_()
    kept = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]]).bool()
    found = with_kept(loss, features, image, kept)
    each = [with_kept(loss, features, image, (torch.arange(6) == i).expand(2, 6)) for i in range(6)]
    cosines = torch.stack(each, dim=1)
    torch.testing.assert_close(found, torch.stack([cosines[0, 0], cosines[1, 4:].mean()]))
    torch.testing.assert_close(cosines.mean(dim=1), value(loss, features, image))
    found.sum().backward()
    reached = features.grad.abs().sum(dim=2) > 0
    around = {"mlp": kept, "conv": torch.ones(2, 6).bool()}[projector].clone()
    if projector == "conv":
        around[0, 4:] = around[1, :2] = False  # two rows away
    assert torch.equal(reached, around)


def test_a_resized_map_counts_by_its_share_of_kept_tokens():
    loss = without_projector(resize="student", teacher_size=4)
    image, kept = randn(1, 8, 8, 3).clamp(-1, 1), torch.tensor([[True, False, True, False]])
    features = randn(1, 4, 3)
    torch.testing.assert_close(
        with_kept(loss, features, image, kept), value(loss, features, image)
    )  # one patch is all there is
