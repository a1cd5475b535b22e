"""The command plan: what a training takes on a GPU, as a table."""

import json as json_format
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from pixelhdm.errors import UserError, check_at_least
from pixelhdm.files import replacing
from pixelhdm.planning.forecast import Forecast
from pixelhdm.planning.gpus import THIS, USUAL, Gpu, find_gpu, this_device
from pixelhdm.planning.parts import Job, job_of
from pixelhdm.planning.report import facts, text


def plan(
    config: Namespace,
    gpu: str | None = None,
    num_gpus: int | None = None,
    text_len: int | None = None,
    json: str | None = None,
) -> None:
    """Predict what a training takes, and print it.

    Args:
        config: all settings of fit.
        gpu: the GPU to plan for, such as "RTX 4090", or this, the device at hand, measured. Empty
            takes this where there is a GPU or the config trains on a CPU, else several usual ones.
        num_gpus: number of them; empty takes trainer.devices times trainer.num_nodes.
        text_len: tokens of a caption; empty takes the most that the text encoder reads.
        json: file to write all numbers to, too.

    Raises:
        UserError: a GPU is not known, or the config has nothing to train.
    """
    given = {"num_gpus": num_gpus, "text_len": text_len}
    check_at_least(1, **{name: value for name, value in given.items() if value is not None})
    found = None if gpu is None or gpu == THIS else find_gpu(gpu)
    if json is not None and not Path(json).parent.is_dir():
        raise UserError(f"json must lie in a folder that is there, got {json}.")
    job = job_of(config, num_gpus, text_len)
    gpus = [found] if found else chosen(job, gpu)
    forecast = Forecast(job, on_cpu=gpus[0].is_cpu)
    tokens = config.data.batch_tokens
    print(text(forecast, gpus, tokens))
    if json is not None:
        write(Path(json), {one.name: facts(forecast, one, tokens) for one in gpus})


def chosen(job: Job, gpu: str | None) -> list[Gpu]:
    """The GPUs to plan for where none was named."""
    if job.on_cpu or gpu == THIS or torch.cuda.is_available():
        on_gpu = torch.cuda.is_available() and not job.on_cpu
        device = torch.device("cuda" if on_gpu else "cpu")
        return [this_device(device, job.dtype)]
    return [find_gpu(name) for name in USUAL]


def write(file: Path, content: dict[str, Any]) -> None:
    """Write numbers to a file."""
    with replacing(file) as temporary:
        temporary.write_text(json_format.dumps(content, indent=2) + "\n", encoding="utf-8")
