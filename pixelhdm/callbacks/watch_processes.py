"""The processes of a run meet, and none is left waiting for one that is gone."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from pixelhdm.callbacks.checkpoint import Interrupted
from pixelhdm.errors import UserError
from pixelhdm.launching import waiting
from pixelhdm.liveness import end_if_broken, leave_watch, start_watch
from pixelhdm.processes import gather_objects


class WatchProcesses(Callback):
    """End all processes of a run within a minute when one of them dies, each with one sentence.

    Args:
        ckpt_path: checkpoint that this process goes on from.
        remedy: gives what a person is to do when one is lost.
        settings: what all processes must have alike, by name.
    """

    def __init__(
        self,
        ckpt_path: str | None,
        remedy: Callable[[], str],
        settings: dict[str, str] | None = None,
    ):
        self.ckpt_path, self.remedy, self.settings = ckpt_path, remedy, settings or {}

    def begin(self, trainer: Trainer) -> None:
        """Let the processes watch each other from the moment on at which they have met."""
        trainer.strategy.setup_environment = partial(self.meet, trainer)

    def meet(self, trainer: Trainer) -> None:
        """Do what the strategy does for the processes to meet, and more, in its place."""
        strategy = trainer.strategy
        environment = getattr(strategy, "cluster_environment", None)  # none for a single device
        place = f"{environment.main_address}:{environment.main_port}" if environment else ""
        speaks = bool(environment) and environment.local_rank() == 0
        with waiting(place, trainer.num_devices * trainer.num_nodes, trainer.num_nodes, speaks):
            type(strategy).setup_environment(strategy)
        trouble = start_watch(self.remedy)
        if trouble:
            print(f"Warning: {trouble}", flush=True)
        elif launched := getattr(strategy.launcher, "procs", None):
            # Lightning's own observer kills without a word; it looks at this very list.
            strategy.launcher.procs = [*launched]
            launched.clear()
        self.check_same_checkpoint()
        self.check_same_settings()

    def check_same_checkpoint(self) -> None:
        """Raise a UserError where the processes go on from different checkpoints."""
        own = self.ckpt_path and Path(self.ckpt_path).name
        names = gather_objects(own)
        if len(set(names)) > 1:
            told = [f"process {rank}: {name or 'none'}" for rank, name in enumerate(names)]
            raise UserError(
                "all processes must go on from the same checkpoint, got "
                f"{', '.join(told[:4])}{', …' if told[4:] else ''}. Every node must see the run's "
                "folder: use a file system that they share."
            )

    def check_same_settings(self) -> None:
        """Raise a UserError where the processes were started with different settings."""
        first, *others = gather_objects(self.settings)
        for rank, other in enumerate(others, start=1):
            for name in first.keys() | other.keys():
                values = [given.get(name, "none") for given in (first, other)]
                if values[0] != values[1]:
                    raise UserError(
                        f"all processes must have the same {name}, got {values[0]} in process 0 "
                        f"and {values[1]} in process {rank}. Start the same command on every node."
                    )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        end_if_broken(exception)
        leave_watch(None if isinstance(exception, Interrupted) else exception)
