"""Shipped configs made tiny: their own classes with small sizes, on the CPU and without a hub."""

import copy
import re
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.life import ROOT

OFFLINE = {"configs_c2i": "offline.yaml", "configs_t2i": "offline_t2i.yaml"}
PATCHES = {"hidden_dim": 32, "patch_size": 4, "num_heads": 2, "feature_block": 1}
PIXELS = PATCHES | {"pixel_dim": 8, "patch_depth": 2, "pixel_depth": 1}
NETWORKS = {
    "DiT": PATCHES | {"depth": 2},
    "PixelDiT": PIXELS,
    "MMDiT": PATCHES | {"depth": 2},
    "MMPixelDiT": PIXELS | {"pixel_attention_dim": 16, "pixel_num_heads": 2},
    "JiT": PATCHES | {"depth": 4, "in_context_len": 2, "in_context_start": 1},
    "TextJiT": PATCHES | {"depth": 2, "text_depth": 1},
}
BOTTLENECK, GRID = {"bottleneck_dim": 8}, {"learned_grid": 2}
OPTIONAL = {"JiT": BOTTLENECK, "TextJiT": BOTTLENECK}  # made small where the config has them
ROUTING = {"first": 2, "last": 2, "min_tokens": 4}  # of two blocks
EXTRA = {"LpipsLoss": {"source": "vgg16.pth"}}


def files_of(config: Path) -> list[Path]:
    """The files that the command in a config's head comment names; the last is itself."""
    command = next(line for line in config.read_text().splitlines() if "main.py fit" in line)
    return [ROOT / name for name in re.findall(r"-c (\S+)", command)]


def merged(files: list[Path]) -> dict[str, Any]:
    """The content of YAML files, later ones over earlier ones key by key."""
    whole: dict[str, Any] = {}
    for file in files:
        whole = over(whole, yaml.safe_load(file.read_text()))
    return whole


def over(low: Any, high: Any) -> Any:
    """`high` over `low`."""
    if not isinstance(low, dict) or not isinstance(high, dict):
        return high
    return low | {key: over(low.get(key), value) for key, value in high.items()}


def tiny(config: Path) -> tuple[list[Path], dict[str, Any], dict[str, Any]]:
    """A config's files, their content, and the overlay that makes them tiny.

    The overlay asks for a DINO teacher in ./dino, of width 32, a text encoder in ./qwen3, captioned
    shards in data/mine and, for LPIPS, vgg16.pth.
    """
    files = files_of(config)
    content = merged(files)
    overlay = yaml.safe_load((ROOT / "tests" / OFFLINE[config.parent.name]).read_text())
    model, own = content["model"], overlay["model"]
    name = model["network"]["class_path"]
    if name in NETWORKS:
        given = model["network"].get("init_args", {})
        small = OPTIONAL.get(name, GRID)
        optional = {key: value for key, value in small.items() if given.get(key) is not None}
        own["network"] = {"class_path": name, "init_args": NETWORKS[name] | optional}
    if model["network"].get("init_args", {}).get("routing") is not None:
        own["network"]["init_args"]["routing"] = {"init_args": ROUTING}
    if "conditioner" in own:
        own["conditioner"]["class_path"] = model["conditioner"]["class_path"]
    terms = model.get("loss", {}).get("init_args", {})
    loss = own["loss"] = {"init_args": {}}
    if terms.get("repa") is not None:
        teacher = {"init_args": {"source": "dino", "dim": 32}}
        loss["init_args"]["repa"] = {"init_args": {"teacher": teacher}}
    if terms.get("extra"):
        loss["init_args"]["extra"] = [small_term(term) for term in terms["extra"]]
    return files, content, overlay


def small_term(term: dict[str, Any]) -> dict[str, Any]:
    """An extra loss term that reads its networks from the files here."""
    small = copy.deepcopy(term)
    own = small.setdefault("init_args", {})
    own |= EXTRA.get(term["class_path"], {})
    if "teacher" in own:
        own["teacher"].setdefault("init_args", {}).update({"source": "dino", "dim": 32})
    return small
