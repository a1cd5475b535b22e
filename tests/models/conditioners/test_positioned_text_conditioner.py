import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pixelhdm.data.shards import Shards
from pixelhdm.errors import UserError
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.conditioners.positioned_text_conditioner import (
    GemmaConditioner,
    PositionedTextConditioner,
)
from pixelhdm.models.encoders.text_encoder import TextEncoder
from pixelhdm.pipeline import PixelHDMPipeline
from pixelhdm.training.optim.groups import parameter_groups
from tests.inference.models import write_run
from tests.stubs import perturb, randn, tiny_network
from tests.text_shards import cache, opened, save_shards
from tests.tiny_gemma import save_tiny_gemma
from tests.tiny_qwen3 import save_tiny_qwen3

CPU = torch.device("cpu")
DIM, LENGTH = 32, 24
SHORT, LONG = "a red square", "a photo of a cat on a blue table"
INSTRUCTION = "Say what is seen, in many words.\nCaption:\n"
PADDED = {"attends_padding": True, "instruction": INSTRUCTION}


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_gemma(tmp_path_factory.mktemp("gemma")))


def conditioner(source: str, **settings: object) -> GemmaConditioner:
    torch.manual_seed(0)
    fixed = {"dim": DIM, "source": source, "max_length": LENGTH, "pad_multiple": 4}
    return perturb(GemmaConditioner(**fixed | settings))


def rows(context: Context) -> list[Tensor]:
    """The valid tokens of each sample."""
    return [own[:n] for own, n in zip(context.tokens, context.num_valid.tolist(), strict=True)]


@pytest.mark.parametrize("options", [{}, PADDED])
def test_tokens_are_normed_projections_of_the_states_at_their_positions(gemma, options):
    layer = conditioner(gemma, **options)
    texts = [SHORT, LONG, ""]
    context = layer(texts)
    for text, own in zip(texts, rows(context), strict=True):
        states = layer.encoder.encode([text], CPU)[0].float()
        x = states @ layer.projection.weight.T + layer.projection.bias
        x = x / x.square().mean(-1, keepdim=True).add(1e-6).sqrt() * layer.norm.weight
        torch.testing.assert_close(own, x + layer.position[: len(x)], rtol=1e-2, atol=1e-2)
    assert torch.equal(context.pooled, torch.zeros(3, DIM))
    assert not context.pooled.requires_grad


