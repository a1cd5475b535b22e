"""The config of a converted model: its network, and how its authors draw with it."""

from dataclasses import asdict
from typing import Any, NamedTuple

import yaml

from pixelhdm.converting.families import CLASS_PIXELDIT, TEXT_JIT, TEXT_PIXELDIT, Family
from pixelhdm.converting.plan import Plan
from pixelhdm.training.flow import FlowMatching

BATCH, PRECISION = 8, "bf16-mixed"
CLASSES = (207, 250, 279, 360, 387, 417, 933, 980)  # of ImageNet: golden retriever, husky, …
PROMPTS = (
    "a red fox asleep in fresh snow, photograph",
    "a lighthouse on a cliff in a storm, oil painting",
    "a long wooden table with bread, apples and a blue jug",
    "three green balloons to the left of a white house",
)
LICENCES = {
    "pixeldit": "NVIDIA NSCLv1: research and evaluation only, non-commercial",
    "pixeldit_t2i": "NVIDIA NSCLv1: research and evaluation only, non-commercial",
    "jit": "MIT",
    "pixelgen": "no licence file; the author names Apache-2.0 (issue 9 of its repository)",
}
WHOLE_TRAINING = 1_200_000  # steps; PixelDiT-XL's files of 80 and 160 epochs have fewer
XL_WHOLE_TRAINING = 600_000  # steps; PixelGen-XL's file of 80 epochs has 400,000
LARGE = 512  # pixels: the larger of two published sizes
AFTER, BEFORE = 0.101, 0.899  # ends that the published intervals 0.1 … 0.9 leave out, and steps hit


class Drawing(NamedTuple):
    """How a model is drawn with.

    Attributes:
        flow: the path that it was trained on.
        sampler: class and arguments of the solver.
        scale: of the guidance.
        interval: times with guidance.
        shift: of the solver's times.
    """

    flow: dict[str, Any]
    sampler: tuple[str, dict[str, int]]
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    shift: float = 1.0


def drawing_of(family: Family, kind: str, plan: Plan, side: int, step: int) -> Drawing:
    """How the authors draw: PixelDiT's and PixelGen's configs and README, JiT's README."""
    if kind == CLASS_PIXELDIT:
        return pixeldit_drawing(side, step)
    if kind == TEXT_PIXELDIT:
        shift = 4.0 if side > LARGE else 3.0
        flow = flow_of("v", time_shift=shift)
        return Drawing(flow, ("DPM2MSampler", {"num_steps": 50}), 3.5, shift=shift)
    mean_std = {"time_mean": -0.8, "time_std": 0.8}
    if family == "jit":
        return jit_drawing(plan, mean_std)
    flow = flow_of("x", **mean_std)
    if kind == TEXT_JIT:
        sampler = ("AdamsSampler", {"num_steps": 25, "order": 2})
        return Drawing(flow, sampler, 4.0, shift=3.0)
    if plan.network["init_args"]["bottleneck_dim"] is not None:  # L
        return Drawing(flow, ("EulerSampler", {"num_steps": 50}), 1.0)
    heun = ("HeunSampler", {"num_steps": 50})
    if 0 < step < XL_WHOLE_TRAINING:
        return Drawing(flow, heun, 1.0, shift=2.0)
    return Drawing(flow, heun, 2.25, (0.1, 0.9), 2.0)


def pixeldit_drawing(side: int, step: int) -> Drawing:
    """PixelDiT's, by size, and at 256 px by whether the training was complete."""
    sampler = ("AdamsSampler", {"num_steps": 100, "order": 2})
    if side >= LARGE:
        return Drawing(flow_of("v", time_shift=3.0), sampler, 3.5, (0.1, 1.0), 2.0)
    if 0 < step < WHOLE_TRAINING:
        return Drawing(flow_of("v"), sampler, 3.25, (AFTER, 1.0))
    return Drawing(flow_of("v"), sampler, 2.75, (AFTER, BEFORE))


def jit_drawing(plan: Plan, mean_std: dict[str, float]) -> Drawing:
    """JiT's, by depth; its noise grows with the side of the images beyond 256 px."""
    scale = {12: 2.9, 24: 2.4}.get(plan.network["init_args"]["depth"], 2.2)
    flow = flow_of("x", noise_scale=max(1.0, plan.side / 256), **mean_std)
    return Drawing(flow, ("HeunSampler", {"num_steps": 50}), scale, (AFTER, 1.0))


def flow_of(prediction: str, **settings: float) -> dict[str, Any]:
    """A flow whose times are not squeezed."""
    return {"prediction": prediction, "squeeze_time": False, **settings}


def config_text(
    family: Family, plan: Plan, drawing: Drawing, side: int, out: str, source: str
) -> str:
    """The config as YAML, with where it comes from."""
    solver, steps = drawing.sampler
    config = {
        "trainer": {"default_root_dir": out, "precision": PRECISION},
        "data": {"image_size": side, "batch_size": BATCH, **asked(plan)},
        "model": {
            "network": plan.network,
            "conditioner": plan.conditioner,
            "flow": asdict(FlowMatching(**drawing.flow)),  # whole: a base may hold another one's
            "sampler": {"class_path": solver, "init_args": steps},
            "guidance": {
                "class_path": "Guidance",
                "init_args": {"scale": drawing.scale, "interval": list(drawing.interval)},
            },
            "time_grid": {"span": "full", "shift": drawing.shift},
        },
    }
    head = (
        f"# Converted from {source} (main.py convert --from {family}); solver, guidance and times "
        f"are its authors'.\n# Licence of the weights: {LICENCES[family]}.\n"
    )
    return head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=200)


def asked(plan: Plan) -> dict[str, Any]:
    """What predict draws first."""
    num_classes = plan.conditioner["init_args"].get("num_classes")
    if num_classes is None:
        return {"prompts": list(PROMPTS)}
    classes = [number for number in CLASSES if number < num_classes]
    return {"draw": {"classes": classes or list(range(min(8, num_classes))), "num_images": 4}}
