from pathlib import Path

import yaml

from pixelhdm.inference.draw import Drawing
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import AdamsSampler
from pixelhdm.inference.time_grid import TimeGrid
from pixelhdm.sweeping.averages import Averaged
from pixelhdm.sweeping.best import full_command, overlay


def test_the_overlay_names_all_that_the_setting_changes():
    drawing = Drawing(AdamsSampler(7, 3), Guidance(1.5, interval=(0.1, 0.9)), TimeGrid())
    text = overlay(Averaged(Path("a/b.ckpt"), "raw"), drawing, "one\ntwo")
    assert text.startswith("# one\n# two\n")
    sampler = {
        "class_path": "pixelhdm.inference.samplers.AdamsSampler",
        "init_args": {"num_steps": 7, "order": 3},
    }
    guidance = {"init_args": {"scale": 1.5, "interval": [0.1, 0.9]}}
    model = {"weights": "raw", "sampler": sampler, "guidance": guidance}
    assert yaml.safe_load(text) == {"ckpt_path": "a/b.ckpt", "model": model}


def test_the_full_evaluation_keeps_the_callers_flags_but_those_of_the_sweep(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    call = ["main.py", "test", "-c", "run.yaml", "--ckpt_path", "last", "--sweep.scales", "[1, 2]"]
    call += ["--sweep.steps=[5]", "--evaluate.num_images=500", "--data.batch_size", "8"]
    told = full_command(call, Path("best.yaml"))
    assert told == (
        "python main.py test -c run.yaml --data.batch_size 8 -c best.yaml "
        "--evaluate.num_images 50000"
    )
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert full_command(call, Path("b")).startswith("torchrun --nproc_per_node 2 main.py test -c")
