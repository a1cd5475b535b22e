import pytest
import torch
from jsonargparse import Namespace

from pixelhdm.memory_advice import advice, ran_out


def config(
    batch=8,
    accumulate=1,
    optimizer="torch.optim.AdamW",
    mode="none",
    precision="32-true",
    limit=None,
    tokens=None,
    compile=False,
    strategy="auto",
    offload=False,
    ema="auto",
):
    network = Namespace(init_args=Namespace(grad_checkpoint=mode, activation_offload=offload))
    return Namespace(
        ema=Namespace(device=ema),
        data=Namespace(batch_size=batch, batch_tokens=tokens),
        trainer=Namespace(
            accumulate_grad_batches=accumulate,
            precision=precision,
            default_root_dir="nowhere",
            limit_train_batches=limit,
            strategy=strategy,
            accelerator="auto",
        ),
        model=Namespace(
            network=network if mode else Namespace(),
            optimizer=Namespace(class_path=optimizer),
            compile=compile,
        ),
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "checkpoint=selective, --data.batch_size=4 --trainer.accumulate_grad_batches=2, an"),
        ({"mode": "pixel"}, "grad_checkpoint=selective, --data.batch_size=4"),
        ({"mode": "selective"}, "grad_checkpoint=all, --data.batch_size=4"),
        ({"compile": True}, "grad_checkpoint=selective, --data.batch_size=4"),
        ({"compile": True, "mode": "pixel"}, "grad_checkpoint=all, --data.batch_size=4"),
        ({"accumulate": 3}, "--data.batch_size=4 --trainer.accumulate_grad_batches=6, an"),
        (
            {"tokens": 512},
            "=512 at 16x24. What helps most: --model.network.grad_checkpoint=selective, "
            "--data.batch_tokens=256 --trainer.accumulate_grad_batches=2, an",
        ),
        ({"mode": None}, "most: --data.batch_size=4"),  # a network without settings
        ({"limit": 1}, "grad_checkpoint=selective, an optimizer with"),  # one batch
        ({"limit": 1.0}, "grad_checkpoint=selective, --data.batch_size=4"),
        ({"limit": 3}, "grad_checkpoint=selective, an optimizer with"),  # must keep its batches
        ({"batch": 9}, "--data.batch_size=3 --trainer.accumulate_grad_batches=3, an optimizer"),
        (
            {"batch": 1, "mode": "all"},
            "most: an optimizer with 8-bit states (README, Optimizers), "
            "--trainer.precision=bf16-mixed, a smaller network or image. Nothing was saved yet.",
        ),
        (
            {"mode": "all", "optimizer": "bitsandbytes.optim.AdamW8bit"},
            "accumulate_grad_batches=2, --trainer.precision=bf16-mixed, a smaller network",
        ),
        (
            {"batch": 1, "mode": "all", "optimizer": "X8bit", "precision": "bf16-mixed"},
            "most: a smaller network or image. Nothing",
        ),
    ],
)
def test_what_is_not_set_and_keeps_the_images_of_a_step_is_advised(settings, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert words in advice(config(**settings), "fit", (16, 24))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "accumulate_grad_batches=2, --model.network.activation_offload=true. Nothing"),
        (
            {"batch": 1},
            "checkpoint=selective, --model.network.activation_offload=true, --ema.device=cpu. ",
        ),
        ({"batch": 1, "offload": True}, "selective, --ema.device=cpu, an optimizer with"),
        ({"batch": 1, "ema": "cpu"}, "activation_offload=true, an optimizer with"),
        ({"batch": 1, "strategy": "fsdp2"}, "activation_offload=true, an optimizer with"),
    ],
)
def test_on_a_gpu_memory_of_the_cpu_is_advised_too(settings, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert words in advice(config(**settings), "fit", (16, 24))


@pytest.mark.parametrize(
    ("batch", "words"),
    [(8, "batch_size=4."), (1, "Set --trainer.precision=bf16-mixed or a smaller image.")],
)
def test_other_commands_only_need_less_at_once(batch, words):
    said = advice(config(batch), "predict", (16, 24))
    assert "predict must fit into the device's memory" in said
    assert f"batch_size={batch} at 16x24." in said
    assert words in said


def test_all_kinds_of_failed_allocations_are_known():
    errors = [
        torch.OutOfMemoryError(),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ]
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert all(map(ran_out, [*errors, caught.value]))
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
