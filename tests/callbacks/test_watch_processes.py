import pytest

from pixelhdm.callbacks import watch_processes
from pixelhdm.callbacks.watch_processes import WatchProcesses
from pixelhdm.errors import UserError


def test_a_node_that_does_not_see_the_checkpoint_is_told_of(monkeypatch):
    """As with --ckpt_path auto in a folder that is not shared."""
    watch = WatchProcesses("runs/a/checkpoints/step_00000003.ckpt", lambda: "")
    monkeypatch.setattr(watch_processes, "gather_objects", lambda own: [own, own])
    watch.check_same_checkpoint()
    monkeypatch.setattr(watch_processes, "gather_objects", lambda own: [own, None])
    told = r"got process 0: step_00000003.ckpt, process 1: none\. Every node must see the run's"
    with pytest.raises(UserError, match=told):
        watch.check_same_checkpoint()


def test_nodes_that_were_started_differently_are_told_of(monkeypatch):
    other = {"seed_everything": "0", "model.network.init_args.hidden_dim": "48"}
    watch = WatchProcesses(None, lambda: "", {"seed_everything": "0"})
    monkeypatch.setattr(watch_processes, "gather_objects", lambda own: [own, own])
    watch.check_same_settings()
    monkeypatch.setattr(watch_processes, "gather_objects", lambda own: [own, own, other])
    told = (
        r"the same model\.network\.init_args\.hidden_dim, got none in process 0 and 48 in process 2"
    )
    with pytest.raises(UserError, match=told):
        watch.check_same_settings()
