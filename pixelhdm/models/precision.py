"""In which type matrices are multiplied."""

import torch

HALF = (torch.bfloat16, torch.float16)


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type in which matrices of a type are multiplied, under autocast too."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return dtype


def training_dtype(precision: str) -> torch.dtype:
    """The type in which matrices are multiplied at a precision of the trainer."""
    known = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    return known.get(precision.split("-")[0], torch.float32)
