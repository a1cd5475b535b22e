"""What an evaluation's images depend on, and the folder that is named after it."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from pixelhdm.callbacks.image_facts import own_facts
from pixelhdm.callbacks.layouts import folder_name
from pixelhdm.data.draws import DrawItem
from pixelhdm.inference.listed import num_calls
from pixelhdm.inference.sweep import described
from pixelhdm.module import PixelHDMModule


def facts_of(item: DrawItem, pl_module: PixelHDMModule) -> dict[str, str]:
    """What one image depends on beside what all do."""
    drawing = pl_module.drawing_of(item)
    return own_facts(item, drawing, num_calls(item, drawing, pl_module.flow))


def digest_of_images(
    each: list[DrawItem], pl_module: PixelHDMModule, shared: dict[str, str]
) -> str:
    """A short text that differs when an image does; where the checkpoint lies does not count, its
    content does.

    Args:
        each: one image of each class or prompt.
        pl_module: what draws them.
        shared: what they all depend on.
    """
    shared = {name: value for name, value in shared.items() if name != "checkpoint"}
    own = [facts_of(item, pl_module) for item in each]
    return sha256(json.dumps([shared, own]).encode()).hexdigest()[:16]


def name_of_folder(
    prompts: str,
    each: list[DrawItem],
    pl_module: PixelHDMModule,
    shared: dict[str, str],
) -> str:
    """A name that tells the settings; `prompts` is the name of their file."""
    own, first = pl_module.drawing, each[0]
    named: dict[str, Any] = {"prompts": prompts} if prompts else {}
    named |= {"checkpoint": Path(shared["checkpoint"]).stem, "weights": shared["weights"]}
    named |= {"sampler": described(own.sampler), "steps": own.sampler.num_steps}
    named |= {"scale": f"{own.guidance.scale:g}", "size": f"{first.height}x{first.width}"}
    named |= {"seed": first.seed}
    told = [shared[name] for name in ("guidance", "times") if name in shared]
    return folder_name([f"{name}={value}" for name, value in named.items()] + told)


def settings_of_images(
    each: list[DrawItem], pl_module: PixelHDMModule, shared: dict[str, str]
) -> dict[str, Any]:
    """The same for the record: numbers as numbers, guidance and times in words where they are not
    as usual.
    """
    own, facts = pl_module.drawing, facts_of(each[0], pl_module)
    told = {name: shared[name] for name in ("guidance", "times") if name in shared}
    return {
        "sampler": described(own.sampler),
        "steps": own.sampler.num_steps,
        "calls": int(facts["calls"]),
        "scale": float(own.guidance.scale),
        "interval": list(own.guidance.interval),
        "size": facts["size"],
        "seed": each[0].seed,
        "precision": shared["precision"],
        **told,
    }
