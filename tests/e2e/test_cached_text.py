"""Training on cached text through the real command line: the same as live, without the encoder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, checkpoint, differences, logged
from tests.text_shards import save_shards
from tests.tiny_qwen3 import save_tiny_qwen3

OVERLAY = """
trainer: {max_steps: 4, accumulate_grad_batches: 1, val_check_interval: 2}
data:
  image_size: 8
  batch_size: 4
  batch_tokens: null
  buckets: null
  train: {class_path: Shards, init_args: {path: shards, condition: caption}}
  val: {class_path: Shards, init_args: {path: shards, condition: caption}}
  prompts: [a cat, {prompt: the 3, negative_prompt: a dog}]
model:
  conditioner: {init_args: {source: ./qwen, width: 32, null_prob: 0.3}}
  loss: {init_args: {repa: null}}
"""
CONFIG = [
    *("-c", ROOT / "configs_t2i/base.yaml"),
    *("-c", ROOT / "tests/offline_t2i.yaml"),
    *("-c", "overlay.yaml"),
]
CACHED = ["--data.train.cached_text=true", "--data.val.cached_text=true"]
NEEDED = "The text encoder is needed for"
QUICK = ["--trainer.limit_val_batches=0", "--sample_images.every_n_steps=0"]


@pytest.fixture(autouse=True)
def files(run_folder: Path) -> None:
    """Shards, text encoder and config of a run."""
    save_tiny_qwen3(run_folder / "qwen")
    save_shards(run_folder / "shards")
    Path("overlay.yaml").write_text(OVERLAY)


def fit(run: Callable[..., str], folder: str, *flags: object) -> str:
    return run("fit", *CONFIG, f"--trainer.default_root_dir={folder}", *flags)


def failing(run: Callable[..., str], *arguments: object) -> str:
    """The sentence that a command ends with."""
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    return str(end.value)


def test_cached_text_trains_like_live_text_and_never_needs_the_encoder(run, caplog):
    caplog.set_level("INFO")
    fit(run, "live")
    run("cache-text", *CONFIG)
    Path("qwen").rename("gone")
    output = fit(run, "cached", *CACHED)
    assert NEEDED not in output + caplog.text
    for name in ("train/total", "train/grad_norm", "val/total", "val_raw/total"):
        live = logged("live", name)
        assert len(live) == (4 if name.startswith("train") else 2)
        assert logged("cached", name) == pytest.approx(live, rel=1e-5)
    grids = [sorted(file.name for file in Path(f, "samples").iterdir()) for f in ("live", "cached")]
    assert len(grids[0]) == 4
    assert grids[0] == grids[1]


def test_texts_encoded_in_the_same_batches_train_alike_to_the_bit(run):
    flags = [*QUICK, "--data.batch_size=1", "--model.conditioner.null=empty"]
    fit(run, "live", *flags)
    run("cache-text", *CONFIG, *CACHED, "--batch_size=1")
    Path("qwen").rename("gone")
    fit(run, "cached", *flags, *CACHED)
    assert logged("cached", "train/total") == logged("live", "train/total")
    states = [checkpoint(folder, 4)["state_dict"] for folder in ("live", "cached")]
    assert differences(*states) == []


def test_a_resumed_run_may_change_to_cached_text_and_back(run):
    fit(run, "whole", *QUICK)
    output = run("cache-text", *CONFIG, "--text_folder=states")
    assert "Train with cached_text: true, text_folder: states in the init_args" in output
    for steps, flags in ((2, []), (3, [*CACHED, "--data.train.text_folder=states"]), (4, [])):
        places = [flag.replace("train", "val") for flag in flags if "folder" in flag]
        last = ["--ckpt_path=last"] if steps > 2 else []
        fit(run, "parts", *QUICK, f"--trainer.max_steps={steps}", *flags, *places, *last)
    whole, parts = logged("whole", "train/total"), logged("parts", "train/total")
    assert parts == pytest.approx(whole, rel=1e-5)


def test_prompts_that_are_not_cached_are_named(run, caplog):
    run("cache-text", *CONFIG, "--data.prompts=[a cat]")
    caplog.set_level("INFO")
    output = fit(run, "one", *CACHED, *QUICK[:1], "--trainer.max_steps=1") + caplog.text
    assert f"{NEEDED} 2 prompts that the text cache lacks, such as 'a dog'" in output


def test_what_does_not_fit_is_refused_in_one_sentence(run):
    flags = [*CONFIG, *CACHED]
    assert "must find a file for each of 3 shards, got none for 3" in failing(run, "fit", *flags)
    run("cache-text", *CONFIG)
    told = failing(run, "fit", *flags, "--model.conditioner.layer=-2")
    assert "error: cached text must be made by the training's text encoder, got layer -2" in told
    assert "has -1. Run main.py cache-text" in told
    classes = ["--model.conditioner=ClassConditioner", "--model.conditioner.num_classes=3"]
    told = failing(run, "fit", *flags, *classes)
    assert "cached_text must be false for a conditioner without text encoder" in told
    told = failing(run, "cache-text", *CONFIG, *classes)
    assert "model.conditioner must be one of texts" in told
    assert "got ClassConditioner" in told
    told = failing(run, "cache-text", *CONFIG, "--batch_sise=3")
    assert "unrecognized arguments: --batch_sise=3. Did you mean batch_size" in told


def test_a_run_s_config_will_do_and_nothing_but_encoder_and_data_is_built(run, capsys):
    with pytest.raises(SystemExit):
        fit(run, "live", "--print_config")
    Path("config.yaml").write_text(capsys.readouterr().out)
    wrong = "--model.network.init_args.patch_size=7"  # a network that cannot be built
    output = run("cache-text", "-c", "config.yaml", wrong)
    assert "4 files" in output


def test_help_begins_with_the_command_s_own_flags(run, capsys):
    with pytest.raises(SystemExit):
        run("cache-text", "--help")
    text = capsys.readouterr().out
    assert text.startswith("usage: main.py cache-text [-c FILE]...")
    assert text.index("--text_folder") < text.index("--trainer")
