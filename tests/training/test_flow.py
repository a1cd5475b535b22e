import pytest
import torch
from scipy import stats

from pixelhdm.errors import UserError
from pixelhdm.models.network import Prediction
from pixelhdm.training.flow import FlowMatching
from tests.stubs import randn

X, NOISE, T = randn(3, 2, 4, 3), randn(3, 2, 4, 3, seed=5), torch.tensor([0.1, 0.5, 0.93])


def predicted(output: torch.Tensor) -> Prediction:
    return Prediction(output, torch.zeros(3, 2, 1))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_path_and_its_identities(scale):
    sample = FlowMatching(noise_scale=scale).sample(X, NOISE, T)
    t = T[:, None, None, None]
    torch.testing.assert_close(sample.noise, scale * NOISE)
    torch.testing.assert_close(sample.v, X - scale * NOISE)
    torch.testing.assert_close(sample.z_t + (1 - t) * sample.v, X)
    torch.testing.assert_close(sample.z_t - t * sample.v, scale * NOISE)
    assert torch.equal(sample.x, X)
    assert torch.equal(sample.t, T)


def test_path_ends_in_noise_and_image():
    flow = FlowMatching()
    assert torch.equal(flow.sample(X, NOISE, torch.zeros(3)).z_t, NOISE)
    assert torch.equal(flow.sample(X, NOISE, torch.ones(3)).z_t, X)


@pytest.mark.parametrize("t_eps", [0.05, 0.2])
def test_time_keeps_its_distance_from_the_ends(t_eps):
    t = FlowMatching(t_eps=t_eps).time(torch.tensor([-1e4, -3.0, 0.0, 3.0, 1e4]), 8, 8)
    torch.testing.assert_close(t[[0, 2, 4]], torch.tensor([t_eps, 0.5, 1 - t_eps]))
    assert (t.diff() > 0).all()
    assert t.dtype == torch.float32


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 0.8)])
def test_time_is_logit_normal(mean, std):
    t = FlowMatching(time_mean=mean, time_std=std).time(randn(4000), 8, 8)
    squeezed = (t.double() - 0.05) / 0.9
    logit = torch.log(squeezed / (1 - squeezed))
    assert stats.kstest(logit.numpy(), stats.norm(mean, std).cdf).pvalue > 0.01
    ranks = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    exact = torch.sigmoid(torch.from_numpy(stats.norm(mean, std).ppf(ranks.numpy())))
    torch.testing.assert_close(squeezed.quantile(ranks), exact, atol=0.02, rtol=0)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_time_shift_is_its_formula(shift):
    normal = torch.linspace(-2, 2, 9)
    t = torch.sigmoid(normal)
    expected = 0.05 + 0.9 * t / (t + (1 - t) * shift)
    torch.testing.assert_close(FlowMatching(time_shift=shift).time(normal, 8, 8), expected)
    assert expected[4].item() == pytest.approx(0.05 + 0.9 / (1 + shift))  # above 1: more noise


T2I = FlowMatching(time_shift=2.0, reference_size=256, time_shift_power=0.5, noise_scale_power=0.5)


@pytest.mark.parametrize(
    ("size", "side"),
    [
        ((128, 128), 128),
        ((256, 256), 256),
        ((512, 512), 512),
        ((256, 1024), 512),
        ((2048, 512), 1024),
    ],
)
def test_shift_and_noise_grow_with_the_side_of_a_square_of_the_same_area(size, side):
    """2, 2.83, 4 and 1, 1.41, 2 at 256, 512, 1024."""
    root = (side / 256) ** 0.5
    assert T2I.time_shift_at(*size) == pytest.approx(2 * root)
    assert T2I.noise_scale_at(*size) == pytest.approx(root)
    assert T2I.time_shift_at(*size) * T2I.noise_scale_at(*size) == pytest.approx(side / 128)


@pytest.mark.parametrize("reference", [None, 256])
def test_without_powers_every_size_has_the_very_same_numbers(reference):
    flow, normal = FlowMatching(time_shift=3.0, noise_scale=1.7, reference_size=reference), randn(9)
    plain = FlowMatching(time_shift=3.0, noise_scale=1.7)
    for size in ((8, 8), (256, 256), (1024, 64)):
        assert (flow.time_shift_at(*size), flow.noise_scale_at(*size)) == (3.0, 1.7)
        assert torch.equal(flow.time(normal, *size), plain.time(normal, 8, 8))


