import pytest

from pixelhdm.planning.memory import CONTEXT_BYTES, FRAGMENTATION, Passes, Setting, Static, parts_of
from pixelhdm.planning.speed import Line

STATIC = Static(weights=80, gradients=80, states=160, averages=80, frozen=5, encoder=7, block=4)
PASSES = Passes(Line(0, 10), Line(2, 10), Line(0, 10))
OWN = Setting("none", 4, 1, False, False, False, False)


def test_the_parts_of_one_gpu():
    parts = parts_of(STATIC, PASSES, OWN, 1, 40, on_cpu=False)
    moving = 42
    assert sum(parts.values()) == pytest.approx(
        80 + 80 + 160 + 80 + 5 + 7 + moving + CONTEXT_BYTES + FRAGMENTATION * (moving + 80)
    )
    assert parts["activations kept"] == 40


def test_ddp_copies_gradients_and_sharding_shares_all_but_frozen_networks_out():
    ddp = parts_of(STATIC, PASSES, OWN, 8, 40, on_cpu=False)
    assert ddp["DDP's buckets"] == ddp["gradients"] == 80
    sharded = parts_of(STATIC, PASSES, OWN._replace(is_sharded=True), 8, 40, on_cpu=False)
    shares = [sharded[name] for name in ("weights", "gradients", "optimizer states", "averages")]
    assert shares == [10, 10, 20, 10]
    assert sharded["gathered blocks"] == 12
    assert sharded["frozen networks"] == 5
    assert "DDP's buckets" not in sharded


def test_what_moves_to_the_cpu_and_8_bit_states_count_less():
    spared = OWN._replace(average_on_cpu=True, is_eight_bit=True)
    parts = parts_of(STATIC, PASSES, spared, 1, 40, on_cpu=True)
    assert parts["averages"] == 0
    assert parts["optimizer states"] == 40
    assert sum(parts.values()) == 80 + 80 + 40 + 5 + 7 + 42
