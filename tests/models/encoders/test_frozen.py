import copy

import pytest
import torch
from torch import nn

from pixelhdm.errors import UserError
from tests.stubs import randn
from tests.tiny_dino import PatchMeans

CPU = torch.device("cpu")


def test_a_teacher_gives_normalised_features_row_by_row():
    image = randn(2, 8, 12, 3).clamp(-1, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    colours = ((image + 1) / 2 - mean) / std
    features = PatchMeans()(image)
    assert features.shape == (2, 2, 3, 3)
    for row in range(2):
        for column in range(3):
            patch = colours[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            torch.testing.assert_close(features[:, row, column], patch.mean(dim=(1, 2)))


def test_the_network_is_read_once_until_it_is_freed():
    teacher = PatchMeans()
    assert teacher.num_reads == 0
    network = teacher.load(CPU)
    teacher(randn(1, 4, 4, 3))
    assert teacher.load(CPU) is network
    assert teacher.num_reads == 1
    teacher.free()
    assert teacher.network is None
    teacher(randn(1, 4, 4, 3))
    assert teacher.num_reads == 2


def test_a_resting_network_comes_back_without_being_read_again(monkeypatch):
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    teacher, moves = PatchMeans(), []
    network = teacher.load(CPU)
    teacher.rest()
    assert not teacher.is_resting  # it is on the CPU already
    network.to = lambda place: moves.append(str(place))
    teacher.device = gpu = torch.device("cuda")
    teacher.rest()
    teacher.rest()
    assert teacher.load(gpu) is network
    teacher.load(gpu)
    assert (moves, teacher.num_reads) == (["cpu", "cuda"], 1)


def test_reading_draws_no_random_number_of_the_run():
    torch.manual_seed(0)
    PatchMeans().load(CPU)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


def test_a_network_read_in_validation_serves_training():
    class Linear(PatchMeans):
        def read(self) -> nn.Module:
            return nn.Sequential(super().read(), nn.Linear(3, 3), nn.Dropout())

    teacher, image = Linear(), randn(1, 4, 4, 3)
    with torch.inference_mode():
        first = teacher(image)
    trained = nn.Linear(3, 3)
    (trained(teacher(image)) * teacher(image)).sum().backward()
    assert trained.weight.grad.abs().max() > 0
    assert torch.equal(teacher(image), first)  # in eval mode: no dropout
    assert not any(p.requires_grad or p.is_inference() for p in teacher.network.parameters())


def test_the_module_that_holds_it_does_not_own_it():
    module = nn.Linear(2, 2)
    module.teacher = PatchMeans()
    network = module.teacher.load(CPU)
    assert len(list(module.modules())) == 1
    assert copy.deepcopy(module).teacher.load(CPU) is network


@pytest.mark.parametrize(("height", "width"), [(6, 8), (8, 3), (0, 4)])
def test_images_of_broken_patches_are_refused(height, width):
    with pytest.raises(UserError, match=f"multiples of 4, got {height}x{width}"):
        PatchMeans()(torch.zeros(1, height, width, 3))
