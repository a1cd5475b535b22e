"""Wrong command lines, given to the real one in this process; each ends before it writes a file."""

import re
import sys
from pathlib import Path

import pytest

from pixelhdm import cli
from pixelhdm.parser import one_sentence

ROOT = Path(__file__).parents[1]
CONFIGS = ["-c", str(ROOT / "configs_c2i/quickstart.yaml"), "-c", str(ROOT / "tests/offline.yaml")]

REPA = "--model.loss.repa={class_path: RepaLoss, init_args: {teacher: "
BESIDE = "Put the settings beside class_path under init_args."


@pytest.fixture
def error(tmp_path, monkeypatch):
    """What the command line says about wrong arguments."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert "\n" not in end.value.code
        assert end.value.code.startswith("error: ")
        assert not any(entry.is_file() for entry in tmp_path.rglob("*"))
        return end.value.code

    return call


@pytest.mark.parametrize(
    ("flag", "suggestion"),
    [
        ("--model.network.patch_sise=4", "Did you mean patch_size"),
        ("--model.network.init_args.patch_sise=4", "Did you mean patch_size"),
        ("--model.optimizer.lrr=1", "Did you mean lr?"),
        ("--model.guidance.scales=1", "Did you mean scale or rescale?"),
        ("--data.train.spilt=val", "Did you mean split?"),
        ("--data.batchsize=4", "Did you mean data.batch_size"),
        ("--trainer.max_stepss=4", "Did you mean trainer.max_steps"),
        ("--ema.decai=0.5", "Did you mean ema.decay or ema.device?"),
        ("--checkpoint.every_n_step=5", "Did you mean checkpoint.every_n_steps"),
        ("--xyzzy=1", "See --help for the valid names."),
        ("--model.network.xyzzy=1", "See --help for the valid names."),
        ("--model.conditioner.dim=4", "PixelHDM sets dim itself."),
        ("--model.optimzer.lr=1", "Did you mean model.optimizer"),
        ("--optimizer.lr=1", "Did you mean model.optimizer?"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest_one(error, flag, suggestion):
    said = error("fit", *CONFIGS, flag)
    assert flag.split("=")[0].rpartition(".")[2].removeprefix("--") in said
    assert suggestion in said


@pytest.mark.parametrize(
    "flag", ["--trainer.max_s=4", "--data.batch=4", "--ema.dec=0.5", "--seed=1"]
)
def test_abbreviations_are_unknown(error, flag):
    assert f"unrecognized arguments: {flag}" in error("fit", *CONFIGS, flag)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "{model: {optimzer: {lr: 1}}}",
            "'model.optimzer.lr'. Did you mean model.optimizer",
        ),
        ("{optimizer: {init_args: {lr: 1}}}", "optimizer.init_args.lr'. Did you mean model.optim"),
        ("{model: {schedule: {class_path: CosineSchedule, warmup_steps: 1}}}", BESIDE),
        ("{model: {network: {class_path: PixelHDM, hidden_dim: 64}}}", BESIDE),
        ("{model: {optimizer: {class_path: MuonAdamW, lr: 0.1}}}", BESIDE),
        (
            "{zclip: null, ema: {decay: 0.9}}",
            "zclip: must hold settings below it or be left out, g",
        ),
        ("{trainer: null, ema: {decay: 0.9}}", "trainer: must hold settings below it or be left"),
        ("{model: 3}", "model: must hold settings below it or be left out, got 3."),
        ("{model: {flow: null}}", "model.flow: must hold settings below it or be left out, got nu"),
        ("{checkpoint: {every_n_steps: null}}", "every_n_steps: Expected a int. Got value: None"),
        ("{seed_everything: null}", "seed_everything: Expected a bool; Expected a int, got None."),
        ("{model: {schedule: {warmup_steps: 3}}}", "must have a class before it has settings, got"),
        ("{model: {schedule: {init_args: {}}}}", "must have a class before it has settings, got {"),
        ("{model: {loss: {init_args: {frequency: {init_args: {qualty: 5}}}}}}", "mean quality?"),
        ("{wandb: 3}", "wandb: Not a valid subclass of Wandb; Expected a bool, got 3."),
    ],
)
def test_what_a_file_has_in_the_wrong_place_is_told(error, tmp_path_factory, text, words):
    file = tmp_path_factory.mktemp("configs") / "own.yaml"
    file.write_text(text)
    assert words in error("fit", *CONFIGS, "-c", str(file))


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        (
            "--model.schedule=Foo",
            "no fitting class has this name, got Foo. Known: ConstantSchedule, C",
        ),
        ("--model.schedule=CosinSchedule", "got CosinSchedule. Did you mean CosineSchedule or"),
        (
            "--model.schedule=Schedule",
            "neither base nor incomplete, got Schedule. Known: C",
        ),
        ("--model.network=PixelHDN", "got PixelHDN. Did you mean PixelHDM or PixelDiT?"),
        ("--model.conditioner=Foo", "Known: ClassConditioner, "),
        ("--model.conditioner=Conditioner", "got: Can't instantiate abstract class Conditioner"),
        ("--model.network=Network", "neither base nor incomplete, got Network. Known: "),
        (
            f"{REPA}DINOv4}}}}",
            "repa.teacher: no fitting class has this name, got DINOv4. Did you mean DINOv",
        ),
        (f"{REPA}Teacher}}}}", "nor incomplete, got Teacher. Known: DINOv2, DINOv3"),
        ("--model.loss.extra=[{class_path: VelocityLoss, weight: 3}]", BESIDE),
        (
            "--model.schedule.decay=3",
            "must have a class before it has settings, got decay=3. Known",
        ),
        (f"{REPA}{{class_path: DINOv3, source: x}}}}}}", BESIDE),
        (f"{REPA}{{source: x}}}}}}", "repa.teacher: must have a class before it has settings, got"),
        ("--model.loss.repa.teacher.source=x", "before it has settings, got teacher.source=x. Kno"),
        (f"{REPA}DINOv3, velocity: 3}}}}", "'velocity': 3}}. See --help for the valid names."),
        ("--model.loss.frequency.wieght=3", "Did you mean weight?"),
        ("--model.optimizer.params=3", "PixelHDM sets params itself."),
        ("--model.optimizer=adamw", "got adamw. Did you mean AdamW or"),
        ("--model.network.patch_depth=null", "patch_depth: Expected a int. Got value: None."),
        ("--model.loss.extra=[nowhere.L1]", "a file nowhere.py must lie beside main.py, or its"),
        ("--zclip=null", "error: zclip: must hold settings or name a file of them, got null."),
        ("--trainer.plugins=Foo", "must be a list, got Foo; write --trainer.plugins+=… for each"),
        ("--trainer.strategy=foo", "invalid strategy name: `strategy='foo'`"),
        ("--trainer.callbacks=[EMA]", "must not hold EMA, which every run has, got another one. S"),
        ("--data.draw.clases=3", "Did you mean data.draw.classes or data.draw.seed?"),
        (
            "--model.loss.frequency=Foo",
            "model.loss.frequency: no fitting class has this name, got Foo. Kn",
        ),
        ("--model.optimizer=AdaamW", "got AdaamW. Did you mean AdamW"),
        ("--model.optimizer.lr=abc", "model.optimizer.lr: Expected a float, got abc."),
        ("--model.loss.frequency.quality=x", "model.loss.frequency.quality: Expected a int. Got"),
    ],
)
def test_wrong_names_and_values_of_parts_are_told_from_each_other(error, flag, words):
    assert words in error("fit", *CONFIGS, flag)


@pytest.mark.parametrize("key", ["patch_sise: 4", "init_args: {patch_sise: 4}"])
def test_unknown_keys_of_a_file_are_named_too(error, tmp_path_factory, key):
    file = tmp_path_factory.mktemp("configs") / "own.yaml"
    file.write_text(f"model:\n  network:\n    {key}\n")
    said = error("fit", *CONFIGS, "-c", str(file))
    assert "patch_sise" in said
    assert "Did you mean patch_size" in said


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--model.network.num_heads=two", ["model.network", "num_heads", "int", "two"]),
        ("--model.network.pixel_modulation=half", ["pixel_modulation", "factored", "full", "half"]),
        ("--model.weights=best", ["model.weights", "'ema', 'raw'", "best"]),
        ("--data.train.split=test", ["data.train", "split", "'train', 'val'", "test"]),
        ("--data.image_size=big", ["data.image_size", "int", "big"]),
        ("--ema.decay=x", ["ema.decay", "float", "x"]),
        ("--cpu_threads=0", ["cpu_threads", "0"]),
        ("--trainer.precision=bf17", ["trainer.precision", "bf16-mixed", "got bf17"]),
        ("--ema.decay=2", ["decay must lie in 0 … 1 (1 excluded), got 2"]),
        ("--model.network.num_kv_heads=3", ["num_kv_heads must divide num_heads=2, got 3"]),
        ("--model.sampler.num_steps=0", ["num_steps must be at least 1, got 0"]),
        ("--model.flow.t_eps=0.7", ["t_eps must lie between 0 and 0.5, got 0.7"]),
        ("--data.draw.num_images=0", ["num_images must be at least 1, got 0"]),
        ("--data.seed=-1", ["seed must", "-1"]),
        ("--seed_everything=-1", ["-1"]),
        ("--data.draw.classes=[]", ["classes must"]),
        ("--trainer.max_steps=-5", ["max_steps", "-5"]),
        ("--trainer.devices=0", ["devices", "0"]),
    ],
)
def test_wrong_values_are_named_with_the_rule(error, flag, words):
    said = error("fit", *CONFIGS, flag)
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--model.network=shutil.rmtree", "shutil.rmtree"),
        ("--model.network.class_path=shutil.rmtree", "shutil.rmtree' is not allowed"),
        ("--model.network=os.system", "os.system"),
        ("--model.network=NoSuchNetwork", "NoSuchNetwork"),
        ("--model.loss=torch.nn.MSELoss", "not correspond to a subclass of TripleLoss"),
        ("--model.optimizer.class_path=torch.optim.AdamWW", "no attribute 'AdamWW'"),
    ],
)
def test_classes_that_do_not_belong_are_refused(error, flag, words):
    assert words in error("fit", *CONFIGS, flag)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected .subcommand. to be one of {fit,validate,test,predict}"),
        (["train"], "invalid choice: 'train'"),
        (["fit"], "the following arguments are required: .*model.network.*data.batch_size"),
        (["fit", "-c", "nothing.yaml"], "does not exist: .*nothing.yaml"),
        (["fit", "-c", str(ROOT / "pyproject.toml")], "Problems parsing config"),
        (["predict", *CONFIGS], "predict needs trained weights, got no --ckpt_path"),
        (["validate", *CONFIGS], "validate needs trained weights, got no --ckpt_path"),
        (["fit", *CONFIGS, "--ckpt_path=last"], "last needs a checkpoint in .*checkpoints, which"),
        (["predict", *CONFIGS, "--ckpt_path=no.ckpt"], r"got no\.ckpt, which does not exist"),
    ],
)
def test_what_is_missing_is_named(error, arguments, words):
    assert re.search(words, error(*arguments))


def test_one_sentence_keeps_key_reason_and_value():
    message = """Parser key "a.b":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'int'>, <class 'NoneType'>]
  Errors:
    - Expected a <class 'int'>
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: x"""
    assert one_sentence(message) == "a.b: Expected a int, got x."
    assert one_sentence("unrecognized arguments: --x") == "unrecognized arguments: --x."