def test_without_padding_a_caption_does_not_depend_on_its_batch(gemma):
    layer = conditioner(gemma)
    lengths = [len(layer.encoder.tokens().ids(text)) for text in (SHORT, LONG, "")]
    together = layer([SHORT, LONG, ""])
    assert together.num_valid.tolist() == lengths
    assert together.tokens.shape[1] == -(-max(lengths) // 4) * 4
    for text, own in zip((SHORT, LONG, ""), rows(together), strict=True):
        alone = layer([text])
        assert alone.mask is None
        torch.testing.assert_close(own, alone.tokens[0], rtol=1e-2, atol=1e-2)


def test_padding_that_is_not_attended_changes_nothing_of_the_image(gemma):
    network, layer = perturb(tiny_network()), conditioner(gemma)
    z, t, short = randn(1, 4, 6, 3), torch.tensor([0.4]), layer([SHORT])
    padded = layer([SHORT, LONG])
    padded = Context(padded.tokens[:1], padded.mask[:1], padded.pooled[:1])
    padded.tokens.data[:, short.tokens.shape[1] :] = 100.0
    torch.testing.assert_close(
        network(z, t, short).output, network(z, t, padded).output, rtol=1e-4, atol=1e-4
    )


def test_padding_that_is_attended_gives_every_text_the_same_length(gemma):
    layer = conditioner(gemma, attends_padding=True)
    for texts in ([SHORT], [SHORT, LONG, ""], [""]):
        context = layer(texts)
        assert context.tokens.shape == (len(texts), LENGTH, DIM)
        assert context.mask is None
    assert layer([SHORT]).cat(layer.empty(1)).mask is None


@pytest.mark.parametrize("options", [{}, PADDED])
def test_the_null_is_the_empty_text_without_instruction(gemma, options):
    layer = conditioner(gemma, **options)
    [states] = TextEncoder(gemma, None, -1, None, LENGTH, None, bool(options)).encode([""], CPU)
    expected = layer.embed([states]).tokens
    dropped = layer([LONG, SHORT], torch.tensor([True, False]))
    torch.testing.assert_close(rows(dropped)[0], expected[0])
    torch.testing.assert_close(layer.empty(2).tokens, expected.expand(2, -1, -1))


def test_an_instruction_changes_the_states_and_is_not_seen(gemma):
    plain, told = (conditioner(gemma, instruction=own) for own in (None, INSTRUCTION))
    own, other = plain([SHORT]).tokens, told([SHORT]).tokens
    assert own.shape[1] + 1 == other.shape[1]  # the instruction's last token
    assert (own[0, 1:] - other[0, 2:]).abs().max() > 0.05
    assert torch.equal(own[0, 0], other[0, 0])  # nothing stands before the first token


def test_a_caption_that_is_too_long_loses_its_end(gemma):
    layer = conditioner(gemma, **PADDED)
    with pytest.warns(UserWarning, match=rf"at most max_length={LENGTH} tokens, got \d\d; .*'\."):
        tokens = layer([LONG * 3]).tokens
    assert tokens.shape[1] == LENGTH
    kept = (LONG * 3).removesuffix(layer.encoder.excess(LONG * 3).cut)
    assert torch.equal(tokens, layer([kept]).tokens)


@pytest.mark.parametrize("options", [{}, PADDED])
def test_cached_states_are_those_of_live_text(gemma, tmp_path, options):
    folder = save_shards(tmp_path / "shards", num=3)
    encoder = TextEncoder(gemma, max_length=LENGTH, **options)
    cache(folder, Path(gemma), encoder)
    source: Shards = opened(folder, cached_text=True)
    layer = conditioner(gemma, **options)
    source.text_cache.check_encoder(layer.encoder.settings(), layer.encoder.files_digest())
    texts = [source.captions(number) for number in range(3)]
    cached = [source.text_cache.states(0, n, own, 0) for n, own in enumerate(texts)]
    live = [own[0] for own in texts]
    for one, other in zip(rows(layer(cached)), rows(layer(live)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
    assert [len(own) for own in cached] == (
        [LENGTH] * 3 if options else [len(encoder.tokens().ids(text)) for text in live]
    )
    wrong = {"instruction": "Paint this: "} if options else PADDED
    for name in wrong:
        settings = conditioner(gemma, **options | {name: wrong[name]}).encoder.settings()
        with pytest.raises(UserError, match=rf"text encoder, got {name} .*, where the cache"):
            source.text_cache.check_encoder(settings, "")


def test_keys_shapes_numbers_and_roles_of_the_parameters():
    layer = GemmaConditioner(1536)
    assert {key: tuple(value.shape) for key, value in layer.state_dict().items()} == {
        "projection.weight": (1536, 2304),
        "projection.bias": (1536,),
        "norm.weight": (1536,),
        "position": (300, 1536),
    }
    assert sum(value.numel() for value in layer.parameters()) == 1536 * (2304 + 1 + 1 + 300)
    roles = {group["role"]: set(group["params"]) for group in parameter_groups(layer)}
    assert roles["other"] == {layer.projection.weight}
    assert roles["no_decay"] == {layer.projection.bias, layer.norm.weight, layer.position}
    qwen = PositionedTextConditioner(1536, "Qwen/Qwen3-1.7B", max_length=128)
    assert sum(value.numel() for value in qwen.parameters()) == 1536 * (2048 + 1 + 1 + 128)
    assert (layer.encoder.source, layer.encoder.network) == ("google/gemma-2-2b-it", None)


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_positions_start_from_their_deviation(gemma, std):
    position = GemmaConditioner(256, gemma, position_std=std).position
    assert position.std().item() == pytest.approx(std, rel=0.02)


def test_every_parameter_has_a_gradient_whatever_the_batch(gemma):
    """DDP waits for every parameter's."""
    for texts in ([SHORT, LONG], [""]):
        layer = conditioner(gemma)
        (layer(texts).tokens * randn(DIM)).sum().backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())
    assert copy.deepcopy(layer).encoder is layer.encoder


def test_half_precision_stays_half(gemma):
    layer = conditioner(gemma)
    assert layer.to(torch.bfloat16)([SHORT]).tokens.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.float()([SHORT]).tokens.dtype == torch.bfloat16


def test_an_exported_model_draws_the_same(tmp_path):
    """From a checkpoint by folder, with guidance, the encoder's copy and its rest."""
    source = save_tiny_qwen3(tmp_path / "encoder")
    own = {"source": str(source), "max_length": LENGTH, "attends_padding": True}
    path = f"{PositionedTextConditioner.__module__}.{PositionedTextConditioner.__qualname__}"
    run = write_run(tmp_path / "run", {"class_path": path, "init_args": own})
    pipe = PixelHDMPipeline.from_checkpoint(run, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    asked = {"prompt": [SHORT, LONG], "negative_prompt": "grey", "seed": 0}
    expected = pipe(**asked, output_type="tensor").images
    pipe.save_pretrained(tmp_path / "out")
    source.rename(tmp_path / "gone")
    again = PixelHDMPipeline.from_pretrained(tmp_path / "out", device="cpu")
    again.set_progress_bar_config(disable=True)
    again.text_encoder_offload()
    assert torch.equal(again(**asked, output_type="tensor").images, expected)
    other = again(**asked | {"prompt": [LONG, SHORT]}, output_type="tensor").images
    assert (other - expected).abs().max() > 1e-4
    assert isinstance(again.model.conditioner, nn.Module)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"position_std": -1.0}, r"position_std must be at least 0, got -1\.0\."),
        ({"position_std": float("nan")}, r"position_std must be at least 0, got nan\."),
        ({"pad_multiple": 0}, "pad_multiple must be at least 1, got 0"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"null_prob": 2.0}, "null_prob must lie in 0 … 1, got 2.0"),
        ({"template": "{}!", "instruction": "Draw: "}, "template must be empty where there is"),
    ],
)
def test_wrong_settings_are_one_sentence(gemma, settings, words):
    with pytest.raises(UserError, match=words):
        conditioner(gemma, **settings)


def test_a_source_is_needed_and_class_numbers_are_refused(gemma):
    with pytest.raises(UserError, match="source of PositionedTextConditioner must be a text enc"):
        PositionedTextConditioner(DIM)
    with pytest.raises(UserError, match="captions for GemmaConditioner, got class numbers"):
        conditioner(gemma).check(torch.tensor([3]))
