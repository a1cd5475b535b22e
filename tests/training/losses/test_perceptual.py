import pytest
import torch
from einops import reduce
from torch import Tensor, nn

from pixelhdm.errors import UserError
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import EulerSampler
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.encoders.resized import resized
from pixelhdm.models.network import Prediction
from pixelhdm.module import PixelHDMModule, mean_total
from pixelhdm.training.flow import FlowMatching, FlowSample
from pixelhdm.training.losses import perceptual
from pixelhdm.training.losses.perceptual import DinoPerceptualLoss, LpipsLoss, PerceptualLoss
from pixelhdm.training.losses.repa import RepaLoss
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.stubs import Sized, perturb, randn, tiny_network
from tests.tiny_dino import PatchMeans, quiet, save_dinov2

CPU = torch.device("cpu")
TIMES = torch.tensor([0.1, 0.3, 0.95, 0.29, 1.0])


class Squares(PerceptualLoss):
    """The mean squared error of the clean image, and how many images it was asked for."""

    name = "squares"

    def __init__(self, t_min: float = 0.3):
        super().__init__(PatchMeans(), 1.0, t_min)
        self.asked: list[int] = []

    def distance(self, clean: Tensor, x: Tensor) -> Tensor:
        self.asked.append(len(x))
        return reduce((clean - x).square(), "b h w c -> b", "mean")


class Distance(nn.Module):
    """In the place of LPIPS's network: the mean squared error."""

    def __init__(self):
        super().__init__()
        self.sizes: list[torch.Size] = []

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        self.sizes += [image.shape[1:3], target.shape[1:3]]
        return reduce((image - target).square(), "b h w c -> b", "mean")


def lpips_loss(monkeypatch, **settings: object) -> LpipsLoss:
    loss, network = LpipsLoss(**settings), Distance()
    monkeypatch.setattr(loss.lpips, "read", lambda: network)
    return loss


def given(times: Tensor = TIMES, size: int = 8, **flow: object) -> tuple[Prediction, FlowSample]:
    """A prediction and its sample; the velocity is wrong."""
    num = len(times)
    x, noise = randn(num, size, size, 3, seed=1), randn(num, size, size, 3, seed=2)
    sample = FlowMatching(**flow).sample(x, noise, times)
    output = randn(num, size, size, 3, seed=4).requires_grad_()
    return Prediction(output, randn(num, 4, 6, seed=5)), sample


def errors(prediction: Prediction, sample: FlowSample) -> Tensor:
    """The mean squared error of every image, from what is known of the path."""
    wrong = (1 - sample.t)[:, None, None, None] * (prediction.output - (sample.x - sample.noise))
    return reduce(wrong.square(), "b h w c -> b", "mean")


def test_empty_slots_change_nothing():
    """Weighted means of a batch, without and with slots that count by their time alone."""
    prediction, sample = given()
    loss, weight = Squares(), torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0])
    weighted = (weight * loss(prediction, sample._replace(weight=weight))).sum() / weight.sum()
    real = weight > 0
    fewer = FlowSample(*(part[real] for part in sample))._replace(weight=weight[real])
    values = loss(Prediction(*(part[real] for part in prediction[:2])), fewer)
    torch.testing.assert_close(weighted, (weight[real] * values).sum() / weight.sum())
    exact, counted = errors(prediction, sample), (TIMES >= 0.3) & real
    expected = (weight * exact)[counted].sum() / weight[counted].sum()
    torch.testing.assert_close(weighted, expected, rtol=1e-5, atol=1e-7)
    assert loss.asked == [2, 2]


