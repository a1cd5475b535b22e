"""Averages with power-function profiles in a real run, and what can be made of them."""

from pathlib import Path

import pytest
import torch

from pixelhdm.reconstruct import reconstruct_ema
from pixelhdm.snapshots import read_snapshot, snapshots_of
from pixelhdm.training.average import Average
from pixelhdm.training.power_ema import exponent
from tests.e2e.conftest import QUICKSTART, checkpoint, differences, logged

FLAGS = [
    *QUICKSTART,
    "--ema.sigma_rel=[0.05,0.1]",
    "--ema.snapshot_every_n_steps=2",
    "--checkpoint.every_n_steps=1",
]


def test_profiles_of_a_run_are_their_closed_form(run):
    """With accumulated gradients and bfloat16 products; the checkpoints tell the weights."""
    run(
        "fit", *FLAGS, "--trainer.precision=bf16-mixed", "--trainer.accumulate_grad_batches=2",
        "--trainer.max_steps=5", "--trainer.val_check_interval=10",
    )  # fmt: skip
    states = [checkpoint("runs/quickstart", step)["state_dict"] for step in range(1, 6)]
    raw = [key for key in states[0] if key.startswith(("network.", "conditioner."))]
    for sigma in (0.05, 0.1):
        power, name = exponent(sigma) + 1, str(sigma).replace(".", "_")
        shares = [(n / 5) ** power - ((n - 1) / 5) ** power for n in range(1, 6)]
        for key in raw:
            expected = sum(s * state[key].double() for s, state in zip(shares, states, strict=True))
            found = states[-1][f"profiles.{name}.{key}"]
            torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-7)


def test_a_resumed_run_has_the_same_profiles_and_snapshots(run):
    run("fit", *FLAGS, "--trainer.default_root_dir=whole")
    run("fit", *FLAGS, "--trainer.default_root_dir=parts", "--trainer.max_steps=3")
    run("fit", *FLAGS, "--trainer.default_root_dir=parts", "--ckpt_path=last")
    whole, parts = checkpoint("whole", 8), checkpoint("parts", 8)
    assert differences(whole["state_dict"], parts["state_dict"]) == []
    assert whole["callbacks"]["EMA"] == parts["callbacks"]["EMA"] == {"averaged": 8}
    steps = [profile.step for profile in snapshots_of("parts").values()]
    assert steps == [2, 2, 3, 3, 4, 4, 6, 6, 8, 8]  # 3 was an end
    for file in snapshots_of("whole"):
        same = Path(str(file).replace("whole", "parts"))
        assert differences(read_snapshot(file), read_snapshot(same)) == []


def test_resuming_with_other_profiles_is_refused(run):
    run("fit", *FLAGS)
    more = ["--trainer.max_steps=9", "--ckpt_path=last"]
    words = r"sigma_rel must be what the run was started with, 0\.05, 0\.1 in .*got "
    with pytest.raises(SystemExit, match=words + r"none\. "):
        run("fit", *QUICKSTART, *more)
    with pytest.raises(SystemExit, match=words + r"0\.07, 0\.1\. "):
        run("fit", *FLAGS, "--ema.sigma_rel=[0.1,0.07]", *more)


def test_profiles_are_ignored_and_a_reconstruction_is_drawn_from_but_not_trained_on(run, capsys):
    run("fit", *FLAGS)
    last = "runs/quickstart/checkpoints/step_00000008.ckpt"
    run("predict", *QUICKSTART, f"--ckpt_path={last}", "--model.weights=raw")
    new = ["--trainer.default_root_dir=new", "--trainer.max_steps=1"]
    run("fit", *QUICKSTART, f"--model.init_from={last}", *new)
    reconstruct_ema("runs/quickstart", 0.08)
    assert "from 8 snapshots, residual " in capsys.readouterr().out
    file = "runs/quickstart/ema_sigma0.08_step00000008.ckpt"
    run("predict", *QUICKSTART, f"--ckpt_path={file}")
    assert list(Path("runs/quickstart/predict").glob("*ema_sigma0.08_step00000008*/grid.png"))
    run("validate", *QUICKSTART, f"--ckpt_path={file}")
    with pytest.raises(SystemExit, match="must be a whole one of a run, got one without loops"):
        run("fit", *QUICKSTART, f"--ckpt_path={file}", "--trainer.default_root_dir=other")


def test_averages_on_the_cpu_every_third_step_go_on_exactly_and_their_files_serve_both(
    run, monkeypatch
):
    """Drawn and validated by copies, as on a GPU; a run may change sides when it is resumed."""
    monkeypatch.setattr(Average, "is_away", lambda self, device: self.stays)
    flags = [*FLAGS, "--ema.every_n_steps=3", "--sample_images.every_n_steps=4"]
    run("fit", *flags, "--trainer.default_root_dir=auto")
    cpu = [*flags, "--ema.device=cpu", "--trainer.default_root_dir=cpu"]
    run("fit", *cpu, "--trainer.max_steps=4")
    run("fit", *cpu, "--trainer.max_steps=5", "--ckpt_path=last", "--ema.device=auto")
    run("fit", *cpu, "--ckpt_path=last")
    auto, cpu = checkpoint("auto", 8), checkpoint("cpu", 8)
    assert differences(auto["state_dict"], cpu["state_dict"]) == []
    assert auto["callbacks"]["EMA"] == cpu["callbacks"]["EMA"]
    assert cpu["callbacks"]["EMA"]["averaged"] == 6
    for name in ("step_00000004", "step_00000008", "step_00000008_raw"):
        file = f"samples/{name}.png"
        assert Path("auto", file).read_bytes() == Path("cpu", file).read_bytes()
    assert logged("auto", "val/total")[-1] == logged("cpu", "val/total")[-1]
