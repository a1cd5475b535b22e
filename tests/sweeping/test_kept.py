import numpy as np

from pixelhdm.evaluation.scores import Score
from pixelhdm.sweeping.cost import Cost
from pixelhdm.sweeping.kept import identity, read_result, read_shown, write_result
from pixelhdm.sweeping.results import Row
from pixelhdm.sweeping.setting import Setting

SETTING = Setting("run", "EulerSampler", 5, (0.0, 1.0), 2.0)
SCORE = Score("KID", 0.1, 0.01, 50, None, "Inception", "TF bilinear to 299", None, "lower")


def test_a_result_comes_back_unless_something_has_changed(tmp_path):
    row, shown = Row(SETTING, Cost(5, 10), [SCORE], 0.5), np.full((2, 3, 4, 3), 7, np.uint8)
    write_result(tmp_path, "a", row, list(shown))
    assert read_result(tmp_path, "a", SETTING, Cost(5, 10)) == row
    assert read_result(tmp_path, "b", SETTING, Cost(5, 10)) is None
    assert read_result(tmp_path / "other", "a", SETTING, Cost(5, 10)) is None
    np.testing.assert_array_equal(read_shown(tmp_path), shown)
    write_result(tmp_path, "b", row, [])
    np.testing.assert_array_equal(read_shown(tmp_path), shown)


def test_the_identity_tells_settings_weights_and_files_apart(tmp_path):
    file = tmp_path / "reference.npz"
    file.write_bytes(b"one")
    same = identity({"b": 1, "a": SETTING}, "digest", [file])
    assert identity({"a": SETTING, "b": 1}, "digest", [file]) == same
    others = [
        identity({"a": SETTING._replace(scale=1.0), "b": 1}, "digest", [file]),
        identity({"a": SETTING, "b": 1}, "other", [file]),
        identity({"a": SETTING, "b": 1}, "digest", []),
    ]
    file.write_bytes(b"other")
    others.append(identity({"a": SETTING, "b": 1}, "digest", [file]))
    assert len({same, *others}) == 5
