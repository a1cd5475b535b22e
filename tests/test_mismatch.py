"""What does not fit is named, with its likely cause."""

import pytest
import torch

from pixelhdm.errors import UserError
from pixelhdm.mismatch import check_fit
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.conditioners.positioned_text_conditioner import PositionedTextConditioner
from pixelhdm.models.conditioners.text_conditioner import TextConditioner
from pixelhdm.models.dit import DiT, PixelDiT
from pixelhdm.models.jit import JiT
from pixelhdm.models.mmdit import MMDiT
from pixelhdm.models.text_jit import TextJiT
from tests.models.networks import small
from tests.stubs import randn, tiny_network

STATE = {"network.a": randn(40, 30), "network.b": randn(7), "conditioner.c": randn(2, 3)}


def test_what_does_not_fit_is_listed():
    check_fit(STATE, dict(STATE), "x.ckpt")
    found = {f"old.{n}": randn(1) for n in range(5)} | {"network.a": randn(40, 31)}
    with pytest.raises(UserError) as error:
        check_fit(STATE, found, "x.ckpt")
    for words in (
        "x.ckpt does not fit the config",
        "2 tensors it lacks (network.b, conditioner.c)",
        "5 tensors the config has no place for (old.0, old.1, old.2, …)",
        "1 other shapes (network.a (40, 31) in the checkpoint, (40, 30) in the config)",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_a_single_difference_is_an_error(change):
    found = dict(STATE)
    if change == "missing":
        del found["network.b"]
    elif change == "extra":
        found["network.z"] = randn(1)
    else:
        found["network.b"] = randn(7, 1)
    with pytest.raises(UserError, match="1 "):
        check_fit(STATE, found, "x.ckpt")


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_where_the_losses_alone_differ_the_remedies_that_help_are_named(change):
    key, expected, found = "loss.terms.repa.projector.4.bias", dict(STATE), dict(STATE)
    if change != "extra":
        expected[key] = randn(3)
    if change != "missing":
        found[key] = randn(5)
    words = r"Keep the losses .*repa_early_stop\.step=0 .*--model\.init_from\.$"
    with pytest.raises(UserError, match=words):
        check_fit(expected, found, "x.ckpt")
    with pytest.raises(UserError, match="Use the config that it was trained with"):
        check_fit(expected | {"network.z": randn(1)}, found, "x.ckpt")


@pytest.mark.parametrize(
    ("expected", "found", "words"),
    [
        (["0_05", "0_1"], [], r"started with, none in x\.ckpt, got 0\.05, 0\.1\. "),
        ([], ["0_1"], r"started with, 0\.1 in x\.ckpt, got none\. "),
        (["0_05"], ["0_1", "0_05"], r"started with, 0\.05, 0\.1 in x\.ckpt, got 0\.05\. "),
    ],
)
def test_other_profiles_are_named(expected, found, words):
    states = [
        STATE | {f"profiles.{name}.{key}": value for name in names for key, value in STATE.items()}
        for names in (expected, found)
    ]
    with pytest.raises(UserError, match=words):
        check_fit(*states, "x.ckpt")


def classes(num: int = 10) -> ClassConditioner:
    return ClassConditioner(32, num, 2)


def text(width: int = 24, null: str = "learned") -> TextConditioner:
    return TextConditioner(32, "nowhere/nothing", width, null=null)


def positioned(length: int = 5) -> PositionedTextConditioner:
    return PositionedTextConditioner(32, "nowhere/nothing", 24, max_length=length)


def state(network: torch.nn.Module, conditioner: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Of a module that has an average too."""
    raw = torch.nn.ModuleDict({"network": network, "conditioner": conditioner}).state_dict()
    return raw | {f"ema.{key}": value for key, value in raw.items()}


@pytest.mark.parametrize(
    ("config", "checkpoint", "cause"),
    [
        (({"hidden_dim": 48}, classes()), ({}, classes()), r"network size \(hidden_dim, or"),
        (({"head_dim": 16, "rope_dims": (4, 4, 8)}, classes()), ({}, text()), "network size"),
        (({"patch_depth": 4}, classes()), ({}, classes()), r"network size \(depth, patch_depth or"),
        (({}, classes()), ({"pixel_depth": 3}, classes()), r"network size \(depth, patch_depth or"),
        (({"patch_size": 4}, text()), ({}, text()), "patch size"),
        (({"bottleneck_dim": 4}, text()), ({}, text()), r"network size \(bottleneck_dim or"),
        (({"pixel_dim": 8}, text()), ({}, text()), r"network size \(bottleneck_dim or"),
        (({}, text(32)), ({}, text(24)), "conditioner or text encoder width"),
        (
            ({}, text()),
            ({}, classes()),
            r"conditioner \(class-conditional checkpoint, text-conditional config\)",
        ),
        (
            ({}, classes()),
            ({}, text()),
            r"conditioner \(text-conditional checkpoint, class-conditional config\)",
        ),
        (({}, positioned()), ({}, positioned(7)), "max_length of the texts"),
        (({}, positioned()), ({}, classes()), r"conditioner \(class-conditional checkpoint, text"),
        (({}, text()), ({}, text(null="empty")), r"null condition \(learned or empty\)"),
        (({}, classes(10)), ({}, classes(1000)), "number of classes"),
    ],
)
def test_the_likely_cause_is_named(config, checkpoint, cause):
    expected, found = (
        state(tiny_network(**changes), part) for changes, part in (config, checkpoint)
    )
    words = rf"The likely cause: another {cause}.*\. Use the config that it was trained with\.$"
    with pytest.raises(UserError, match=words):
        check_fit(expected, found, "x.ckpt")


@pytest.mark.parametrize(
    ("kind", "changes", "cause"),
    [
        (DiT, {"depth": 3}, r"network size \(depth,"),
        (DiT, {"hidden_dim": 48}, r"network size \(hidden_dim"),
        (DiT, {"patch_size": 2}, "patch size"),
        (PixelDiT, {"pixel_dim": 4}, r"network size \(bottleneck_dim or pixel_dim"),
        (PixelDiT, {"pixel_depth": 1}, r"network size \(depth,"),
        (JiT, {"bottleneck_dim": None}, r"network size \(bottleneck_dim\)"),
        (JiT, {"bottleneck_dim": 12}, r"network size \(bottleneck_dim or"),
        (TextJiT, {"text_depth": 2}, r"network size \(depth,"),
    ],
)
def test_causes_are_named_for_the_other_networks(kind, changes, cause):
    expected, found = (state(small(kind, **own), classes()) for own in (changes, {}))
    with pytest.raises(UserError, match=rf"The likely cause: another {cause}"):
        check_fit(expected, found, "x.ckpt")


@pytest.mark.parametrize(("kind", "other"), [(DiT, PixelDiT), (JiT, DiT), (MMDiT, DiT)])
def test_other_networks_are_told_apart(kind, other):
    with pytest.raises(UserError, match="The likely cause: another network class"):
        check_fit(state(small(kind), classes()), state(small(other), classes()), "x.ckpt")


def test_another_class_of_network_is_named():
    other = state(torch.nn.Linear(2, 2), classes())
    with pytest.raises(UserError, match="The likely cause: another network class"):
        check_fit(state(tiny_network(), classes()), other, "x.ckpt")


def test_no_cause_is_guessed_for_a_single_lost_tensor():
    expected = state(tiny_network(), classes())
    found = {key: value for key, value in expected.items() if key != "conditioner.tokens.weight"}
    found["stray"] = randn(1)
    with pytest.raises(UserError, match=r"\(stray\)\. Use the config"):
        check_fit(expected, found, "x.ckpt")
