from pathlib import Path

import pytest
import torch
from jsonargparse import auto_cli

from pixelhdm.checkpoints import AtomicCheckpointIO, read_checkpoint
from pixelhdm.errors import UserError
from pixelhdm.reconstruct import reconstruct_ema
from pixelhdm.snapshots import snapshot_file, write_snapshot
from pixelhdm.training.power_ema import Profile, profile_decay
from tests.stubs import randn

SIGMAS, STEPS, EVERY = (0.05, 0.1), 480, 20
LAYOUT = {"network.a": (6, 5), "conditioner.b": (7,)}


def walk(step: int) -> dict[str, torch.Tensor]:
    """Weights that wander over the steps as a training's do: drift, then noise around it."""
    drift = 1 - (-step / 150) ** 2 / 20
    return {
        key: drift * randn(*shape, seed=n) + 0.3 * randn(*shape, seed=1000 * n + step)
        for n, (key, shape) in enumerate(LAYOUT.items())
    }


def averages(sigma_rel: float) -> dict[int, dict[str, torch.Tensor]]:
    """The average that is kept along the training, at every step."""
    value, found = walk(1), {}
    for step in range(1, STEPS + 1):
        kept = profile_decay(sigma_rel, step, step - 1)
        value = {key: torch.lerp(new, value[key], kept) for key, new in walk(step).items()}
        found[step] = value
    return found


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, as the callbacks leave it."""
    folder = tmp_path_factory.mktemp("run")
    for sigma in SIGMAS:
        kept = averages(sigma)
        for step in range(EVERY, STEPS + 1, EVERY):
            half = {key: value.half() for key, value in kept[step].items()}
            write_snapshot(folder, Profile(sigma, step), half)
    raw = walk(STEPS)
    state = raw | {"loss.d": randn(3)} | {f"ema.{key}": value * 0 for key, value in raw.items()}
    state |= {f"profiles.0_05.{key}": value for key, value in raw.items()}
    callbacks = {"RepaEarlyStop": {"samples": 9}, "ZClip": {"steps": 1}}
    parts = {"loops": {}, "callbacks": callbacks, "optimizer_states": [{}], "training": {}}
    AtomicCheckpointIO().save_checkpoint(
        {"state_dict": state, "global_step": STEPS, "pytorch-lightning_version": "2.6.0", **parts},
        folder / "checkpoints/step_00000480.ckpt",
    )
    return folder


@pytest.mark.parametrize(("sigma_rel", "step"), [(0.08, None), (0.13, 440), (0.05, 320)])
def test_reconstruction_is_the_average_that_could_have_been_kept(
    run_folder, tmp_path, capsys, sigma_rel, step
):
    reconstruct_ema(str(run_folder), sigma_rel, step, str(tmp_path / "x.ckpt"))
    (line,) = capsys.readouterr().out.splitlines()
    assert (
        f"sigma_rel {sigma_rel} at step {step or STEPS} from {(step or STEPS) // 10} snapshots"
        in line
    )
    assert float(line.split("residual ")[1].split("%")[0]) < 1
    assert 0 < float(line.split("snapshots ")[-1].split("%")[0]) < 1  # rounding
    state = read_checkpoint(tmp_path / "x.ckpt")["state_dict"]
    raw = walk(STEPS)
    assert state.keys() == {*raw, "loss.d"} | {f"ema.{key}" for key in raw}
    kept = averages(sigma_rel)
    for key, value in raw.items():
        assert torch.equal(state[key], value)
        assert state[f"ema.{key}"].dtype == torch.float32
        torch.testing.assert_close(state[f"ema.{key}"], kept[step or STEPS][key], rtol=0, atol=2e-3)


def test_command_line_and_the_file_it_names_by_itself(run_folder, capsys):
    folder = str(run_folder)
    auto_cli(reconstruct_ema, as_positional=False, args=["--run", folder, "--sigma_rel", "0.08"])
    file = run_folder / "ema_sigma0.08_step00000480.ckpt"
    assert str(file) in capsys.readouterr().out
    checkpoint = AtomicCheckpointIO().load_checkpoint(file)
    assert checkpoint["global_step"] == STEPS
    assert checkpoint["reconstruction"]["sigma_rel"] == 0.08
    assert checkpoint["callbacks"] == {"RepaEarlyStop": {"samples": 9}}
    assert "optimizer_states" not in checkpoint
    file.unlink()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sigma_rel": 0.3}, r"sigma_rel must be above 0 and at most 0\.2887"),
        ({"sigma_rel": 1e-4}, r"within reach of the run's snapshots, got 0\.0001, from .* \d\d%"),
        ({"step": 481}, "one of a snapshot, 20 … 480, got 481. Near it are 440, 460, 480"),
        ({"step": 0}, "one of a snapshot, 20 … 480, got 0"),
        ({"step": 333}, "got 333. Near it are 320, 340, 360"),
        ({"run": "nowhere"}, "got nowhere, which has 0 snapshots and 0 checkpoints. Train with"),
        ({"out": "x/checkpoints/step_00000480.ckpt"}, "out must lie outside of checkpoints"),
    ],
)
def test_wrong_arguments(run_folder, tmp_path, arguments, words):
    given = {"run": str(run_folder), "sigma_rel": 0.08, "out": str(tmp_path / "x.ckpt")}
    with pytest.raises(UserError, match=words):
        reconstruct_ema(**given | arguments)
    assert not (tmp_path / "x.ckpt").exists()


@pytest.mark.parametrize("change", ["keys", "shape", "nan", "torn", "foreign"])
def test_unfit_snapshots_are_named(run_folder, tmp_path, change):
    odd = snapshot_file(run_folder, Profile(0.1, 7))
    state = {key: torch.zeros(shape).half() for key, shape in LAYOUT.items()}
    if change == "keys":
        del state["network.a"]
    elif change == "shape":
        state["network.a"] = torch.zeros(6, 4).half()
    elif change == "nan":
        state["network.a"][0, 0] = torch.nan
    write_snapshot(run_folder, Profile(0.1, 7), state)
    if change == "torn":
        odd.write_bytes(odd.read_bytes()[:60])
    elif change == "foreign":
        odd.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    words = {
        "keys": "must hold the tensors that the run's last checkpoint averages",
        "shape": "must hold the tensors that the run's last checkpoint averages",
        "nan": "snapshots must be finite",
        "torn": "step00000007.safetensors is torn or not a snapshot",
        "foreign": "step00000007.safetensors is torn or not a snapshot",
    }
    try:
        with pytest.raises(UserError, match=words[change]):
            reconstruct_ema(str(run_folder), 0.08, None, str(tmp_path / "x.ckpt"))
    finally:
        odd.unlink()
