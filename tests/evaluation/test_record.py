"""What evaluations of a run leave in its folder."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pixelhdm.evaluation.record import read_records, record_scores


def entry(step: int, value: float, kind: str = "test") -> dict:
    scores = [{"name": "CLIP score", "value": value}, {"name": "FID", "value": 2 * value}]
    return {"kind": kind, "step": step, "prompts": "räin", "scores": scores}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All numbers in TensorBoard's files."""
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    names = board.Tags()["scalars"]
    return {name: [(own.step, own.value) for own in board.Scalars(name)] for name in names}


def test_records_come_back_in_order_and_numbers_stand_at_their_steps(tmp_path):
    entries = [entry(500, 3.0), entry(1000, 2.0), entry(1000, 9.0, kind="sweep")]
    for own in entries:
        record_scores(tmp_path, own)
    assert read_records(tmp_path) == entries
    assert scalars(tmp_path) == {
        "test/CLIP_score": [(500, 3.0), (1000, 2.0)],
        "test/FID": [(500, 6.0), (1000, 4.0)],
    }


def test_a_checkpoint_without_a_step_is_not_on_the_board(tmp_path):
    record_scores(tmp_path, entry(-1, 3.0))
    assert len(read_records(tmp_path)) == 1
    assert not (tmp_path / "tensorboard").exists()


def test_a_torn_line_hides_no_other(tmp_path):
    assert read_records(tmp_path) == []
    record_scores(tmp_path, entry(1, 3.0))
    with open(tmp_path / "evaluations.jsonl", "a", encoding="utf-8") as file:
        file.write('{"kind": "te')
    record_scores(tmp_path, entry(2, 4.0))
    assert [own["step"] for own in read_records(tmp_path)] == [1, 2]


@pytest.mark.parametrize("text", ["\n\n", "{}\n"])
def test_blank_lines_are_no_records(tmp_path, text):
    (tmp_path / "evaluations.jsonl").write_text(text)
    assert read_records(tmp_path) == [{}] * text.count("{}")
