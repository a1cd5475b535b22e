import pytest
import torch

from pixelhdm.training.time_bins import TimeBins
from tests.stubs import randn


def test_means_are_weighted_means_of_each_bin_over_all_batches():
    bins, value, t = TimeBins(), randn(30, seed=1), torch.rand(30)
    weight = torch.ones(30)
    weight[::4] = 0
    value[::8] = torch.nan  # padding
    for part in range(0, 30, 7):
        bins.update(*(x[part : part + 7] for x in (value, t, weight)))
    means = bins.compute()
    real = weight > 0
    assert means.pop("").item() == pytest.approx(value[real].mean().item(), abs=1e-6)
    for number in range(10):
        inside = real & ((10 * t).long() == number)
        name = f"{number / 10:.1f}-{(number + 1) / 10:.1f}"
        assert (name in means) == bool(inside.any())
        if inside.any():
            assert means[name].item() == pytest.approx(value[inside].mean().item(), abs=1e-6)


def test_the_ends_belong_to_the_outer_bins_and_a_nan_shows_in_its_own():
    bins = TimeBins()
    value = torch.tensor([1.0, float("nan"), 3.0])
    bins.update(value, torch.tensor([0.0, 0.55, 1.0]), torch.ones(3))
    means = bins.compute()
    assert list(means) == ["", "0.0-0.1", "0.5-0.6", "0.9-1.0"]
    assert means["0.0-0.1"] == 1
    assert means["0.9-1.0"] == 3
    assert means["0.5-0.6"].isnan()
    assert means[""].isnan()
