"""FSDP2 and DDP by the command line: one process's run, in checkpoints that everything reads."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pixelhdm.checkpoints import read_checkpoint
from pixelhdm.inference.exports.exported import WEIGHTS
from pixelhdm.models.encoders.dino import DINOv3
from tests.captioned import prepare_captioned
from tests.e2e.conftest import QUICKSTART, ROOT, differences, logged, watched, with_repa
from tests.e2e.life import fit
from tests.tiny_dino import DIM, save_dinov3
from tests.tiny_qwen3 import save_tiny_qwen3

END, MIDDLE = 6, 4
RUN = [
    *QUICKSTART,
    f"--trainer.max_steps={END}",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.val_check_interval=6",
    "--model.optimizer.lr=0.01",
    "--model.schedule={class_path: CosineSchedule, init_args: {warmup_steps: 3}}",
    "--repa_early_stop.step=3",
    "--zclip={z_threshold: 0.3, alpha: 0.5, warmup_steps: 2}",
    "--ema={sigma_rel: [0.1, 0.2], snapshot_every_n_steps: 2}",
    "--checkpoint.every_n_steps=2",
    "--sample_images.every_n_steps=4",
]
TWO = {
    name: ["--trainer.devices=2", f"--trainer.strategy={name}", "--data.batch_size=4"]
    for name in ("fsdp2", "ddp")
}
NUMBERS = ("train/total", "train/grad_norm", "train/repa", "val/total", "val_raw/total")


def go_on(folder: Path, source: Path, step: int, *flags: str, processes: int = 1) -> Path:
    """Go on in a new folder from a checkpoint of another run."""
    name = f"step_{step:08d}.ckpt"
    kept = folder / "checkpoints" / name
    kept.parent.mkdir(parents=True)
    old = source / "checkpoints" / name
    (shutil.copytree if old.is_dir() else shutil.copy)(old, kept)
    train(folder, *flags, "--ckpt_path=last", processes=processes)
    return folder


def train(folder: Path, *flags: str, processes: int = 1, code: int = 0) -> None:
    """Train with everything on, in processes of their own, with the teacher beside the folder."""
    teacher = with_repa(DINOv3(str(folder.parent / "dinov3"), DIM))
    command = [*RUN, teacher, f"--trainer.default_root_dir={folder}", *flags]
    fit(*command, processes=processes, code=code, folder=folder.parent)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, quickstart) -> Path:
    """A run of one process, in one/, and of two by FSDP2, in fsdp2/."""
    folder = tmp_path_factory.mktemp("sharding")
    shutil.copytree(quickstart / "data", folder / "data", copy_function=os.link)
    save_dinov3(folder / "dinov3")
    train(folder / "one")
    train(folder / "fsdp2", *TWO["fsdp2"], processes=2)
    return folder


def end(run: Path) -> dict:
    """The last checkpoint of a run."""
    return read_checkpoint(run / f"checkpoints/step_{END:08d}.ckpt")


def check_same_end(run: Path, other: Path) -> None:
    """Assert that two runs have ended with the same weights, averages, moments and positions."""
    (ours, theirs) = (end(folder) for folder in (run, other))
    assert ours.keys() == theirs.keys()
    for key in ("loops", "epoch", "global_step", "training"):
        assert differences(ours[key], theirs[key]) == []
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for key, value in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][key], value, rtol=0, atol=2e-5)
    own, expected = (content["optimizer_states"][0] for content in (ours, theirs))
    assert own["param_groups"] == expected["param_groups"]
    for index, state in expected["state"].items():
        for key, value in state.items():
            torch.testing.assert_close(own["state"][index][key], value, rtol=0, atol=2e-5)


def test_two_processes_by_fsdp2_have_the_numbers_of_one(runs):
    for name in NUMBERS:
        expected = logged(runs / "one", name)
        assert len(expected) > 0
        assert logged(runs / "fsdp2", name) == pytest.approx(expected, rel=1e-5)
    check_same_end(runs / "fsdp2", runs / "one")
    one, two = (end(runs / name)["callbacks"] for name in ("one", "fsdp2"))
    assert one.keys() == two.keys()
    assert one["EMA"] == two["EMA"] == {"averaged": END}
    samples = [file.name for file in sorted((runs / "one/samples").iterdir())]
    assert samples == [file.name for file in sorted((runs / "fsdp2/samples").iterdir())]
    for name in samples:
        ours, theirs = (
            np.asarray(Image.open(runs / run / "samples" / name)).astype(int)
            for run in ("one", "fsdp2")
        )
        assert np.abs(ours - theirs).max() <= 1


def test_each_process_holds_about_half_of_weights_averages_and_moments(runs):
    folder = runs / f"fsdp2/checkpoints/step_{END:08d}.ckpt"
    shards = [torch.load(file, weights_only=True) for file in sorted(folder.glob("shard_*"))]
    held = [sum(value.numel() for value in shard.values()) for shard in shards]
    assert len(held) == 2
    assert min(held) > 0.45 * sum(held)
    whole = end(runs / "one")
    moments = (v for own in whole["optimizer_states"][0]["state"].values() for v in own.values())
    weights = (*whole["state_dict"].values(), *(value for value in moments if value.ndim))
    assert sum(held) == sum(value.numel() for value in weights)


def test_killed_while_it_is_written_a_folder_is_not_there_and_the_run_goes_on_to_the_bit(runs):
    run = runs / "killed"
    flags = [*TWO["fsdp2"], *watched("DieWhileSharing", f"step={MIDDLE}")]
    train(run, *flags, processes=2, code=-signal.SIGKILL)
    names = sorted(entry.name for entry in (run / "checkpoints").iterdir())
    assert names[1:] == ["step_00000002.ckpt"]
    assert names[0].startswith(".step_00000004")
    train(run, *TWO["fsdp2"], "--ckpt_path=last", processes=2)
    assert differences(end(runs / "fsdp2"), end(run)) == []
    left = sorted(entry.name for entry in (run / "checkpoints").iterdir())
    assert left == [f"step_{step:08d}.ckpt" for step in (2, 4, 6)]


@pytest.mark.parametrize(
    ("source", "flags", "processes"),
    [("fsdp2", [], 1), ("fsdp2", TWO["ddp"], 2), ("one", TWO["fsdp2"], 2)],
    ids=["folder to one", "folder to ddp", "file to fsdp2"],
)
def test_a_run_goes_on_with_another_number_and_kind_of_processes(
    runs, tmp_path, source, flags, processes
):
    (tmp_path / "dinov3").symlink_to(runs / "dinov3")
    run = go_on(tmp_path / "run", runs / source, MIDDLE, *flags, processes=processes)
    check_same_end(run, runs / "one")
    expected = logged(runs / "one", "train/total")[MIDDLE:]
    assert logged(run, "train/total") == pytest.approx(expected, rel=1e-5)


def test_a_folder_is_exported_and_drawn_from_as_a_file_is(runs, run):
    for name in ("one", "fsdp2"):
        run("export", f"--ckpt_path={runs / name}", f"--out={name}", "--num_samples=0")
        file = runs / f"{name}/checkpoints/step_{END:08d}.ckpt"
        run("predict", *QUICKSTART, f"--ckpt_path={file}", f"--save_images.folder={name}_drawn")
        run("ema", f"--run={runs / name}", "--sigma_rel=0.15", f"--out={name}.ckpt")
    ours, theirs = (load_file(f"{name}/{WEIGHTS}") for name in ("fsdp2", "one"))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=2e-5)
    drawn = sorted(file.name for file in Path("one_drawn").glob("*_seed*.png"))
    assert len(drawn) == 4
    for name in drawn:
        a, b = (
            np.asarray(Image.open(f"{part}_drawn/{name}")).astype(int) for part in ("one", "fsdp2")
        )
        assert np.abs(a - b).max() <= 1
    ours, theirs = (read_checkpoint(f"{name}.ckpt")["state_dict"] for name in ("fsdp2", "one"))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=2**-9, atol=2e-5)


def test_text_to_image_has_the_numbers_of_one_process_by_fsdp2_and_ddp(tmp_path):
    save_tiny_qwen3("qwen3")
    prepare_captioned("data/mine")
    configs = (ROOT / "configs_t2i/quickstart.yaml", ROOT / "tests/offline_t2i.yaml")
    flags = [word for file in configs for word in ("-c", file)]
    flags += ["--sample_images.every_n_steps=0", "--model.network.class_path=MMDiT"]
    flags += ["--model.network.init_args={hidden_dim: 32, patch_size: 4, num_heads: 2, depth: 2}"]
    fit(*flags, "--trainer.default_root_dir=one")
    for name, two in TWO.items():
        own = [*two[:2], "--data.batch_size=2", "--data.batch_tokens=18"]
        fit(*flags, *own, f"--trainer.default_root_dir={name}", processes=2)
        for number in ("train/total", "train/grad_norm"):
            expected = logged("one", number)
            assert len(expected) == 4
            assert logged(name, number) == pytest.approx(expected, rel=1e-5)
