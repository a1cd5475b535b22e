import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn

from pixelhdm.errors import UserError
from pixelhdm.models.network import Prediction
from pixelhdm.training.flow import FlowSample
from pixelhdm.training.losses.frequency import (
    CHROMINANCE,
    LUMINANCE,
    SIDE,
    YCBCR,
    FrequencyLoss,
    dct_matrix,
    frequency_weights,
    quantisation_table,
)
from tests.stubs import randn

GREY = torch.ones(1, 8, 8, 3)


def loss_of(error: torch.Tensor, **settings) -> torch.Tensor:
    """The loss of a prediction that is wrong by `error`."""
    v = randn(*error.shape, seed=9)
    sample = FlowSample(v, v, torch.zeros(len(v)), v, v, torch.ones(len(v)), torch.ones(len(v)))
    return FrequencyLoss(**settings)(Prediction(v + error, v.flatten(1, 2)), sample)


def by_scipy(error: np.ndarray, quality: int) -> np.ndarray:
    """The same by scipy's DCT, block by block, in float64."""
    planes = np.einsum("ck,bhwk->bchw", np.array(YCBCR), error.astype(np.float64))
    values = []
    for image in planes:
        total = 0.0
        for channel, table in zip(image, (LUMINANCE, CHROMINANCE, CHROMINANCE), strict=True):
            weights = frequency_weights(table, quality).numpy()
            for top in range(0, channel.shape[0], SIDE):
                for left in range(0, channel.shape[1], SIDE):
                    block = channel[top : top + SIDE, left : left + SIDE]
                    total += (weights * dctn(block, norm="ortho") ** 2).sum()
        values.append(total / image.size)
    return np.array(values)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 24), (40, 8)])
@pytest.mark.parametrize("quality", [30, 50, 85, 90])
def test_value_equals_scipys(height, width, quality):
    error = randn(3, height, width, 3)
    torch.testing.assert_close(
        loss_of(error, quality=quality).double(),
        torch.from_numpy(by_scipy(error.numpy(), quality)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_transform_is_orthonormal_and_scipys():
    matrix, block = dct_matrix(8), randn(8, 8).double()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(8, dtype=torch.float64))
    expected = torch.from_numpy(dctn(block.numpy(), norm="ortho"))
    torch.testing.assert_close(matrix @ block @ matrix.T, expected)


def test_a_constant_block_has_its_dc_alone():
    constant = dct_matrix(8) @ torch.ones(8, 8, dtype=torch.float64) @ dct_matrix(8).T
    expected = torch.zeros(8, 8, dtype=torch.float64)
    expected[0, 0] = 8
    torch.testing.assert_close(constant, expected)
    dc = frequency_weights(LUMINANCE, 90)[0, 0].item()
    assert loss_of(GREY).item() == pytest.approx(dc * 64 / 192, rel=1e-5)  # grey has no colour


@pytest.mark.parametrize(("rows", "quality"), [((0, 1), 90), ((1, 0), 90), ((0, 7), 85)])
def test_a_single_wave_hits_its_own_frequency(rows, quality):
    """Vertical and horizontal frequencies are not exchanged."""
    basis, (u, v) = dct_matrix(8), rows
    wave = torch.outer(basis[u], basis[v]).float()[None, :, :, None].expand(1, 8, 8, 3)
    expected = frequency_weights(LUMINANCE, quality)[u, v].item() / 192
    assert loss_of(wave, quality=quality).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("quality", "y_dc", "y_low", "y_high", "c_dc", "c_low"),
    [(90, 2.184, 0.273, 3.276, 4.353, 0.653), (85, 2.013, 0.280, 3.355, 3.874, 0.646)],
)
def test_published_weights(quality, y_dc, y_low, y_high, c_dc, c_low):
    y, c = (frequency_weights(table, quality) for table in (LUMINANCE, CHROMINANCE))
    found = [y[0, 0], y.min(), y.max(), c[0, 0], c.min(), y.mean(), c.mean()]
    assert [round(float(value), 3) for value in found] == [y_dc, y_low, y_high, c_dc, c_low, 1, 1]


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 90, 100])
def test_tables_are_those_of_the_jpeg_library(tmp_path, quality):
    """As libjpeg writes them into a file; at quality 50 they are the standard's own."""
    file = tmp_path / "x.jpg"
    Image.new("RGB", (8, 8)).save(file, quality=quality)
    stored = Image.open(file).quantization
    for number, base in ((0, LUMINANCE), (1, CHROMINANCE)):
        table = quantisation_table(base, quality)
        assert table.flatten().tolist() == list(stored[number])
        assert quality != 50 or torch.equal(table, torch.tensor(base, dtype=torch.float64))


def test_independent_errors_cost_their_mean_square_times_the_colour_gain():
    """The colour transform shrinks them: a third of the sum of its squares, 0.42."""
    error = randn(4, 64, 64, 3)
    gain = torch.tensor(YCBCR).square().sum().item() / 3
    assert gain == pytest.approx(0.42, abs=0.005)
    assert (loss_of(error) / error.square().mean((1, 2, 3))).mean() == pytest.approx(gain, rel=0.03)


@pytest.mark.parametrize("size", [(4, 4), (28, 28), (9, 17)])
def test_sides_that_are_no_multiple_of_8_are_continued(size):
    constant = loss_of(0.5 * torch.ones(2, *size, 3))
    torch.testing.assert_close(constant, loss_of(0.5 * GREY).expand(2))


def test_float32_under_bfloat16():
    error = randn(2, 16, 16, 3)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss_of(error)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss_of(error))


def test_nothing_is_saved_or_trained():
    term = FrequencyLoss()
    assert not term.state_dict()
    assert not list(term.parameters())


@pytest.mark.parametrize("quality", [0, 101])
def test_wrong_quality(quality):
    with pytest.raises(UserError, match=f"quality must lie in 1 … 100, got {quality}"):
        FrequencyLoss(quality=quality)
