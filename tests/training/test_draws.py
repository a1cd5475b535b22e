import pytest
import torch
from scipy import stats

from pixelhdm.training.draws import Draws, draw

CPU = torch.device("cpu")


def drawn(*seeds: int, height: int = 4, width: int = 6) -> Draws:
    return draw(torch.tensor(seeds), height, width, CPU)


def test_draws_of_a_sample_do_not_depend_on_its_batch():
    together = drawn(5, 2**62 + 3, 7, 5)
    for i, seed in enumerate([5, 2**62 + 3, 7, 5]):
        for all_of_them, alone in zip(together, drawn(seed), strict=True):
            assert torch.equal(all_of_them[i], alone[0])


def test_null_and_time_do_not_depend_on_the_image_size():
    small, large = drawn(5, 6), drawn(5, 6, height=8, width=8)
    assert torch.equal(small.null, large.null)
    assert torch.equal(small.time, large.time)


def test_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(0)
    first, after = drawn(1), torch.rand(1)
    torch.manual_seed(0)
    assert torch.rand(1) == after
    assert all(map(torch.equal, first, drawn(1)))


@pytest.mark.parametrize(
    ("name", "law"), [("null", "uniform"), ("time", "norm"), ("noise", "norm")]
)
def test_draws_over_seeds_have_their_law(name, law):
    values = getattr(drawn(*range(1500), height=1, width=1), name).flatten()
    assert len(values.unique()) > 0.99 * len(values)
    assert stats.kstest(values.numpy(), law).pvalue > 0.01


def test_draws_of_a_sample_are_unrelated():
    draws = drawn(*range(1500), height=1, width=1)
    columns = torch.column_stack([draws.null, draws.time, draws.noise.flatten(1)])
    correlation = torch.corrcoef(columns.T) - torch.eye(5)
    assert correlation.abs().max() < 0.1


def test_draws_are_float32_where_bfloat16_is_the_default():
    expected = drawn(1, 2)
    torch.set_default_dtype(torch.bfloat16)  # as precision bf16-true does during a step
    try:
        draws = drawn(1, 2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, draws, expected))
