"""fit, validate and predict as a user runs them."""

import functools
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pixelhdm import cli
from pixelhdm.data.digits import Digits
from pixelhdm.models.encoders.dino import DINOv3
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.captioned import prepare_captioned
from tests.e2e.conftest import QUICKSTART, ROOT, checkpoint, logged
from tests.e2e.life import Life, fit
from tests.tiny_configs import tiny
from tests.tiny_dino import save_dinov2, save_dinov3
from tests.tiny_qwen3 import save_tiny_qwen3

LAST = "--ckpt_path=runs/quickstart/checkpoints/step_00000008.ckpt"


def test_fit_says_where_everything_is_and_the_next_command_works(run):
    output = run("fit", *QUICKSTART)
    for file in ("samples/step_00000008.png", "checkpoints/step_00000008.ckpt", "config.yaml"):
        assert f"runs/quickstart/{file}" in output
        assert (Path("runs/quickstart") / file).is_file()
    run(*shlex.split(output[output.index("python main.py predict") :].split("\n")[0])[2:])
    folder = next(Path("runs/quickstart/predict").iterdir())
    names = {file.name for file in folder.iterdir()}
    drawn = {f"class{c:04d}_seed{s:06d}.png" for c in (1, 7) for s in (0, 1)}
    assert names == {"grid.png", "index.html"} | drawn


def test_printed_command_knows_the_flags_of_the_run(run):
    flags = ["--trainer.default_root_dir=other run", "--model.network.hidden_dim=48"]
    output = run("fit", *QUICKSTART, *flags, "--trainer.max_steps=1")
    run(*shlex.split(output[output.index("python main.py predict") :].split("\n")[0])[2:])
    assert list(Path("other run/predict").glob("*/grid.png"))


def test_runs_that_end_early_have_a_last_checkpoint(run):
    stop = ["EarlyStopping", "monitor=val/total", "stopping_threshold=100"]
    flags = [f"--trainer.callbacks{'.' if i else '='}{word}" for i, word in enumerate(stop)]
    assert "step_00000004.ckpt" in run("fit", *QUICKSTART, *flags, "--checkpoint.every_n_steps=0")
    run("fit", *QUICKSTART, "--trainer.max_steps=6", "--ckpt_path=last")
    flags = [
        "--trainer.limit_train_batches=0.5",
        "--trainer.max_epochs=3",
        "--trainer.max_steps=-1",
    ]
    flags += ["--data.batch_size=200", "--trainer.default_root_dir=half"]  # 9 batches an epoch
    assert "step_00000012.ckpt" in run("fit", *QUICKSTART, *flags, "--checkpoint.every_n_steps=0")


def test_fast_dev_run_writes_no_run(run):
    run("fit", *QUICKSTART, "--trainer.fast_dev_run=true")
    assert not Path("runs/quickstart/checkpoints").exists()
    assert not Path("runs/quickstart/samples").exists()


def test_resolved_config_repeats_the_run(trained, run):
    run("fit", "-c", "runs/quickstart/config.yaml", "--trainer.default_root_dir=again")
    first, again = (checkpoint(folder, 8)["state_dict"] for folder in ("runs/quickstart", "again"))
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_predict_flags_and_metadata(trained, run):
    flags = ["--data.draw.classes=3", "--data.draw.num_images=2", "--data.draw.seed=40"]
    flags += [
        "--model.sampler.num_steps=3",
        "--model.guidance.scale=2.5",
        "--save_images.folder=out",
    ]
    run("predict", *QUICKSTART, LAST, *flags)
    assert sorted(file.name for file in Path("out").glob("class*")) == [
        "class0003_seed000040.png",
        "class0003_seed000041.png",
    ]
    image = Image.open("out/class0003_seed000041.png")
    facts = {key.removeprefix("pixelhdm."): value for key, value in image.text.items()}
    assert image.size == (8, 8)
    assert facts["class"] == "3"
    assert facts["seed"] == "41"
    assert facts["steps"] == "3"
    assert facts["scale"] == "2.5"


def test_predict_builds_nothing_of_training(trained, run, monkeypatch):
    """No data source, loss or optimizer is made, and the data need not exist."""
    for part in (Digits, VelocityLoss, DINOv3):

        @functools.wraps(part.__init__)
        def refuse(*_: object, **__: object) -> None:
            pytest.fail("a part of training was built")

        monkeypatch.setattr(part, "__init__", refuse)
    teacher = "--model.loss.init_args.repa={class_path: RepaLoss, init_args: {teacher: DINOv3}}"
    run("predict", *QUICKSTART, LAST, teacher)


