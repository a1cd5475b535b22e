"""What a training's config and record tell of it, for people."""

from collections.abc import Mapping
from typing import Any

import yaml

from pixelhdm.inference.exports.trained import Trained

ENVIRONMENT = "environment.yaml"
TOLD_PACKAGES = ("torch", "lightning", "transformers")


def training_facts(found: Trained) -> dict[str, str]:
    """Facts of a training by name; those that nothing tells are left out, and paths always."""
    record = read_record(found)
    rate = found.setting("model.optimizer.init_args.lr")
    facts = {
        "converted from": found.origin.get("source"),
        "licence of the weights": found.origin.get("licence"),
        "optimizer steps": found.step or None,
        "weights": average(found) if found.weights == "ema" else "raw",
        "images seen": images_seen(found, record),
        "batch size": batch_size(found, record),
        "data": class_name(found.setting("data.train")),
        "training size": training_size(found),
        "losses": losses(found.setting("model.loss")),
        "optimizer": with_rate(class_name(found.setting("model.optimizer")), rate),
        "schedule": class_name(found.setting("model.schedule")),
        "precision": found.precision,
        "devices": devices(record),
        "began": record.get("time"),
        "git commit": commit(record.get("git")),
        "packages": packages(record.get("packages") or {}),
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def average(found: Trained) -> str:
    """What kind of average the weights are."""
    if found.sigma_rel is not None:
        return f"average with a power-function profile, sigma_rel {found.sigma_rel}"
    decay = found.setting("ema.decay")
    return "exponential moving average" + ("" if decay is None else f", decay {decay}")


def read_record(found: Trained) -> Mapping[str, Any]:
    """The last entry of the run's environment.yaml; empty where there is none."""
    for folder in (found.file.parent.parent, found.file.parent):
        file = folder / ENVIRONMENT
        if file.is_file():
            entries = yaml.safe_load(file.read_text(encoding="utf-8"))
            if isinstance(entries, list) and isinstance(entries[-1], dict):
                return entries[-1]
    return {}


def class_name(part: Any) -> str | None:
    """The name of a part's class, without its module."""
    path = part.get("class_path") if isinstance(part, Mapping) else part
    return path.rpartition(".")[2] if isinstance(path, str) else None


def with_rate(name: str | None, rate: Any) -> str | None:
    """An optimizer with its learning rate."""
    return name if name is None or rate is None else f"{name}, learning rate {rate}"


def batch_size(found: Trained, record: Mapping[str, Any]) -> int | None:
    """Images per optimizer step over all processes, where all steps have as many."""
    own, processes = found.setting("data.batch_size"), record.get("processes")
    if own is None or processes is None or found.setting("data.batch_tokens") is not None:
        return None
    return own * processes * (found.setting("trainer.accumulate_grad_batches") or 1)


def images_seen(found: Trained, record: Mapping[str, Any]) -> str | None:
    """Images of all steps, copies of the same one counted again."""
    each = batch_size(found, record)
    return None if each is None or found.step is None else f"{each * found.step:,}"


def training_size(found: Trained) -> str | None:
    """The sizes that the training's images have."""
    buckets = found.setting("data.buckets")
    if buckets is None:
        side = found.setting("data.image_size")
        return None if side is None else f"{side} x {side}"
    return f"buckets of sides {buckets.get('min_side')} to {buckets.get('max_side')}"


def losses(loss: Any) -> str | None:
    """The loss's terms with their weights."""
    terms = (loss or {}).get("init_args") or {}
    told = [
        f"{class_name(term)} (weight {(term.get('init_args') or {}).get('weight', 1.0)})"
        for term in terms.values()
        if isinstance(term, Mapping)
    ]
    return ", ".join(told) or None


def devices(record: Mapping[str, Any]) -> str | None:
    """The devices, equal ones counted."""
    names = record.get("devices") or []
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or None


def commit(git: Any) -> str | None:
    """The commit that the training ran from."""
    if not isinstance(git, Mapping):
        return None
    return f"{git.get('commit')}{' with changes' if git.get('dirty') else ''}"


def packages(versions: Mapping[str, Any]) -> str | None:
    """The versions that matter most."""
    told = [f"{name} {versions[name]}" for name in TOLD_PACKAGES if versions.get(name)]
    return ", ".join(told) or None
