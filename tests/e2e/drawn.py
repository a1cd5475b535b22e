"""A model of texts that draws at once, and what lies in the folders that predict writes."""

import html.parser
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import HeunSampler
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.module import PixelHDMModule
from tests.e2e.conftest import QUICKSTART, ROOT
from tests.stubs import HashConditioner, perturb

TEXT = [
    *QUICKSTART,
    "--data.draw={classes: null, num_images: null}",
    "--model.conditioner=tests.stubs.HashConditioner",
    "--model.init_from=text.ckpt",
    "--model.weights=raw",
    "--data.batch_size=3",
]


def save_text_checkpoint() -> None:
    """Random weights of the network of offline.yaml with a text conditioner."""
    settings = yaml.safe_load((ROOT / "tests/offline.yaml").read_text())["model"]["network"]
    torch.manual_seed(0)
    sizes = settings["init_args"]
    network = perturb(PixelHDM(**sizes | {"rope_dims": tuple(sizes["rope_dims"])}))

    def conditioner(dim: int) -> HashConditioner:
        return HashConditioner(dim)

    module = PixelHDMModule(network, conditioner, HeunSampler(2), Guidance(2.0))
    torch.save({"state_dict": module.state_dict()}, "text.ckpt")


def files(folder: str) -> list[str]:
    """All files below a folder."""
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def pixels(folder: str) -> dict[str, np.ndarray]:
    """All images below a folder."""
    names = [name for name in files(folder) if name.endswith(".png")]
    return {name: np.asarray(Image.open(Path(folder) / name)).astype(int) for name in names}


def facts(path: str) -> dict[str, str]:
    """What a file tells of how it was drawn."""
    text = Image.open(path).info
    return {k.removeprefix("pixelhdm."): str(v) for k, v in text.items() if "pixelhdm" in k}


class Links(html.parser.HTMLParser):
    """The images of a page and its text."""

    def __init__(self, page: Path):
        super().__init__()
        self.images, self.text = [], ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text += data
