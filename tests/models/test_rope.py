import pytest
import torch

from pixelhdm.errors import UserError
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.models.rope import (
    check_rope_dims,
    image_positions,
    rotate,
    rotation,
    token_positions,
)
from tests.stubs import context, randn, tiny_network

DIMS = (4, 6, 6)


def logits(positions: torch.Tensor) -> torch.Tensor:
    q, k = randn(1, 2, 7, 16), randn(1, 2, 7, 16, seed=5)
    by = rotation(positions, DIMS, 1e4)
    return rotate(q, by) @ rotate(k, by).mT


def positions() -> torch.Tensor:
    return torch.randint(0, 40, (1, 7, 3), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shift", [(9, 0, 0), (0, 4, 0), (0, 0, 11), (3, 20, 7)])
def test_logits_depend_on_differences_of_positions_only(shift):
    moved = positions() + torch.tensor(shift)
    torch.testing.assert_close(logits(moved), logits(positions()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_axis_tells_positions_apart(axis):
    moved = positions()
    moved[:, 3, axis] += 5
    assert (logits(moved) - logits(positions())).abs()[:, :, 3, :3].min() > 1e-3


def test_position_zero_is_no_rotation_and_lengths_are_kept():
    x = randn(2, 3, 5, 16)
    nowhere = rotation(torch.zeros(2, 5, 3, dtype=torch.long), DIMS, 1e4)
    assert torch.equal(rotate(x, nowhere), x)
    turned = rotate(x, rotation(positions()[:, :5].expand(2, -1, -1), DIMS, 1e4))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_angles_of_each_axis_fill_their_own_channels():
    cos, sin = rotation(torch.tensor([[[2, 0, 0], [0, 3, 0], [0, 0, 5]]]), DIMS, 100.0)
    for row, (position, start, dim) in enumerate([(2, 0, 4), (3, 4, 6), (5, 10, 6)]):
        angle = position * 100.0 ** -(torch.arange(0, dim, 2) / dim)
        mine = slice(start, start + dim)
        torch.testing.assert_close(cos[0, row, mine], angle.cos().repeat_interleave(2))
        torch.testing.assert_close(sin[0, row, mine][1::2], angle.sin())
        torch.testing.assert_close(sin[0, row, mine][::2], -angle.sin())
        others = torch.ones(16, dtype=torch.bool)
        others[mine] = False
        assert (cos[0, row, others] == 1).all()
        assert (sin[0, row, others] == 0).all()


def test_rotation_is_float32_under_autocast_and_far_out():
    far = torch.tensor([[[511, 127, 126]]])
    exact = rotation(far, DIMS, 1e4)
    with torch.autocast("cpu", torch.bfloat16):
        under = rotation(far, DIMS, 1e4)
    assert under[0].dtype == torch.float32
    assert torch.equal(under[0], exact[0])
    assert torch.equal(under[1], exact[1])
    power = torch.arange(0, 4, 2, dtype=torch.float64) / 4
    angle = 511 * 1e4**-power
    torch.testing.assert_close(exact[0][0, 0, :4:2].double(), angle.cos(), rtol=0, atol=1e-4)


def test_positions_of_tokens_and_of_patches():
    assert token_positions(3, torch.device("cpu")).tolist() == [[[0, 0, 0], [1, 0, 0], [2, 0, 0]]]
    grid = image_positions(2, 3, torch.tensor([7, 0]))
    cells = [[r, c] for r in (0, 1) for c in (0, 1, 2)]
    assert grid.tolist() == [[[7, *cell] for cell in cells], [[0, *cell] for cell in cells]]


def test_network_places_image_after_the_valid_tokens(monkeypatch):
    seen = []

    def spy(at, *arguments):
        seen.append(at)
        return rotation(at, *arguments)

    monkeypatch.setattr("pixelhdm.models.pixelhdm.rotation", spy)
    network: PixelHDM = tiny_network()
    both = context(1, 1).cat(context(1, 3))
    network(randn(2, 2, 4, 3), torch.rand(2), both)
    tokens = [[0, 0, 0], [1, 0, 0], [2, 0, 0]]
    patch, pixel = seen
    assert patch.tolist() == [[*tokens, [n, 0, 0], [n, 0, 1]] for n in (1, 3)]
    assert pixel.tolist() == [[[0, 0, 0], [0, 0, 1]]]


@pytest.mark.parametrize("dims", [(4, 6, 4), (5, 5, 6), (-2, 10, 8)])
def test_wrong_shares_of_a_head(dims):
    with pytest.raises(UserError, match="head_dim=16, got"):
        check_rope_dims(dims, 16)
    check_rope_dims((0, 8, 8), 16)
