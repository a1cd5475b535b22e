"""What to do when the device's memory does not suffice."""

import torch
from jsonargparse import Namespace

from pixelhdm.checkpoints import checkpoints_of, step_of

# Of CUDA, its libraries and the CPU, whose failed allocations are no torch.OutOfMemoryError.
WORDS = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",
)


def ran_out(error: RuntimeError) -> bool:
    """Whether an error says that memory could not be had."""
    is_own = isinstance(error, torch.OutOfMemoryError)
    return is_own or any(words in str(error) for words in WORDS)


def advice(config: Namespace, subcommand: str, image_size: tuple[int, int] | None) -> str:
    """One sentence on what did not fit, and the settings that help most.

    Args:
        config: the subcommand's config.
        subcommand: fit, validate, predict or test.
        image_size: height and width of the last images.
    """
    batch, tokens = config.data.batch_size, config.data.batch_tokens
    by_tokens = subcommand not in ("predict", "test") and tokens is not None
    size = " at {}x{}".format(*image_size) if image_size else ""
    given = f"batch_tokens={tokens}" if by_tokens else f"batch_size={batch}"
    text = f"{subcommand} must fit into the device's memory, got out of it with {given}"
    if subcommand != "fit":
        smaller = "--trainer.precision=bf16-mixed or a smaller image"
        if by_tokens:
            smaller = f"--data.batch_tokens={tokens // 2}"
        elif batch > 1:
            smaller = f"--data.batch_size={batch // 2}"
        return f"{text}{size}. Set {smaller}."
    kept = checkpoints_of(config.trainer.default_root_dir or ".")
    saved = "Nothing was saved yet."
    if kept:
        saved = (
            f"{max(kept, key=step_of).name} is intact and can be resumed with all of these, "
            "another optimizer or network excepted."
        )
    return f"{text}{size}. What helps most: {', '.join(savings(config)[:3])}. {saved}"


def savings(config: Namespace) -> list[str]:
    """Settings of a training run that save memory and are not made yet, the best first."""
    batch, trainer = config.data.batch_size, config.trainer
    limit = trainer.limit_train_batches
    is_whole = limit is None or (isinstance(limit, float) and limit == 1)  # 1 is one batch
    network = config.model.network.get("init_args") or {}
    tokens = config.data.batch_tokens
    part = next((n for n in range(2, batch + 1) if batch % n == 0), 1) if tokens is None else 2
    parts = part * trainer.accumulate_grad_batches
    fewer = f"batch_size={batch // part}" if tokens is None else f"batch_tokens={tokens // part}"
    mode, on_gpu = network.get("grad_checkpoint", "all"), computes_on_gpu(config)
    # Of compiled blocks selective computes those of the pixel path again, as pixel does.
    is_selective = mode == "selective" or (mode == "pixel" and config.model.get("compile"))
    sparer = "all" if is_selective else "selective"
    is_whole_on_each = "fsdp2" not in str(trainer.get("strategy")).lower()
    return [
        words
        for words, is_new in (
            (f"--model.network.grad_checkpoint={sparer}", mode != "all"),
            (
                f"--data.{fewer} --trainer.accumulate_grad_batches={parts}",
                (batch > 1 or tokens is not None) and is_whole,
            ),
            (
                "--model.network.activation_offload=true",
                on_gpu and not network.get("activation_offload", True),
            ),
            (
                "--ema.device=cpu",
                on_gpu and is_whole_on_each and config.get("ema.device") == "auto",
            ),
            (
                "an optimizer with 8-bit states (README, Optimizers)",
                "8bit" not in config.model.optimizer.class_path,
            ),
            ("--trainer.precision=bf16-mixed", str(trainer.precision).startswith("32")),
            ("a smaller network or image", True),
        )
        if is_new
    ]


def computes_on_gpu(config: Namespace) -> bool:
    """Whether a run has CPU memory beside the memory that did not suffice."""
    return torch.cuda.is_available() and config.trainer.get("accelerator") != "cpu"
