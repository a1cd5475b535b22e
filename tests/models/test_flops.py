import itertools
import time

import pytest
import torch

from pixelhdm.models import flops
from pixelhdm.models.flops import ForwardFlop, count_flop, interpolated, matmul_peak, quick_peak
from tests.stubs import TINY, context, randn, tiny_network

CPU = torch.device("cpu")


def test_a_product_of_matrices_is_counted_by_its_formula():
    a, b = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    assert count_flop(lambda: a @ b) == 2 * 3 * 5 * 7


def test_the_copy_counts_what_the_network_does():
    network = tiny_network(patch_depth=2, pixel_depth=1)
    forward = ForwardFlop(network)
    for height, width in ((8, 8), (4, 12)):
        for length in (3, 0, 5, 40):  # the last one follows from the first three
            image, now, given = randn(1, height, width, 3), torch.rand(1), context(1, length)
            with torch.no_grad():
                real = count_flop(lambda i=image, t=now, c=given: network(i, t, c))
            assert forward(height, width, length) == real
        assert len(forward.counted[height, width]) == 3


def test_attention_is_counted_as_twice_two_products_of_the_sequence_with_itself():
    forward = ForwardFlop(tiny_network())
    counted = [forward(8, 8, length) for length in range(3)]
    second_difference = counted[2] - 2 * counted[1] + counted[0]
    assert second_difference == TINY["patch_depth"] * 2 * 2 * 2 * TINY["num_heads"] * 8


def test_the_copy_has_no_weights_and_leaves_the_network_alone():
    network = tiny_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    forward = ForwardFlop(network)
    forward(4, 4, 1)
    assert {value.device.type for value in forward.network.parameters()} == {"meta"}
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_three_points_give_the_parabola():
    known = {x: 3 * x * x - 5 * x + 10**15 for x in (0, 7, 77)}
    assert interpolated(known, 256) == 3 * 256**2 - 5 * 256 + 10**15


@pytest.mark.parametrize("onednn", [False, flops.HAS_ONEDNN])
def test_peak_is_flop_over_seconds_of_the_fastest_side(monkeypatch, onednn):
    clock = itertools.count(0.0, 0.5)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    peak = matmul_peak(CPU, torch.float32, (4, 8), repeats=2, onednn=onednn)
    assert peak == 4 * 2 * 8**3 / 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measuring_the_peak_leaves_the_random_state_alone(dtype):
    before = torch.get_rng_state()
    assert quick_peak(CPU, dtype) > 0
    assert torch.equal(torch.get_rng_state(), before)
