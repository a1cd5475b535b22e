import csv
import io
import math

import pytest

from pixelhdm.errors import UserError
from pixelhdm.evaluation.scores import Score
from pixelhdm.sweeping.cost import Cost
from pixelhdm.sweeping.results import Row, check_metric, deciding, ranked, verdict
from pixelhdm.sweeping.setting import Setting
from pixelhdm.sweeping.table import csv_table, markdown, short_table
from tests.stubs import ColourFeatures


def score(name: str, value: float, error: float | None = None, better: str = "lower") -> Score:
    return Score(name, value, error, 500, 10_000, "Colour", "none", 0.01, better)


def row(scale: float, kid: float, error: float | None = 0.001, passes: int = 40) -> Row:
    setting = Setting("run", "EulerSampler", 20, (0.0, 1.0), scale)
    scores = [score("FD-Colour", 10 * kid), score("KD-Colour", kid, error)]
    return Row(setting, Cost(20, passes), [*scores, score("recall", kid, None, "higher")], 0.25)


ROWS = [row(1.0, 0.05), row(1.5, 0.02), row(2.0, 0.03), row(3.0, math.nan)]


def test_the_best_is_the_lowest_or_the_highest_as_the_score_says():
    scales = [found.setting.scale for found in ranked(ROWS, "KD-Colour")]
    assert scales == [1.5, 2.0, 1.0, 3.0]
    assert [found.setting.scale for found in ranked(ROWS, "recall")] == [1.0, 2.0, 1.5, 3.0]
    cheap = row(4.0, 0.02, passes=20)
    assert ranked([*ROWS, cheap], "KD-Colour")[0] is cheap


def test_which_score_decides():
    assert deciding(ROWS[0].scores, None) == "KD-Colour"
    assert deciding(ROWS[0].scores[:1], None) == "FD-Colour"
    assert deciding(ROWS[0].scores, "recall") == "recall"
    with pytest.raises(UserError, match=r"one of FD-Colour, KD-Colour, recall, .* got FID"):
        deciding(ROWS[0].scores, "FID")


def test_a_metric_that_no_extractor_gives_is_refused_at_once():
    both = [ColourFeatures(), ColourFeatures("inception", "more", is_published=True)]
    check_metric("KD-Colours", both, 50)
    for metric in ("KID", "FID", "sFD-Colours", "recall", "IS"):
        check_metric(metric, both, 20_000)
    with pytest.raises(
        UserError, match=r"must be one of FD-Colours, KD-Colours, sFD-Colours, .* got FID"
    ):
        check_metric("FID", both, 50)
    with pytest.raises(UserError, match=r"one of FD-Colours, KD-Colours, which .* got CMMD"):
        check_metric("CMMD", both[:1], 50)


def test_the_verdict_tells_whether_the_next_can_be_told_apart():
    assert "Best by KD-Colour, lower is better: 0.02 ± 0.001 with scale 1.5," in verdict(
        ROWS[:3], "KD-Colour"
    )
    assert "The next, scale 2, " in verdict(ROWS[:3], "KD-Colour")
    assert "outside the error" in verdict(ROWS[:3], "KD-Colour")
    near = [*ROWS, row(2.5, 0.0213, passes=20), row(2.6, 0.0215, passes=60)]  # within 0.00141
    told = verdict(near, "KD-Colour")
    assert "1 other setting of 5 cannot be told from it at 500 images" in told
    assert "The cheapest of them: scale 2.5," in told
    assert "20 predictions an image in place of 40: 0.0213 ± 0.001." in told
    assert "has no error estimate at 500 images" in verdict(ROWS, "FD-Colour")
    assert verdict(ROWS[:1], "KD-Colour").count("\n") == 0


def test_the_tables_hold_every_setting_and_score():
    told = list(csv.DictReader(io.StringIO(csv_table(ROWS))))
    assert [float(line["scale"]) for line in told] == [1.0, 1.5, 2.0, 3.0]
    assert [float(line["KD-Colour"]) for line in told[:3]] == [0.05, 0.02, 0.03]
    assert told[0]["KD-Colour error"] == "0.001"
    assert "recall error" not in told[0]
    assert (told[0]["calls"], told[0]["predictions"], told[0]["seconds"]) == ("20", "40", "0.25")
    text = markdown(ROWS, "KD-Colour", {"images": "500"}, "Best: this.")
    body = [line for line in text.splitlines() if line.startswith("| run")]
    assert [line.split(" | ")[3] for line in body] == ["1.5", "2", "1", "3"]
    assert "- images: 500" in text
    assert "as many real images have 0.01" in text
    assert len(short_table(ROWS, "KD-Colour", 2).splitlines()) == 3