def test_in_training_the_mean_is_that_of_the_images_that_count():
    prediction, sample = given()
    loss, counted = Squares(), TIMES >= 0.3
    values, exact = loss(prediction, sample), errors(prediction, sample)
    torch.testing.assert_close(values, exact * counted / 0.6, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(values.mean(), exact[counted].mean(), rtol=1e-5, atol=1e-7)
    assert torch.equal(values[~counted], torch.zeros(2))
    assert loss.asked == [3]
    values.sum().backward()
    touched = prediction.output.grad.abs().amax((1, 2, 3)) > 0
    assert touched.tolist() == [False, True, True, False, False]  # at t = 1 x̂ is z


def test_in_validation_an_image_counts_as_it_is():
    prediction, sample = given()
    values = Squares().eval()(prediction, sample)
    exact = errors(prediction, sample) * (TIMES >= 0.3)
    torch.testing.assert_close(values, exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("training", [True, False])
def test_without_a_gate_all_images_count(training):
    prediction, sample = given()
    loss = Squares(t_min=0).train(training)
    torch.testing.assert_close(
        loss(prediction, sample), errors(prediction, sample), rtol=1e-5, atol=1e-7
    )
    assert loss.asked == [5]


@pytest.mark.parametrize("training", [True, False])
def test_without_an_image_that_counts_it_is_zero_in_the_graph(training):
    prediction, sample = given(torch.tensor([0.1, 0.2]))
    prediction.output.data[0] = torch.nan
    loss = Squares().train(training)
    values = loss(prediction, sample)
    assert torch.equal(values, torch.zeros(2))
    values.sum().backward()
    assert torch.equal(prediction.output.grad, torch.zeros(2, 8, 8, 3))
    assert loss.asked == []


@pytest.mark.parametrize(("others", "num"), [(0, 5), (5, 5), (1, 2)])
def test_the_share_is_that_of_all_processes(monkeypatch, others, num):
    monkeypatch.setattr(perceptual, "are_several", lambda: True)
    other = torch.tensor([others, num])
    monkeypatch.setattr("torch.distributed.all_reduce", lambda totals: totals.add_(other))
    prediction, sample = given()
    exact = errors(prediction, sample) * (TIMES >= 0.3)
    share = (3 + others) / (5 + num)
    torch.testing.assert_close(Squares()(prediction, sample), exact / share, rtol=1e-5, atol=1e-7)


def test_a_process_without_an_image_that_counts_tells_the_others(monkeypatch):
    told = []
    monkeypatch.setattr(perceptual, "are_several", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda totals: told.append(totals.clone()))
    Squares()(*given(torch.tensor([0.1, 0.2])))
    Squares().eval()(*given())
    Squares(t_min=0)(*given())
    assert [list(totals) for totals in told] == [[0, 2]]


@pytest.mark.parametrize("flow", [{}, {"prediction": "x", "squeeze_time": False}])
def test_the_clean_image_is_what_the_network_means(flow):
    """With an x-prediction it is the prediction itself, past 1 - t_eps too, and is not clamped."""
    _, sample = given(**flow)
    clean = 3 * randn(5, 8, 8, 3, seed=7)
    output = clean if flow else (clean - sample.z_t) / (1 - TIMES)[:, None, None, None]
    seen = []
    loss = Squares(t_min=0)
    loss.distance = lambda image, x: seen.append((image, x)) or image.mean((1, 2, 3))
    loss(FlowMatching(**flow).velocity(Prediction(output, None), sample.z_t, TIMES), sample)
    known = slice(None) if flow else TIMES < 1
    torch.testing.assert_close(seen[0][0][known], clean[known], rtol=1e-4, atol=1e-5)
    assert torch.equal(seen[0][1], sample.x)


@pytest.mark.parametrize(("patch_size", "seen"), [(16, (32, 48)), (8, (64, 96)), (32, (16, 16))])
def test_lpips_sees_images_as_if_patches_had_16_pixels(monkeypatch, patch_size, seen):
    loss = lpips_loss(monkeypatch, t_min=0)
    loss.connect(Sized(8, patch_size))
    x = randn(2, 32, 48 if patch_size < 32 else 32, 3)
    sample = FlowMatching().sample(x, torch.zeros_like(x), torch.full((2,), 0.5))
    value = loss(Prediction(torch.zeros_like(x), randn(2, 6, 8)), sample)
    assert loss.lpips.network.sizes == [seen, seen]
    wrong = resized(0.5 * x, *seen, "bilinear") - resized(x, *seen, "bilinear")
    torch.testing.assert_close(value, wrong.square().mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("patch_size", "teacher_size", "seen"),
    [(4, None, (16, 24)), (2, None, (32, 48)), (4, 10, (8, 12))],
)
def test_p_dino_is_one_minus_the_cosine_of_the_teachers_tokens(patch_size, teacher_size, seen):
    loss = DinoPerceptualLoss(PatchMeans(), t_min=0, teacher_size=teacher_size)
    loss.connect(Sized(8, patch_size))
    x = randn(2, 16, 24, 3, seed=1).clamp(-1, 1)
    sample = FlowMatching().sample(x, torch.zeros_like(x), torch.full((2,), 0.5))
    velocity = randn(2, 16, 24, 3, seed=2).requires_grad_()
    value = loss(Prediction(velocity, randn(2, 24, 8)), sample)
    teacher = PatchMeans()
    a, b = (
        teacher.features(resized(image, *seen, "bicubic")) for image in (0.5 * (x + velocity), x)
    )
    cosine = (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)
    torch.testing.assert_close(value, 1 - cosine.mean((1, 2)), rtol=1e-5, atol=1e-6)
    value.sum().backward()
    assert (velocity.grad != 0).any(dim=-1).float().mean() > 0.9
    exact = loss(Prediction(sample.v, randn(2, 24, 8)), sample)
    torch.testing.assert_close(exact, torch.zeros(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_gradients_flow_through_a_dinov2(tmp_path, library):
    teacher = save_dinov2(tmp_path, library)
    loss = DinoPerceptualLoss(teacher)
    loss.connect(Sized(8, 4))
    prediction, sample = given(torch.tensor([0.5, 0.1]))
    with quiet(), torch.autocast("cpu", torch.bfloat16):
        value = loss(prediction, sample)
    assert value.dtype == torch.float32
    value.sum().backward()
    assert (prediction.output.grad[0] != 0).all()
    assert (prediction.output.grad[1] == 0).all()
    assert all(p.grad is None for p in teacher.network.parameters())


def test_beside_the_other_terms_in_a_module(monkeypatch):
    extra = [lpips_loss(monkeypatch), DinoPerceptualLoss(PatchMeans())]
    repa = RepaLoss(PatchMeans(), projector_dim=8)
    module = PixelHDMModule(
        perturb(tiny_network()),
        lambda dim: ClassConditioner(dim, 10, 1),
        EulerSampler(1),
        Guidance(),
        loss=TripleLoss(VelocityLoss(), repa=repa, extra=extra),
    )
    batch = {
        "image": (randn(8, 4, 4, 3).clamp(-1, 1) * 127.5 + 127.5).to(torch.uint8),
        "condition": torch.arange(8),
        "seed": torch.arange(8) + 5,
        "weight": torch.ones(8),
        "index": torch.arange(8),
    }
    values, t = module.losses(batch, module.network, module.conditioner)
    assert list(values) == ["velocity", "repa", "lpips", "p_dino", "total"]
    weights = {"velocity": 1, "repa": 0.5, "lpips": 0.1, "p_dino": 0.01}
    total = sum(weight * values[name] for name, weight in weights.items())
    torch.testing.assert_close(values["total"], total)
    assert 0 < (t >= 0.3).sum() < 8
    for name in ("lpips", "p_dino"):
        assert torch.equal(values[name] > 0, t >= 0.3)
        module.zero_grad()
        (batch["weight"] / mean_total(batch["weight"]) * values[name]).sum().backward(
            retain_graph=True
        )
        assert module.network.last_layer.weight.grad.abs().max() > 0
    assert not any(
        key.startswith(("loss.terms.lpips", "loss.terms.p_")) for key in module.state_dict()
    )
    values, t = module.eval().losses(batch, module.network, module.conditioner)
    assert torch.equal(values["lpips"] > 0, t >= 0.3)


def test_a_stopped_term_frees_its_network_and_reads_it_no_more():
    loss = DinoPerceptualLoss(PatchMeans())
    loss.start(CPU)
    loss.stop()
    loss.start(CPU)
    assert (loss.teacher.network, loss.teacher.num_reads) == (None, 1)


def test_a_missing_file_says_how_to_train_without_it():
    for call in (lambda loss: loss.start(CPU), lambda loss: loss(*given())):
        with pytest.raises(UserError, match=r"no/such/file.* leave LpipsLoss out of model\.loss"):
            call(LpipsLoss("no/such/file.pth"))


@pytest.mark.parametrize("t_min", [-0.1, 1.1, float("nan")])
def test_times_out_of_range_are_refused(t_min):
    with pytest.raises(UserError, match=r"t_min must lie in 0 … 1, got"):
        LpipsLoss(t_min=t_min)
    with pytest.raises(UserError, match="teacher_size must be at least"):
        DinoPerceptualLoss(PatchMeans(), teacher_size=3)
