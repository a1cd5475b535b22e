"""How the processes of a run are started: by torchrun, by SLURM's srun, by hand on each node, or by
Lightning.
"""

import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pixelhdm.errors import UserError, one_line

BY_HAND = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
QUIET = 5.0  # seconds of waiting for the others that need no word
ALONE = ("bash", "interactive")  # names of SLURM's jobs in which a person starts single processes


def by_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def by_slurm() -> bool:
    """Whether Lightning takes this process for one that SLURM has started."""
    is_job = "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ALONE
    return is_job and not by_torchrun()


def by_launcher() -> bool:
    """Whether another program, or a person on each of several nodes, has started this process; to
    be asked before Lightning sets variables of its own.
    """
    return by_torchrun() or by_slurm() or "NODE_RANK" in os.environ


def check_launch(num_devices: int, num_nodes: int) -> None:
    """Raise a UserError where processes are started in a number that the trainer does not expect,
    or could not find each other.

    Args:
        num_devices: processes of each node, as the trainer counts them.
        num_nodes: nodes of the run.
    """
    expected = num_devices * num_nodes
    if by_torchrun():
        check_number(expected, int(os.environ["WORLD_SIZE"]), "torchrun", "LOCAL_WORLD_SIZE")
    elif by_slurm():
        is_step = "SLURM_STEP_NUM_TASKS" in os.environ
        if is_step or expected > 1:  # one process of a job script needs no srun
            started = int(os.environ["SLURM_NTASKS"])
            check_number(expected, started, "srun", "SLURM_NTASKS_PER_NODE")
    else:
        check_by_hand(num_devices, num_nodes)


def check_number(expected: int, started: int, launcher: str, per_node: str) -> None:
    """Raise a UserError where a launcher starts another number of processes."""
    if expected == started:
        return
    local = int(os.environ.get(per_node, started))
    raise UserError(
        "trainer.devices times trainer.num_nodes must be the number of processes that "
        f"{launcher} starts, which is {started}, got {expected}. Set --trainer.devices={local} "
        f"--trainer.num_nodes={max(1, started // local)}, or start others with {launcher}."
    )


def check_by_hand(num_devices: int, num_nodes: int) -> None:
    """Raise a UserError where variables are not set, or set wrongly, that lead nodes together."""
    if num_nodes == 1:
        return
    missing = [name for name in BY_HAND if name not in os.environ]
    if missing and not (missing == ["NODE_RANK"] and "GROUP_RANK" in os.environ):
        raise UserError(
            f"{', '.join(missing)} must be set where trainer.num_nodes is {num_nodes}, got none. "
            "On every node set MASTER_ADDR to the address of node 0, MASTER_PORT to a free port "
            f"of it, and NODE_RANK to the node's own number, 0 to {num_nodes - 1}."
        )
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", ""))
    if node not in {str(number) for number in range(num_nodes)}:
        raise UserError(
            f"NODE_RANK must be the node's number, 0 to {num_nodes - 1}, got {node}. "
            "trainer.num_nodes says how many there are."
        )
    world = os.environ.get("WORLD_SIZE")
    if "LOCAL_RANK" in os.environ and world not in (None, str(num_devices * num_nodes)):
        raise UserError(
            f"WORLD_SIZE must be trainer.devices times trainer.num_nodes, {num_devices} times "
            f"{num_nodes}, got {world}. Leave it out, or set them."
        )


@contextmanager
def waiting(place: str, num_processes: int, num_nodes: int, speaks: bool) -> Iterator[None]:
    """Say that the others are waited for, where that takes a while.

    Args:
        place: address and port where all meet.
        num_processes: of the whole run.
        num_nodes: on which they are.
        speaks: whether this process is the one of its node that says so.

    Raises:
        UserError: they did not come in time, or cannot meet there.
    """
    text = f"Waiting for all {num_processes} processes at {place} …"
    timer = threading.Timer(QUIET, lambda: print(text, flush=True))
    timer.daemon = True
    if speaks and num_processes > 1:
        timer.start()
    try:
        yield
    except RuntimeError as error:
        where = "See what the other processes have printed"
        if num_nodes > 1:
            where = (
                f"Start the same command on all {num_nodes} nodes, MASTER_ADDR and MASTER_PORT "
                "being those of the first everywhere, and let no firewall stand between them"
            )
        raise UserError(
            f"all {num_processes} processes of the run must meet at {place}, got: "
            f"{one_line(error).split('. ')[0].rstrip('.')}. {where}."
        ) from error
    finally:
        timer.cancel()


def resuming_command(argv: list[str]) -> str:
    """The command that continues the run which `argv` started or continued; to be asked before
    Lightning sets variables of its own.
    """
    joined = " ".join(argv)
    if "--ckpt_path auto" in joined or "--ckpt_path=auto" in joined:
        return "the same command: it goes on by itself"
    call = [word for word in argv if not word.startswith("--ckpt_path=")]
    if "--ckpt_path" in call:
        at = call.index("--ckpt_path")
        del call[at : at + 2]
    if by_launcher():
        return "the same command with --ckpt_path last"
    return shlex.join(["python", *call, "--ckpt_path", "last"])


def requeue_job() -> None:
    """Have SLURM queue this process's job again, and say so."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    program = shutil.which("scontrol")
    done = program and subprocess.run([program, "requeue", job], capture_output=True, text=True)
    if done and done.returncode == 0:
        print(f"Job {job} is queued again and goes on from here.", flush=True)
        return
    reason = " ".join(done.stderr.split()) if done else "no scontrol here"
    print(f"Job {job} could not be queued again ({reason}): submit it again to go on.", flush=True)
