"""What the loggers leave on the disk, read back by their own readers."""

import numpy as np
import pytest
import wandb
import yaml
from lightning.fabric.loggers import tensorboard as lightning_tensorboard
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from pixelhdm.errors import UserError
from pixelhdm.loggers import RunWandb, Wandb, flattened, log_config, log_image, run_loggers

CONFIG = """
seed_everything: 0
model:
  network: {class_path: PixelHDM, init_args: {rope_dims: [2, 2, 4], post_modulation: false}}
  loss: {extra: [{class_path: A, init_args: {weight: 0.5}}, null], repa: null}
  optimizer: {lr: 0.0001}
"""


@pytest.fixture
def no_account(tmp_path, monkeypatch):
    """No key anywhere, no settings from elsewhere, and no process left behind."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    yield
    wandb.finish()
    wandb.teardown()


def trainer_with(loggers) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=loggers,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def events(folder) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), {"images": 0, "tensors": 0}).Reload()


def close(loggers) -> None:
    for logger in loggers:
        logger.finalize("success")


def test_numbers_images_and_config_reach_csv_and_tensorboard(tmp_path):
    loggers = run_loggers(tmp_path, None, None)
    trainer = trainer_with(loggers)
    log_config(trainer, CONFIG)
    picture = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    log_image(trainer, "samples", picture)
    for logger in loggers:
        logger.log_metrics({"train/total": 0.5}, step=7)
    close(loggers)

    found = events(tmp_path)
    assert [(e.step, e.value) for e in found.Scalars("train/total")] == [(7, 0.5)]
    (image,) = found.Images("samples")
    assert (image.height, image.width) == (4, 6)
    text = found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert yaml.safe_load(text.removeprefix("```yaml\n").removesuffix("```")) == yaml.safe_load(
        CONFIG
    )
    stored = found.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    hparams = HParamsPluginData.FromString(stored).session_start_info.hparams
    assert hparams["model.optimizer.lr"].number_value == 0.0001
    assert hparams["model.network.init_args.rope_dims"].string_value == "[2, 2, 4]"
    logs = tmp_path / "logs" / "version_0"
    assert yaml.safe_load((logs / "hparams.yaml").read_text()) == yaml.safe_load(CONFIG)
    assert (logs / "metrics.csv").read_text() == "step,train/total\n7,0.5\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "tensorboard"]


def test_flattened_keeps_every_value_under_its_dotted_name():
    flat = flattened(yaml.safe_load(CONFIG))
    assert flat["model.network.init_args.post_modulation"] is False
    assert flat["model.loss.extra"] == "[{'class_path': 'A', 'init_args': {'weight': 0.5}}, None]"
    assert "model.loss.repa" not in flat
    assert len(flat) == 6


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path):
    """Lightning numbers steps from 0: the sixth step of the run is the first after step 5."""
    for resumed, steps, value in ((None, range(10), 1.0), ("step_00000005.ckpt", range(5, 9), 2.0)):
        loggers = run_loggers(tmp_path, None, resumed)
        for step in steps:
            loggers[1].log_metrics({"a": value}, step)
        close(loggers)
    curve = [(event.step, event.value) for event in events(tmp_path).Scalars("a")]
    assert curve == [(step, 1.0 if step < 5 else 2.0) for step in range(9)]


def test_a_checkpoint_without_a_step_in_its_name_removes_nothing(tmp_path):
    for resumed, value in ((None, 1.0), ("mine.ckpt", 2.0)):
        loggers = run_loggers(tmp_path, None, resumed)
        loggers[1].log_metrics({"a": value}, int(value))
        close(loggers)
    assert [event.value for event in events(tmp_path).Scalars("a")] == [1.0, 2.0]


def test_missing_tensorboard_is_one_sentence(tmp_path, monkeypatch):
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(lightning_tensorboard, name, False)
    with pytest.raises(
        UserError, match=r"tensorboard must be installed .* pip install tensorboard"
    ):
        run_loggers(tmp_path, None, None)


def test_wandb_offline_keeps_all_and_a_resumed_run_its_id(tmp_path, no_account, capfd, caplog):
    folder, settings = tmp_path / "my run", Wandb(offline=True, tags=["a"])
    ids = []
    for resumed in (None, "step_00000005.ckpt", None):
        loggers = run_loggers(folder, settings, resumed)
        trainer = trainer_with(loggers)
        log_config(trainer, CONFIG)
        log_image(trainer, "samples", np.zeros((4, 6, 3), dtype=np.uint8))
        run = loggers[2].experiment
        assert (run.name, run.project, run.offline, run.tags) == (
            "my run",
            "pixelhdm",
            True,
            ("a",),
        )
        assert run.config["model"]["optimizer"] == {"lr": 0.0001}
        ids.append(run.id)
        close(loggers)
        assert wandb.run is None
    assert ids[0] == ids[1] != ids[2]
    assert (folder / "wandb" / "id").read_text() == ids[2]
    starts = list(folder.glob("wandb/offline-run-*"))
    assert {start.name.split("-")[3] for start in starts} == set(ids)  # date, id, perhaps -1
    assert all(list(start.glob("files/media/images/samples_*.png")) for start in starts)
    output = "".join(capfd.readouterr())
    assert "wandb:" not in output
    assert caplog.text.count(f"Weights & Biases: wandb sync '{folder}/wandb/offline-run-") == 3


def test_wandb_disabled_leaves_nothing(tmp_path, no_account, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = RunWandb(Wandb(offline=True), tmp_path / "run", None)
    logger.log_metrics({"a": 1.0}, 1)
    assert not list((tmp_path / "run").rglob("*"))


def test_wandb_respects_the_environments_offline_mode(tmp_path, no_account, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert RunWandb(Wandb(), tmp_path / "run", None).experiment.offline


@pytest.mark.parametrize(("key", "got"), [(None, "got none"), ("short", "got: .*WANDB_API_KEY")])
def test_wandb_online_without_a_key_is_one_sentence(tmp_path, no_account, monkeypatch, key, got):
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.raises(UserError, match=rf"{got}.*wandb login.*wandb\.offline: true"):
        run_loggers(tmp_path, Wandb(), None)


def test_a_wrong_variable_of_wandb_is_named(tmp_path, no_account, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "bogus")
    with pytest.raises(UserError, match=r"WANDB_MODE must be valid .*'offline'.* Mend or unset"):
        run_loggers(tmp_path, Wandb(), None)


def test_a_wrong_project_is_said_without_advice_that_does_not_help(tmp_path, no_account):
    logger = RunWandb(Wandb(project="a/b", offline=True), tmp_path / "run", None)
    with pytest.raises(UserError, match=r"must start its run, got: .*'a/b'") as error:
        logger.log_metrics({"a": 1.0}, 1)
    assert "offline: true" not in str(error.value)


def test_other_loggers_are_left_alone(tmp_path):
    trainer = trainer_with(CSVLogger(tmp_path))
    log_image(trainer, "samples", np.zeros((4, 6, 3), dtype=np.uint8))
    log_config(trainer, CONFIG)
    files = [path.name for path in (tmp_path / "lightning_logs/version_0").iterdir()]
    assert files == ["hparams.yaml"]