def test_times_and_noise_of_training_follow_the_size():
    flow = FlowMatching(
        time_shift=1.5,
        reference_size=2,
        time_shift_power=1.0,
        noise_scale=0.5,
        noise_scale_power=2.0,
    )
    normal = torch.linspace(-2, 2, 9)
    t = torch.sigmoid(normal)
    expected = 0.05 + 0.9 * t / (t + (1 - t) * 3)  # 2x8 has the area of a square of side 4
    torch.testing.assert_close(flow.time(normal, 2, 8), expected)
    x, noise = randn(3, 2, 8, 3), randn(3, 2, 8, 3, seed=5)
    torch.testing.assert_close(flow.sample(x, noise, T).noise, 2 * noise)


@pytest.mark.parametrize("k", [0.5, 2.0, 4.0])
def test_noise_k_times_as_strong_is_a_shift_by_k_up_to_scale(k):
    strong = FlowMatching(noise_scale=k).sample(X, NOISE, T)
    scale = T + (1 - T) * k
    shifted = FlowMatching().sample(X, NOISE, T / scale)
    torch.testing.assert_close(strong.z_t / scale[:, None, None, None], shifted.z_t)


def test_prediction_v_is_passed_on_in_float32():
    flow, given = FlowMatching(), predicted(X.bfloat16())
    velocity = flow.velocity(given, NOISE, T)
    assert torch.equal(velocity.output, X.bfloat16().float())
    assert velocity.features is given.features


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_right_prediction_x_is_the_right_velocity(scale):
    flow = FlowMatching(prediction="x", noise_scale=scale)
    sample = flow.sample(X, NOISE, T)
    velocity = flow.velocity(predicted(X), sample.z_t, T).output
    torch.testing.assert_close(velocity, sample.v, rtol=1e-5, atol=1e-5)


def test_prediction_x_never_divides_by_less_than_t_eps():
    flow, t = FlowMatching(prediction="x", t_eps=0.1), torch.tensor([0.5, 0.95, 1.0])
    velocity = flow.velocity(predicted(X), NOISE, t).output
    divisor = torch.tensor([0.5, 0.1, 0.1])[:, None, None, None]
    torch.testing.assert_close(velocity, (X - NOISE) / divisor)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"t_eps": 0.0}, "t_eps must lie between 0 and 0.5, got 0.0"),
        ({"t_eps": 0.5}, "t_eps must lie between 0 and 0.5, got 0.5"),
        ({"time_std": 0.0}, "time_std must be above 0, got 0.0"),
        ({"time_shift": -1.0}, "time_shift must be above 0, got -1.0"),
        ({"noise_scale": float("nan")}, "noise_scale must be above 0, got nan"),
        (
            {"time_shift_power": 0.5},
            r"time_shift_power must be 0 without a reference_size, got 0\.5",
        ),
        ({"noise_scale_power": -1.0}, "noise_scale_power must be 0 without a reference_size"),
        ({"reference_size": 0}, "reference_size must be at least 1, got 0"),
        (
            {"reference_size": 256, "noise_scale_power": float("inf")},
            "noise_scale_power must be a finite number, got inf",
        ),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(UserError, match=words):
        FlowMatching(**arguments)


def test_unsqueezed_times_follow_the_law_to_both_ends():
    """Shares below 0.1, 0.3 and the median of JiT's law (arXiv:2511.13720)."""
    flow = FlowMatching(time_mean=-0.8, time_std=0.8, squeeze_time=False)
    t = flow.time(torch.randn(200_000, generator=torch.Generator().manual_seed(0)), 8, 8)
    assert (t < 0.1).float().mean() == pytest.approx(0.040, abs=0.002)
    assert (t < 0.3).float().mean() == pytest.approx(0.476, abs=0.004)
    assert t.median() == pytest.approx(0.310, abs=0.003)
    assert t.min() < 0.05


@pytest.mark.parametrize("prediction", ["v", "x"])
@pytest.mark.parametrize("squeeze_time", [True, False])
def test_the_true_velocity_leads_to_the_clean_image(prediction, squeeze_time):
    """At every time; beyond 1 - t_eps an x-prediction's divisor is t_eps, the true one's too."""
    flow = FlowMatching(prediction=prediction, squeeze_time=squeeze_time)
    x, noise, t = randn(4, 2, 2, 3), randn(4, 2, 2, 3, seed=5), torch.tensor([0.1, 0.6, 0.95, 0.99])
    t = t if not squeeze_time else t.clamp(max=0.95)
    sample = flow.sample(x, noise, t)
    torch.testing.assert_close(sample.clean(sample.v), x, rtol=1e-4, atol=1e-5)
    perfect = x if prediction == "x" else x - noise
    found = flow.velocity(Prediction(perfect, x.flatten(1, 2)), sample.z_t, t).output
    torch.testing.assert_close(found, sample.v, rtol=1e-4, atol=1e-4)
    if prediction == "x":
        divisor = (1 - t).clamp(min=0.05)[:, None, None, None]
        torch.testing.assert_close(sample.v, (x - sample.z_t) / divisor, rtol=1e-4, atol=1e-4)
