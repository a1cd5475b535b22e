"""What a training config means for a report, and which ones are refused."""

from pathlib import Path

import pytest

from pixelhdm.data.prepare.chosen_config import choose
from pixelhdm.errors import UserError
from tests.data.prepare.conftest import save

SIZE = "data: {image_size: 32, batch_size: 4"
HEAD = r"must be a whole number above 0, got"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "data: {image_size: x, batch_size: 4}",
            rf"^data\.image_size {HEAD} x in .*a\.yaml\.",
        ),
        ("data: {image_size: 32}", rf"data\.batch_size {HEAD} nothing in"),
        ("data: {image_size: 32, batch_size: true}", rf"data\.batch_size {HEAD} True"),
        (SIZE + ", batch_tokens: 0}", rf"data\.batch_tokens {HEAD} 0"),
        (SIZE + ", batch_tokens: [1]}", rf"data\.batch_tokens {HEAD} \[1\]"),
        ("data: 3", r"^data must hold settings below it, got 3"),
        (SIZE + ", buckets: [1]}", r"^data\.buckets must hold settings below it, got \[1\]"),
        (SIZE + ", buckets: {stepp: 3}}", r"keys of data\.buckets must be one of .*, got stepp"),
        (SIZE + ", buckets: {step: 6.5}}", rf"data\.buckets\.step {HEAD} 6\.5"),
        (SIZE + ", buckets: {step: 60}}", r"data\.buckets in .* cannot be used: min_side and max"),
        (SIZE + ", buckets: {max_crop: much}}", r"max_crop must be a number, got much"),
        (SIZE + ", buckets: {levels: 512}}", r"levels must be a list of whole numbers"),
        (SIZE + ", buckets: {sizes: [[32]]}}", r"sizes must be a list of pairs"),
        (
            SIZE + ", buckets: {too_small: stretch}}",
            r"too_small must be one of drop, upscale",
        ),
        (SIZE + "}\nmodel: {network: {init_args: {patch_size: 0}}}", rf"patch_size {HEAD} 0"),
        (SIZE + "}\nmodel: {network: PixelHDM}", r"model\.network must hold settings below it"),
        ("data: {", r"train_config must be a readable YAML file"),
    ],
)
def test_wrong_configs_are_refused_before_any_work(photos, run, tmp_path, text, words):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        run(photos, train_config=str(tmp_path / "a.yaml"))
    assert "NoneType" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_configs_are_laid_over_each_other(tmp_path):
    (tmp_path / "a.yaml").write_text(SIZE + ", buckets: {max_crop: 1e-1, step: 128}}")
    (tmp_path / "b.yaml").write_text("data: {batch_tokens: 512, buckets: {too_small: upscale}}")
    chosen = choose([str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")])
    assert (chosen.buckets.max_crop, chosen.buckets.step) == (0.1, 128)
    assert (chosen.batch_tokens, chosen.batch_size) == (512, None)
    assert chosen.buckets.too_small == "upscale"


def test_the_report_says_which_batches_it_is_of(tmp_path, run, capsys):
    for number in range(2):
        save(tmp_path / f"in/{number}.jpg", number, 300, 280)
    (tmp_path / "a.yaml").write_text(SIZE + "}")
    run(tmp_path / "in")
    text = capsys.readouterr().out
    assert "  assumed: batches of 8 images; data.batch_tokens 2048 gives the same" in text
    assert "1 bucket holds less than one batch (256x256); the rest of it is padding" in text
    assert "fewer buckets.levels" not in text  # there is nothing to merge it with
    run(tmp_path / "in", train_config=str(tmp_path / "a.yaml"))
    text = capsys.readouterr().out
    assert "batches of 4 images, the data.batch_size; data.batch_tokens 16 gives" in text
    assert "Shards: 1, " in text
    assert " of tars, " in text


def test_small_images_are_told_of_train_config(tmp_path, run, capsys):
    save(tmp_path / "in/0.png")
    run(tmp_path / "in")
    text = capsys.readouterr().out
    assert "--train_config [configs_c2i/base.yaml,configs_c2i/cifar10.yaml]" in text
    root = Path(__file__).parents[3]
    assert choose([str(root / f"configs_c2i/{name}.yaml") for name in ("base", "cifar10")])
