"""One process of two that share every kind of network by FSDP2; its argument is the folder for what
it finds.
"""

import copy
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from pixelhdm.checkpoint_files import CheckpointFolder
from pixelhdm.errors import UserError
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import EulerSampler
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.network import Network
from pixelhdm.module import PixelHDMModule
from pixelhdm.sharded_saving import write_folder
from pixelhdm.sharding import shard
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from tests.models.networks import TAKES_TOKENS, TINY, small
from tests.stubs import perturb, randn, tiny_network

BATCH, SIDE = 4, 8


def module_of(network: Network, num_tokens: int) -> PixelHDMModule:
    """A module with an average that differs from its weights."""
    module = PixelHDMModule(
        perturb(network),
        lambda dim: perturb(ClassConditioner(dim, 10, num_tokens)),
        EulerSampler(1),
        Guidance(),
        loss=TripleLoss(velocity=VelocityLoss()),
    )
    module.add_average()
    perturb(module.ema)
    return module


def losses(module: PixelHDMModule, weights: str, images: slice) -> torch.Tensor:
    """The losses of some images of a batch."""
    network, conditioner = module.drawing_parts(weights)
    sample = module.flow.sample(
        randn(BATCH, SIDE, SIDE, 3)[images],
        randn(BATCH, SIDE, SIDE, 3, seed=4)[images],
        torch.linspace(0.1, 0.9, BATCH)[images],
    )
    context = conditioner(torch.arange(BATCH)[images])
    prediction = network(sample.z_t, sample.t, context)
    return module.loss(module.flow.velocity(prediction, sample.z_t, sample.t), sample)["total"]


def compare(whole: PixelHDMModule, folder: Path) -> dict[str, float]:
    """How much losses, gradients, an empty condition and a stored state differ from those of one
    process, and the share of the weights that this one holds.
    """
    rank, module = torch.distributed.get_rank(), copy.deepcopy(whole)
    shard(module, init_device_mesh("cpu", (2,)))
    own = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    losses(whole, "raw", slice(None)).mean().backward()
    losses(module, "raw", own).mean().backward()
    grads = {key: value.grad for key, value in module.named_parameters() if value.requires_grad}
    average, expected = losses(module, "ema", own), losses(whole, "ema", slice(None))[own]
    empty = module.conditioner.empty(2).pooled - whole.conditioner.empty(2).pooled
    state = module.state_dict()
    write_folder({"state_dict": state, "optimizer_states": []}, folder)
    stored, now = CheckpointFolder(folder).whole()["state_dict"], whole.state_dict()
    held = sum(value.to_local().numel() for value in state.values() if isinstance(value, DTensor))
    return {
        "gradients": max(
            (grads[key].full_tensor() - value.grad).abs().max().item()
            for key, value in whole.named_parameters()
            if value.requires_grad
        ),
        "average": (average - expected).abs().max().item(),
        "empty": empty.abs().max().item(),
        "stored": sum(not torch.equal(stored[key], value) for key, value in now.items()),
        "keys": int(stored.keys() != now.keys()),
        "held": held / sum(value.numel() for value in now.values()),
    }


def found(folder: Path) -> dict[str, Any]:
    """What was found with every kind of network."""
    networks = {kind.__name__: small(kind) for kind in TINY} | {"PixelHDM": tiny_network()}
    networks["PixelHDM again"] = tiny_network(grad_checkpoint="all")
    taking = {kind.__name__ for kind in TAKES_TOKENS} - {"TextJiT"}
    return {
        name: compare(module_of(network, int(name in taking or "HDM" in name)), folder / name)
        for name, network in networks.items()
    }


def failed(folder: Path) -> dict[str, Any]:
    """What a process is told whose neighbour's disk is full, and what is left of the folder."""
    save = torch.save

    def full(content: Any, path: Any, **settings: Any) -> None:
        if isinstance(path, Path) and torch.distributed.get_rank() == 1:
            raise OSError("no space left")
        save(content, path, **settings)

    torch.save = full
    try:
        write_folder({"state_dict": {}, "optimizer_states": []}, folder / "full.ckpt")
    except UserError as error:
        told = str(error)
    torch.save = save
    torch.distributed.barrier()
    return {"told": told, "left": len(list(folder.glob("*full*")))}


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    result = found(Path(sys.argv[1])) | {"full": failed(Path(sys.argv[1]))}
    torch.save(result, Path(sys.argv[1]) / f"found{torch.distributed.get_rank()}.pt")
    torch.distributed.barrier()
    os._exit(0)
