"""Reading the files that published networks come in, without running code that is inside them."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, NamedTuple
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.serialization import safe_globals

from pixelhdm.checkpoints import unreadable_class
from pixelhdm.errors import UserError, reason_of

State = dict[str, Tensor]
Container = Literal["lightning", "jit", "plain"]
RAW, AVERAGE, PROJECTORS = "denoiser.", "ema_denoiser.", ("diffusion_trainer.", "_repa_projector.")
WRAPPERS = ("_orig_mod.", "module.")  # of torch.compile and of DDP
REMEDY = "Download it again, and give the file itself, not a link to it."


class Copies(NamedTuple):
    """What a file holds of a network.

    Attributes:
        raw: its weights; None where the file has the average alone.
        ema: their average; None where the file has none.
        step: optimizer steps that they were trained for; 0 where the file does not say.
        container: what kind of file it is: Lightning's, JiT's, or plain weights.
    """

    raw: State | None
    ema: State | None
    step: int
    container: Container

    @property
    def best(self) -> State:
        """The average, or the raw weights where there is none."""
        return self.raw if self.ema is None else self.ema


def read_copies(path: str | Path) -> Copies:
    """The copies of a network in an official file.

    Raises:
        UserError: the file is missing, torn, or holds no weights.
    """
    content = read_content(path)
    step = content.get("global_step")
    jit = [without(content.get(name), "net.") or None for name in ("model", "model_ema1")]
    if any(jit):
        return Copies(*jit, 0, "jit")
    state = tensors(content.get("state_dict", content))
    state = part(state, "net.") or state
    raw, ema = part(state, RAW), part(state, AVERAGE)
    container: Container = "lightning" if raw or ema else "plain"
    others = [key for key in state if not key.startswith((RAW, AVERAGE, *PROJECTORS))]
    if container == "plain":
        raw = without(state, "core.")
        if "state_dict_ema" in content:
            ema = without(content["state_dict_ema"], "core.")
    elif others:
        for copy in filter(None, (raw, ema)):  # so that they are named as what they are
            copy |= {key: state[key] for key in others}
    if not raw and not ema:
        raise UserError(f"ckpt must hold the weights of a network, got {path} without. {REMEDY}")
    return Copies(raw or None, ema or None, step if isinstance(step, int) else 0, container)


def read_content(path: str | Path) -> Mapping[str, Any]:
    """The content of a file of PyTorch or safetensors; tensors stay on the disk until used."""
    path = Path(path)
    if not path.is_file() or path.stat().st_size == 0:
        what = "is a folder" if path.is_dir() else "is empty" if path.exists() else "does not exist"
        raise UserError(f"ckpt must be a file, got {path}, which {what}. Download it first.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if is_zipfile(path):
            with ZipFile(path) as archive:  # torch.load does not look at the checksums
                damaged = archive.testzip()
            if damaged is not None:
                raise BadZipFile(f"wrong checksum of {damaged}")
        with safe_globals(harmless()):
            content = torch.load(path, "cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # a damaged file can fail in any way
        if held := unreadable_class(error):
            raise UserError(
                f"ckpt must hold plain values and tensors, got {held} in {path}, which cannot be "
                "read without running code. Save its state_dict alone with torch.save."
            ) from error
        raise UserError(
            f"ckpt must be a whole file of PyTorch or safetensors, got {path}: "
            f"{'no such format' if isinstance(error, UnpicklingError) else reason_of(error)}. "
            f"{REMEDY}"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(
            f"ckpt must hold weights by name, got {path} with a {type(content).__name__}. {REMEDY}"
        )
    return content


def harmless() -> list[Any]:
    """Classes in official files beside tensors: arguments of the training, NumPy's random state."""
    rebuild = np.empty(0).__reduce__()[0]
    return [
        argparse.Namespace,
        np.ndarray,
        np.dtype,
        np.dtypes.UInt32DType,
        rebuild,
        (rebuild, "numpy.core.multiarray._reconstruct"),  # of NumPy 1
    ]


def tensors(state: Any) -> State:
    """The tensors of a state, without the names that compilation and DDP put before theirs."""
    if not isinstance(state, Mapping):
        return {}
    found = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            for wrapper in WRAPPERS:
                key = key.replace(wrapper, "")
            found[key] = value
    return found


def part(state: State, prefix: str) -> State:
    """The tensors whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}


def without(state: Any, prefix: str) -> State:
    """The tensors but those of a projector, without a prefix that their names may have."""
    return {
        key.removeprefix(prefix): value
        for key, value in tensors(state).items()
        if not key.startswith(PROJECTORS)
    }
