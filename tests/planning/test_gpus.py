import pytest
import torch

from pixelhdm.errors import UserError
from pixelhdm.planning.gpus import GPUS, USUAL, Gpu, find_gpu, this_device
from pixelhdm.planning.recording import Work
from pixelhdm.planning.speed import BANDWIDTH_SHARE, PRODUCT_SHARE, seconds
from pixelhdm.planning.standins import TEXTS, PlainViT, known_text


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("rtx4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4060 Ti 16GB", "RTX 4060 Ti 16 GB"),
        ("4060ti", "RTX 4060 Ti 16 GB"),
        ("a100 80gb", "A100-80"),
        ("H200", "H200"),
        ("l4", "L4"),  # not L40S
        ("l40", "L40S"),
    ],
)
def test_names_are_forgiving(asked, name):
    assert find_gpu(asked).name == name


@pytest.mark.parametrize("asked", ["a100", "RTX", "", "voodoo"])
def test_a_name_of_none_or_several_is_refused_with_those_known(asked):
    with pytest.raises(UserError, match=r"gpu must be this or one of .*, got"):
        find_gpu(asked)


def test_the_usual_gpus_have_the_memory_of_the_table():
    assert [round(find_gpu(name).gib) for name in USUAL] == [16, 24, 45, 80, 140]
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)


def test_an_operation_takes_the_longer_of_its_arithmetic_and_its_way():
    gpu = Gpu("test", 1, 2.0, 1.0, ((float("inf"), 1e9),), host_seconds=0.0)
    product = Work(10**12, {1: 1000}, {2: 1000}, 2)
    single = product._replace(itemsize=4)
    copy = Work(0, {1: 10**9}, {2: 10**9}, 2)
    assert seconds([product], gpu) == pytest.approx(0.5 / PRODUCT_SHARE)
    assert seconds([single], gpu) == pytest.approx(1 / PRODUCT_SHARE)
    assert seconds([copy, copy], gpu) == pytest.approx(4 / BANDWIDTH_SHARE)
    called = gpu._replace(host_seconds=100.0)
    assert seconds([copy, copy], called) == 200
    assert seconds([copy], called._replace(is_cpu=True)) == pytest.approx(100 + 2 / BANDWIDTH_SHARE)


def test_the_device_at_hand_is_measured():
    gpu = this_device(torch.device("cpu"), torch.float32)
    assert gpu.is_cpu
    assert gpu.float32_tflops > 0
    assert gpu.bandwidth(1) > 0
    assert 0 < gpu.host_seconds < 1e-2


def test_stand_ins_have_the_published_sizes():
    """Of DINOv2-B 86 million (arXiv:2304.07193); of Qwen3-0.6B 233 GFLOP for 256 tokens."""
    with torch.device("meta"):
        teacher = PlainViT(768, 16)
    assert sum(p.numel() for p in teacher.parameters()) == pytest.approx(86e6, rel=0.02)
    assert TEXTS["Qwen3-0.6B"].flop(256) == pytest.approx(233e9, rel=0.05)
    assert known_text("/models/Qwen3-0.6B/") is TEXTS["Qwen3-0.6B"]
    assert known_text("google/gemma-2-2b-it").width == 2304
    assert known_text("somebody/else") is None