def test_average_and_raw_weights_draw_differently_and_image_does_not_depend_on_the_batch(run):
    run(
        "fit",
        *QUICKSTART,
        "--trainer.max_steps=40",
        "--ema.decay=0.99",
        "--model.optimizer.lr=0.01",
    )
    last = "--ckpt_path=last"
    images = {}
    for name, flags in {
        "ema": [],
        "small": ["--data.batch_size=1"],
        "raw": ["--model.weights=raw"],
    }.items():
        run("predict", *QUICKSTART, last, f"--save_images.folder={name}", *flags)
        files = sorted(Path(name).glob("class*"))
        images[name] = np.stack([np.asarray(Image.open(file)) for file in files]).astype(int)
    assert np.abs(images["ema"] - images["small"]).max() <= 1
    assert np.abs(images["ema"] - images["raw"]).max() > 1


def test_validate_measures_the_average_on_held_out_images(trained, run):
    flags = [*QUICKSTART, "--trainer.limit_val_batches=1.0", LAST]
    first, again = (run("validate", *flags), run("validate", *flags, "--data.batch_size=64"))
    values = [float(text.split("val/total")[1].split()[1]) for text in (first, again)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert 0.1 < values[0] < 10


@pytest.mark.parametrize(("weights", "carry"), [("raw", "true"), ("ema", "false")])
def test_init_from_starts_a_new_run_from_the_chosen_weights(run, weights, carry, caplog):
    """A learning rate of 0 keeps the weights, and a decay of 0.5 an average after one step."""
    run("fit", *QUICKSTART, "--ema.decay=0.5")
    run(
        "fit", *QUICKSTART, "--model.init_from=runs/quickstart", f"--model.init_weights={weights}",
        f"--model.init_ema={carry}", "--trainer.default_root_dir=new", "--trainer.max_steps=1",
        "--model.optimizer.lr=0", "--checkpoint.every_n_steps=1", "--ema.decay=0.5",
    )  # fmt: skip
    assert f"Took {weights} weights of step 8 from runs/quickstart/checkpoints/" in caplog.text
    assert (
        f"the average {'goes on after its 8' if carry == 'true' else 'starts anew'}" in caplog.text
    )
    old, new = checkpoint("runs/quickstart", 8)["state_dict"], checkpoint("new", 1)
    prefix = "ema." if weights == "ema" else ""
    for key, value in new["state_dict"].items():
        if not key.startswith("ema."):
            assert torch.equal(value, old[prefix + key])
            average = old[f"ema.{key}"] if carry == "true" else value
            torch.testing.assert_close(new["state_dict"][f"ema.{key}"], (average + value) / 2)
    assert new["global_step"] == 1
    assert new["training"]["average_steps"] == (8 if carry == "true" else 0)


def test_predict_takes_init_from(trained, run):
    file = LAST.split("=")[1]
    run("predict", *QUICKSTART, f"--model.init_from={file}", "--save_images.folder=a")
    run("predict", *QUICKSTART, LAST, "--save_images.folder=b")
    for file in Path("a").glob("*.png"):
        one, other = Image.open(file), Image.open(Path("b") / file.name)
        assert one.tobytes() == other.tobytes()
        assert one.info | {"pixelhdm.config": ""} == other.info | {"pixelhdm.config": ""}


def test_foreign_checkpoints_are_errors(trained, run):
    state = torch.load(LAST.split("=")[1], weights_only=True)["state_dict"]
    for content in ({"state_dict": state}, {"state_dict": [1]}, {"weights": 1}, [1]):
        torch.save(content, "foreign.ckpt")
        for command in ("fit", "validate", "predict"):
            new = "--trainer.default_root_dir=new"
            with pytest.raises(SystemExit, match=r"error: checkpoint foreign.ckpt must .*got"):
                run(command, *QUICKSTART, new, "--ckpt_path=foreign.ckpt")


def test_wrong_checkpoints_are_errors(trained, run):
    whole = Path(LAST.split("=")[1]).read_bytes()
    Path("torn.ckpt").write_bytes(whole[: len(whole) // 2])
    for command in ("fit", "validate", "predict"):
        new = [*QUICKSTART, "--trainer.default_root_dir=other"]
        with pytest.raises(SystemExit, match="torn or not a checkpoint"):
            run(command, *new, "--ckpt_path=torn.ckpt")
        with pytest.raises(SystemExit, match="does not exist"):
            run(command, *new, "--ckpt_path=missing.ckpt")
        with pytest.raises(
            SystemExit, match=r"does not fit the config: .*other shapes.*hidden_dim|does not fit"
        ):
            run(command, *new, LAST, "--model.network.bottleneck_dim=8")
        with pytest.raises(SystemExit, match="tensors it lacks"):
            run(command, *new, LAST, "--model.network.patch_depth=3")
    for command in ("validate", "predict"):
        with pytest.raises(SystemExit, match="needs trained weights"):
            run(command, *QUICKSTART)


def test_two_processes_share_the_work(run):
    """The same images as one process, none missing; the same weights up to rounding. They find no
    data and write it first.
    """
    shutil.rmtree("data")
    sgd = ["--model.optimizer.class_path=torch.optim.SGD", "--model.optimizer.init_args.lr=0.05"]
    ddp = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    two = ["--data.batch_size=20", "--trainer.default_root_dir=two"]
    sgd += [
        "--data.train.split=val",
        "--trainer.max_steps=8",
        "--trainer.val_check_interval=5",
        "--sample_images.every_n_steps=0",
        "--checkpoint.every_n_steps=0",
    ]  # past the padded batch, the 5th, of which the second process has nothing
    fit(*QUICKSTART, *sgd, *ddp, *two, processes=2)
    fit(*QUICKSTART, *sgd, "--data.batch_size=40")
    one, two = (checkpoint(folder, 8) for folder in ("runs/quickstart", "two"))
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][key], value, rtol=1e-4, atol=1e-4)
    last = "--ckpt_path=two/checkpoints/step_00000008.ckpt"
    flags = [*QUICKSTART, last, "--data.draw.num_images=3"]
    small = ["--data.batch_size=2", "--save_images.folder=b"]
    Life("predict", *flags, *ddp, *small, processes=2).end()
    run("predict", *flags, "--save_images.folder=a")
    names = sorted(file.name for file in Path("a").iterdir())
    assert names == sorted(file.name for file in Path("b").iterdir())
    one_image = ["--data.draw.classes=3", "--data.draw.num_images=1", "--save_images.folder=c"]
    Life("predict", *flags, *ddp, *one_image, processes=2).end()
    own = {"grid.png", "index.html", "class0003_seed000000.png"}
    assert {file.name for file in Path("c").iterdir()} == own
    for name in (name for name in names if name.endswith(".png")):
        a, b = (np.asarray(Image.open(Path(folder) / name)).astype(int) for folder in "ab")
        assert np.abs(a - b).max() <= 1


def test_non_finite_steps_are_skipped_counted_and_at_last_fatal(run):
    """A learning rate that explodes: weights stay finite, samples are listed, the last checkpoint
    is whole.
    """
    flags = [
        *QUICKSTART,
        "--model.optimizer.class_path=torch.optim.SGD",
        "--model.optimizer.init_args.lr=1e18",
    ]
    with pytest.raises(SystemExit, match=r"5 steps in a row.*lower learning rate"):
        run(
            "fit",
            *flags,
            "--trainer.max_steps=50",
            "--skip_non_finite.max_in_a_row=5",
            "--checkpoint.every_n_steps=1",
        )
    lines = [
        json.loads(line)
        for line in Path("runs/quickstart/non_finite.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 5
    assert all(len(line["samples"]) == 8 for line in lines)
    files = sorted(Path("runs/quickstart/checkpoints").iterdir())
    state = torch.load(files[-1], weights_only=True)
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())


def test_diverged_run_keeps_its_last_good_checkpoint(run):
    """Step 9 ruins the weights; what is kept can be resumed with a lower learning rate."""
    run("fit", *QUICKSTART, "--checkpoint.keep=1")
    ruin = ["--model.optimizer.lr=1e30", "--trainer.max_steps=60", "--ckpt_path=last"]
    limit = ["--skip_non_finite.max_in_a_row=6", "--checkpoint.keep=1"]
    with pytest.raises(SystemExit, match="are intact"):
        run("fit", *QUICKSTART, *ruin, *limit, "--checkpoint.every_n_steps=1")
    kept = sorted(Path("runs/quickstart/checkpoints").iterdir())
    assert kept[0].name == "step_00000008.ckpt"
    for later in kept[1:]:
        later.unlink()
    run("fit", *QUICKSTART, "--trainer.max_steps=12", "--ckpt_path=last", "--checkpoint.keep=1")
    assert [file.name for file in Path("runs/quickstart/checkpoints").iterdir()] == [
        "step_00000012.ckpt"
    ]


@pytest.mark.parametrize(("bad", "saved"), [(4, [5, 8]), (8, [4, 8])])
def test_a_skipped_step_does_not_cost_its_checkpoint(run, monkeypatch, bad, saved):
    """The next good step is saved in its place; at the end of a run its unchanged weights are."""
    forward, steps = VelocityLoss.forward, []

    def broken(self: VelocityLoss, *given: object) -> torch.Tensor:
        steps.extend([1] * torch.is_grad_enabled())
        value = forward(self, *given)
        return value * torch.nan if len(steps) == bad and torch.is_grad_enabled() else value

    monkeypatch.setattr(VelocityLoss, "forward", broken)
    output = run("fit", *QUICKSTART)
    assert "Training ended at step 8" in output
    files = sorted(Path("runs/quickstart/checkpoints").iterdir())
    assert [int(file.stem.removeprefix("step_")) for file in files] == saved
    state = checkpoint("runs/quickstart", 8)["state_dict"].values()
    assert all(value.isfinite().all() for value in state)


SHORT = [
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--checkpoint.every_n_steps=2",
    "--sample_images.every_n_steps=2",
    "--model.sampler.num_steps=1",
]
CONFIGS = [path for path in sorted(ROOT.glob("configs_*/*.yaml")) if path.name != "base.yaml"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.parent.name[-3:]}-{c.stem}")
def test_every_shipped_config_trains_and_draws_tiny(run, config, vgg):
    """With the files that the command in its head comment names, all losses included."""
    files, content, overlay = tiny(config)
    assert files[-1] == config
    Path("tiny.yaml").write_text(yaml.safe_dump(overlay))
    flags = [word for file in (*files, "tiny.yaml") for word in ("-c", file)]
    flags += ["--trainer.default_root_dir=run", "--trainer.limit_val_batches=1", *SHORT]
    losses = str(content["model"]["loss"])
    if "DINO" in losses:
        (save_dinov2 if "DINOv2" in losses else save_dinov3)(Path("dino"))
    if "Lpips" in losses:
        Path("vgg16.pth").symlink_to(vgg)
    if config.parent.name == "configs_t2i":
        save_tiny_qwen3("qwen3")
        prepare_captioned("data/mine")
    if "strategy" in content["trainer"]:  # processes that a group ends

        def run(*arguments: object) -> str:
            return Life(*arguments).end()

    if content["model"].get("init_from"):  # of the stage before: the same config, from nothing
        before = ["--model.init_from=null", "--trainer.default_root_dir=before"]
        run("fit", *flags, *before, "--sample_images.every_n_steps=0")
        flags += ["--model.init_from=before"]
    run("fit", *flags)
    assert all(value > 0 for value in logged("run", "train/total"))
    run("predict", *flags, "--ckpt_path=last")
    assert list(Path("run/predict").glob("*/index.html"))
    assert len(list(Path("run/predict").glob("*/*_seed*.png"))) >= 2


def test_the_t2i_quickstart_works_on_real_paintings_with_a_real_encoder(run):
    """Its own sizes and network, a few steps alone."""
    config = ["-c", str(ROOT / "configs_t2i/quickstart.yaml"), "--data.batch_size=2"]
    few = ["--trainer.max_steps=2", "--sample_images.every_n_steps=0"]
    run("fit", *config, *few)
    assert all(value > 0 for value in logged("runs/t2i_quickstart", "train/total"))
    Path("prompts.txt").write_text("a red barn\n", encoding="utf-8")
    draw = ["--data.prompts=prompts.txt", "--data.draw.height=64", "--data.draw.width=32"]
    draw += ["--model.sampler.num_steps=1", "--ckpt_path=last", "--save_images.folder=out"]
    run("predict", *config, *draw)
    assert len(list(Path("out").glob("00000_seed*.png"))) == 4
    assert Image.open("out/00000_seed000003.png").size == (32, 64)


@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_help_explains_every_own_argument(run, command, capsys):
    with pytest.raises(SystemExit) as end:
        run(command, "--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    own = [
        line
        for line in text.splitlines()
        if line.lstrip().startswith(("--model.", "--data.", "--ema.", "--cpu"))
    ]
    assert len(own) > 15
    for name in (
        "--ema.decay",
        "--model.flow.t_eps",
        "--data.draw.seed",
        "--checkpoint.keep",
        "--model.weights",
    ):
        entry = text[text.index(name) :]
        assert "default" in entry[: entry.index("\n  --", 5)], name


def test_print_config_shows_the_merged_files(run, capsys):
    with pytest.raises(SystemExit):
        run("fit", *QUICKSTART, "--print_config")
    merged = yaml.safe_load(capsys.readouterr().out)
    assert merged["model"]["network"]["init_args"]["hidden_dim"] == 32
    assert merged["model"]["guidance"]["init_args"]["scale"] == 2.0


@pytest.mark.parametrize(
    ("folder", "name", "conditioner"),
    [("configs_c2i", "imagenet_256", 9_225_216), ("configs_t2i", "pretrain_256", 2_103_296)],
)
def test_default_configs_have_the_stated_size(run, monkeypatch, folder, name, conditioner):
    """They parse, build and have as many parameters as a head comment says."""
    built = []
    monkeypatch.setattr(
        cli.PixelHDMCLI, "_run_subcommand", lambda self, _: built.append(self.model)
    )
    files = [ROOT / folder / f"{part}.yaml" for part in ("base", name)]
    with torch.device("meta"):
        run("fit", *(f"--config={file}" for file in files))
    text = "".join(file.read_text() for file in files)
    for part, number in (("network", 356_708_483), ("conditioner", conditioner)):
        assert sum(p.numel() for p in getattr(built[0], part).parameters()) == number
        assert f"{number:,}" in text
