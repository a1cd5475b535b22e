"""FSDP2: weights, averages and optimizer states in parts, one for each process."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from pixelhdm.checkpoint_files import CheckpointFolder, is_split, put_together
from pixelhdm.checkpoints import check_loadable, check_there, open_folder, read_checkpoint
from pixelhdm.errors import UserError
from pixelhdm.sharded_saving import together, write_folder

NOT_SPLIT = ("torchao", "bitsandbytes")  # whose 8-bit states belong to whole weights


class FSDP2(ModelParallelStrategy):
    """PyTorch's fully sharded data parallelism (FSDP2): of weights, gradients, averages and
    optimizer states each of all processes keeps a part, and blocks are put together when they run.

    The run is that of ddp, up to the order of sums. Training alone is sharded: predict, test and
    validate hold one set of weights, whole. A run's checkpoints are folders into which every
    process writes its part; they and single files are read at any number of processes, by any
    strategy. All nodes must see the run's folder.

    Args:
        save_distributed_checkpoint: false writes each checkpoint as one file, for which the first
            process puts everything together.
        process_group_backend: how processes talk; empty takes NCCL on GPUs and Gloo on CPUs.
        timeout: how long processes wait for each other.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta = default_pg_timeout,
    ):
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.stored: CheckpointFolder | None = None

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether load_optimizer_state_dict is called, after on_load_checkpoint."""
        return True

    def setup_environment(self) -> None:
        # "auto" would split single matrices among a node's processes.
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        # What a block is put together in must serve a backward pass, too.
        trainer.fit_loop.epoch_loop.val_loop.inference_mode = False
        super().setup(trainer)

    def setup_optimizers(self, trainer: Trainer) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if type(optimizer).__module__.split(".")[0] in NOT_SPLIT:
                raise UserError(
                    "optimizer must keep plain numbers where weights are sharded, got "
                    f"{type(optimizer).__name__}. Use torch.optim.AdamW, whose states are split "
                    "among the processes, or --trainer.strategy ddp."
                )

    # Saving ---------------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self.to_save(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return self.to_save(optimizer.state_dict())

    def to_save(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state as it is, or whole in the first process where one file is to hold it."""
        if self._save_distributed_checkpoint:
            return state
        return put_together(state, keep=self.is_global_zero)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        if self._save_distributed_checkpoint:
            write_folder(checkpoint, Path(self.broadcast(filepath)))
            return

        def save() -> None:
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint(checkpoint, filepath)

        together(save)

    # Loading --------------------------------------------------------------------------------------

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        self.stored, is_fit = None, self.lightning_module.trainer.state.fn == "fit"

        def read() -> dict[str, Any]:
            check_there(path)
            if path.is_dir() and is_fit:
                self.stored = open_folder(path, self.own_share)
                checkpoint = dict(self.stored.content)
            else:
                checkpoint = read_checkpoint(path, mapped=True)
            check_loadable(checkpoint, path)
            return checkpoint

        return together(read)

    def own_share(self, number: int) -> range:
        """Which of a number of files this process checks."""
        return range(self.global_rank, number, self.world_size)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copy each tensor, or this process's rows of it; on_load_checkpoint has checked them."""
        given = checkpoint["state_dict"]
        with torch.no_grad():
            for key, own in self.lightning_module.state_dict().items():
                rows = self.own_rows(given[key], own, f"state_dict/{key}")
                (own.to_local() if is_split(own) else own).copy_(rows)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        pairs = zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        for number, (optimizer, saved) in enumerate(pairs):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            order = [index for group in saved["param_groups"] for index in group["params"]]
            state = {
                index: {
                    key: self.placed(
                        value, weight, f"optimizer_states/{number}/state/{index}/{key}"
                    )
                    for key, value in saved["state"][index].items()
                }
                for index, weight in zip(order, weights, strict=True)
                if index in saved["state"]
            }
            optimizer.load_state_dict(saved | {"state": state})
        self.stored = None

    def placed(self, value: Any, weight: Tensor, name: str) -> Any:
        """A value of the optimizer's state for a weight; split as the weight is, if it has its
        shape. It is a copy, for the file may be deleted while the run goes on.
        """
        if not isinstance(value, Tensor):
            return value
        if not is_split(weight) or value.shape != weight.shape:
            return value.clone()
        rows = self.own_rows(value, weight, name).to(weight.device, copy=True)
        mesh, places = weight.device_mesh, weight.placements
        return DTensor.from_local(
            rows, mesh, places, run_check=False, shape=weight.shape, stride=weight.stride()
        )

    def own_rows(self, given: Tensor, like: Tensor, name: str) -> Tensor:
        """What this process keeps of a whole or stored tensor if it keeps it as it keeps `like`."""
        if not given.is_meta and not is_split(like):
            return given
        start, stop = 0, len(given)
        if is_split(like):  # torch.chunk's parts
            size = -(-len(given) // self.world_size)
            start, stop = (min((self.global_rank + end) * size, len(given)) for end in (0, 1))
        if given.is_meta:
            return self.stored.rows(name, given, start, stop)
        return given[start:stop]


StrategyRegistry.register("fsdp2", FSDP2, description=FSDP2.__doc__.split("\n")[0])


def is_sharded(part: nn.Module) -> bool:
    """Whether processes share a module's weights."""
    return isinstance(part, FSDPModule)


def check_strategy(strategy: Strategy) -> None:
    """Raise a UserError for a strategy of Lightning's by which weights would stay whole and
    gradients apart.
    """
    if not isinstance(strategy, FSDP2):
        raise UserError(
            "trainer.strategy must be one that PixelHDM knows how to shard by, got "
            f"{type(strategy).__name__}. Use --trainer.strategy fsdp2."
        )


def shard(module: LightningModule, mesh: DeviceMesh) -> None:
    """Split all weights that a module trains and their averages among the processes of a mesh,
    block by block; what lies outside of blocks is put together with its network or conditioner.
    """
    averages = [] if module.ema is None else [module.ema, *(module.profiles or {}).values()]
    networks = [module.network, *(average["network"] for average in averages)]
    conditioners = [module.conditioner, *(average["conditioner"] for average in averages)]
    parts = [block for network in networks for block in reversed(network.all_blocks)]
    for part in (*parts, *networks, *conditioners, module.loss):
        if any(True for _ in part.parameters()):
            # By default an outermost module stays whole until its backward pass, which an average
            # does not have.
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
