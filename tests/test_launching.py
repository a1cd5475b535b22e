import threading

import pytest

from pixelhdm.errors import UserError
from pixelhdm.launching import check_launch, resuming_command, waiting

VARIABLES = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_NAME",
             "NODE_RANK", "GROUP_RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE",
             "LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE")  # fmt: skip
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8", "SLURM_STEP_NUM_TASKS": "16"}
BY_HAND = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500", "NODE_RANK": "1"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    """Sets the variables of a start, those alone."""

    def set_to(variables: dict[str, str]) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_to


@pytest.mark.parametrize(
    ("variables", "devices", "nodes"),
    [
        ({}, 8, 1),
        (TORCHRUN, 4, 2),
        (SRUN, 8, 2),
        (BY_HAND, 8, 2),
        (BY_HAND | {"LOCAL_RANK": "3", "WORLD_SIZE": "16"}, 8, 2),
        ({"SLURM_NTASKS": "16"}, 1, 1),  # drawing in a job's script, without srun
        (SRUN | {"SLURM_JOB_NAME": "bash"}, 4, 1),
    ],
)
def test_starts_that_fit_pass(environment, variables, devices, nodes):
    environment(variables)
    check_launch(devices, nodes)


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "told"),
    [
        (TORCHRUN, 1, 1, "that torchrun starts, which is 8, got 1. Set --trainer.devices=4 "
         "--trainer.num_nodes=2,"),
        (SRUN, 8, 1, "that srun starts, which is 16, got 8. Set --trainer.devices=8 "
         "--trainer.num_nodes=2,"),
        ({}, 8, 4, "MASTER_ADDR, MASTER_PORT, NODE_RANK must be set where trainer.num_nodes is 4, "
         "got none.*own number, 0 to 3"),
        ({"MASTER_ADDR": "node0", "NODE_RANK": "0"}, 8, 2, "MASTER_PORT must be set"),
        (BY_HAND | {"NODE_RANK": "2"}, 8, 2, "NODE_RANK must be the node's number, 0 to 1, got 2"),
        (BY_HAND | {"LOCAL_RANK": "0", "WORLD_SIZE": "4"}, 1, 2, "WORLD_SIZE must be .* 1 times 2"),
    ],
)  # fmt: skip
def test_starts_that_do_not_fit_are_told_what_to_set(environment, variables, devices, nodes, told):
    environment(variables)
    with pytest.raises(UserError, match=told):
        check_launch(devices, nodes)


def test_the_command_that_goes_on(environment):
    started = ["main.py", "fit", "-c", "a b.yaml", "--ckpt_path", "x.ckpt"]
    environment({})
    assert resuming_command(started) == "python main.py fit -c 'a b.yaml' --ckpt_path last"
    for variables in (TORCHRUN, SRUN, BY_HAND):
        environment(variables)
        assert resuming_command(started) == "the same command with --ckpt_path last"
        auto = resuming_command([*started[:4], "--ckpt_path=auto"])
        assert auto == "the same command: it goes on by itself"


def test_what_keeps_processes_from_meeting_is_told_where_and_how(capsys):
    before = threading.active_count()
    with (
        pytest.raises(
            UserError, match=r"all 4 .* meet at node0:29500, got: 1/2 joined\. Start the"
        ),
        waiting("node0:29500", 4, 2, speaks=True),
    ):
        raise RuntimeError("1/2 joined")
    assert capsys.readouterr().out == ""  # so soon
    with waiting("", 1, 1, speaks=False):
        pass
    assert threading.active_count() <= before + 1
