import math
from itertools import pairwise

import pytest
from jsonargparse import ArgumentParser

from pixelhdm.errors import UserError
from pixelhdm.training.optim.schedules import (
    ConstantSchedule,
    CosineSchedule,
    Schedule,
    SteppedCosineRestart,
)


class Half(Schedule):
    """A person's own: one method is enough."""

    def curve(self, step: int, total_steps: int | None) -> float:
        return 0.5


def test_an_own_schedule_needs_its_curve_alone():
    assert Half().factor(3, None) == 0.5


SCHEDULES = [
    lambda warmup: ConstantSchedule(warmup),
    lambda warmup: CosineSchedule(warmup),
    lambda warmup: SteppedCosineRestart(10, warmup),
]


def factors(schedule: Schedule, num: int, total: int | None = None) -> list[float]:
    return [schedule.factor(step, total) for step in range(num)]


@pytest.mark.parametrize("new", SCHEDULES)
@pytest.mark.parametrize("warmup", [1, 2, 5])
def test_warm_up_starts_at_its_first_part_and_touches_the_peak_once(new, warmup):
    warm, bare = new(warmup), new(0)
    assert factors(warm, warmup, 100) == pytest.approx([(k + 1) / warmup for k in range(warmup)])
    assert warm.factor(warmup - 1, 100) == bare.factor(0, 100) == 1.0
    if not isinstance(warm, ConstantSchedule):
        assert warm.factor(warmup, 100) < 1.0
        assert bare.factor(1, 100) < 1.0


def test_constant_stays():
    assert factors(ConstantSchedule(3), 50)[3:] == [1.0] * 47
    assert factors(ConstantSchedule(), 3) == [1.0] * 3


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_ends_with_the_run(final):
    schedule = CosineSchedule(warmup_steps=11, final=final)
    values = factors(schedule, 120, total=110)
    assert values[60] == pytest.approx((1 + final) / 2)  # halfway from step 10 to 110
    assert values[35] == pytest.approx(final + (1 - final) * (1 + math.sqrt(0.5)) / 2)
    assert all(a > b for a, b in pairwise(values[10:111]))
    assert values[109] > final
    assert values[110:] == pytest.approx([final] * 10)


def test_cosine_takes_its_own_length_first():
    own = CosineSchedule(total_steps=50)
    assert factors(own, 60, total=1000) == factors(CosineSchedule(), 60, total=50)
    assert factors(own, 60) == factors(CosineSchedule(), 60, total=50)


def test_cosine_of_a_run_shorter_than_its_warm_up_stays_in_it():
    values = factors(CosineSchedule(warmup_steps=100), 8, total=8)
    assert values == pytest.approx([(k + 1) / 100 for k in range(8)])


def test_cosine_needs_an_end_from_the_first_step_on():
    with pytest.raises(UserError, match="total_steps of CosineSchedule must be known"):
        CosineSchedule(warmup_steps=10).factor(0, None)


def test_stepped_restart_has_the_values_of_the_design():
    rates = [1e-4 * factor for factor in factors(SteppedCosineRestart(10), 31)]
    assert rates[0] == pytest.approx(1.000e-4)
    assert rates[9] == pytest.approx(5.122e-5, rel=1e-4)
    assert rates[10] == pytest.approx(9.000e-5)
    assert rates[20] == pytest.approx(8.100e-5)
    assert rates[5] == pytest.approx(7.5e-5)
    for cycle in (1, 2):
        scaled = [0.9**cycle * rate for rate in rates[:10]]
        assert rates[10 * cycle : 10 * cycle + 10] == pytest.approx(scaled)


def test_stepped_restart_keeps_to_its_floor():
    schedule = SteppedCosineRestart(10, trough=0.5, decay=0.5, floor=0.2)
    values = factors(schedule, 60)
    assert min(values) == pytest.approx(0.2)
    assert values[20] == pytest.approx(0.25)  # peak 0.5², trough raised from 0.125
    assert values[25] == pytest.approx((0.25 + 0.2) / 2)
    assert values[30:] == pytest.approx([0.2] * 30)


def test_stepped_restart_warms_up_into_its_first_cycle():
    warm, bare = SteppedCosineRestart(10, warmup_steps=4), SteppedCosineRestart(10)
    assert factors(warm, 43)[3:] == factors(bare, 40)


def test_a_schedule_names_its_settings():
    assert repr(CosineSchedule(5)) == "CosineSchedule(warmup_steps=5, total_steps=None, final=0.0)"
    assert repr(SteppedCosineRestart(7)) == (
        "SteppedCosineRestart(period_steps=7, warmup_steps=0, trough=0.5, decay=0.9, floor=0.1)"
    )


def test_a_schedule_is_built_from_a_config():
    parser = ArgumentParser()
    parser.add_argument("--schedule", type=Schedule | None, default=ConstantSchedule())
    given = ["--schedule=SteppedCosineRestart", "--schedule.period_steps=9", "--schedule.floor=0"]
    built = parser.instantiate(parser.parse_args(given)).schedule
    assert built == SteppedCosineRestart(9, floor=0.0)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ConstantSchedule(-1), "warmup_steps must be at least 0, got -1"),
        (lambda: CosineSchedule(5, 5), "total_steps must be at least 6, got 5"),
        (lambda: CosineSchedule(final=1.5), "final must lie in 0 … 1, got 1.5"),
        (lambda: SteppedCosineRestart(0), "period_steps must be at least 1, got 0"),
        (lambda: SteppedCosineRestart(5, decay=math.nan), "decay must lie in 0 … 1, got nan"),
        (lambda: SteppedCosineRestart(5, trough=-0.1), "trough must lie in 0 … 1, got -0.1"),
    ],
)
def test_wrong_arguments(build, words):
    with pytest.raises(UserError, match=words):
        build()
