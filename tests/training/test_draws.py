import pytest
import torch
from scipy import stats

from pixelhdm.models.routing import TokenRouting
from pixelhdm.training.draws import Draws, SeededRoutes, draw
from tests.stubs import tiny_network

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


def routes(*seeds: int, size: int = 8, share: float = 0.5) -> torch.Tensor:
    """The first two routes of each seed, over patches of 2 pixels."""
    network, own = tiny_network(routing=TokenRouting(share, min_tokens=16)), SeededRoutes([*seeds])
    return torch.stack([own.fresh(network, size, size, CPU).kept for _ in range(2)], dim=1)


def test_routes_of_an_image_do_not_depend_on_its_batch():
    seeds = [5, 2**63 - 1, 0, 5]
    together = routes(*seeds)
    for own, seed in zip(together, seeds, strict=True):
        assert torch.equal(own, routes(seed)[0])
    assert torch.equal(together, together.sort(dim=-1).values)
    assert not torch.equal(together[:, 0], together[:, 1])
    assert not torch.equal(together[0], together[1])


def test_every_token_is_kept_as_often_and_apart_from_the_other_draws():
    kept = torch.zeros(3000, 16)
    kept.scatter_(1, routes(*range(3000), share=0.25)[:, 0], 1.0)
    assert (kept.sum(dim=1) == 12).all()
    assert (kept.mean(dim=0) - 0.75).abs().max() < 0.04  # 5 standard deviations
    draws = drawn(*range(3000), height=1, width=1)
    columns = torch.column_stack([kept, draws.null, draws.time, draws.noise.flatten(1)])
    correlation = torch.corrcoef(columns.T)
    assert correlation[:16, 16:].abs().max() < 0.1
    own = correlation[:16, :16] - torch.eye(16)
    assert (own + 1 / 15 * (1 - torch.eye(16))).abs().max() < 0.1  # as without replacement


def test_small_images_and_networks_without_routing_have_no_route():
    own = SeededRoutes([1])
    assert own.fresh(tiny_network(), 8, 8, CPU) is None
    assert own.fresh(tiny_network(routing=TokenRouting(min_tokens=17)), 8, 8, CPU) is None
