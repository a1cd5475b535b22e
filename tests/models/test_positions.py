import math

import torch

from pixelhdm.models.positions import sincos_positions
from pixelhdm.models.rope import grid_rotation, line_rotation, rotate
from tests.stubs import randn

CPU = torch.device("cpu")


def test_sinusoids_of_columns_come_first_and_sines_before_cosines():
    table = sincos_positions(3, 5, 16, CPU)
    assert table.shape == (3, 5, 16)
    for i in range(4):
        frequency = 10_000 ** (-i / 4)
        for row, column in ((0, 0), (2, 1), (1, 4)):
            place = table[row, column]
            expected = [f(p * frequency) for p in (column, row) for f in (math.sin, math.cos)]
            found = [place[i + start].item() for start in (0, 4, 8, 12)]
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def angles(by: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Angle of each pair, S x pairs."""
    cos, sin = (part[0, :, 1::2] for part in by)
    return torch.atan2(sin, cos)


def test_evenly_spread_positions_have_columns_and_rows_in_turn():
    found = angles(grid_rotation(3, 5, 8, CPU, ends=(1.0, 1.0)))
    for row, column in ((0, 0), (2, 1), (1, 4)):
        for k in range(2):
            own = found[row * 5 + column, 2 * k : 2 * k + 2]
            expected = torch.tensor([column / 4, row / 2]) * 10_000 ** (-4 * k / 8)
            torch.testing.assert_close(own, expected)


def test_numbered_positions_have_rows_before_columns_and_context_does_not_turn():
    found = angles(grid_rotation(2, 3, 8, CPU, num_context=2))
    assert not found[:2].any()
    for row, column in ((0, 0), (1, 2)):
        base = torch.tensor([1.0, 0.01])
        expected = torch.cat([row * base, column * base])
        torch.testing.assert_close(found[2 + row * 3 + column], expected)


def test_one_patch_lies_at_zero():
    assert not angles(grid_rotation(1, 1, 8, CPU, ends=(16.0, 16.0))).any()


def test_products_on_a_line_depend_on_distances_alone():
    by = line_rotation(6, 8, CPU)
    q, k = (randn(1, 1, 1, 8, seed=seed).expand(-1, -1, 6, -1) for seed in (1, 2))
    products = (rotate(q, by) @ rotate(k, by).transpose(-1, -2))[0, 0]
    for distance in range(-5, 6):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
