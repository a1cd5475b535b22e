import copy

import pytest
import torch
from torch import Tensor

from pixelhdm.errors import UserError
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.conditioners.text_conditioner import Qwen3Conditioner, TextConditioner
from tests.stubs import perturb, randn, tiny_network
from tests.tiny_qwen3 import WIDTH, save_tiny_qwen3

DIM = 32
SHORT, LONG = "a red square", "a photo of a cat on a blue table, one of many pictures"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_qwen3(tmp_path_factory.mktemp("qwen")))


def conditioner(qwen: str, **settings: object) -> TextConditioner:
    torch.manual_seed(0)
    return Qwen3Conditioner(**{"dim": DIM, "source": qwen, "pad_multiple": 4} | settings)


def rows(context: Context) -> list[Tensor]:
    """The valid tokens of each sample."""
    return [own[:n] for own, n in zip(context.tokens, context.num_valid.tolist(), strict=True)]


def assert_close(a: Context, b: Context) -> None:
    for x, y in zip((*rows(a), a.pooled), (*rows(b), b.pooled), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("dim", [DIM, 48])
def test_context_is_the_projection_of_the_normed_states(qwen, pooling, dim):
    layer = conditioner(qwen, pooling=pooling, dim=dim)
    (states,) = layer.encoder.encode([LONG], torch.device("cpu"))
    states = states.float()
    pooled = states[-1] if pooling == "last" else states.mean(dim=0)
    normed = [x / x.square().mean(-1, keepdim=True).add(1e-6).sqrt() for x in (states, pooled)]
    context = layer([SHORT, LONG])
    tokens = normed[0] @ layer.token_projection.weight.T
    torch.testing.assert_close(rows(context)[1], tokens, rtol=1e-2, atol=1e-2)
    expected = normed[1] @ layer.pooled_projection.weight.T
    torch.testing.assert_close(context.pooled[1], expected, rtol=1e-2, atol=1e-2)


def test_a_batch_is_as_long_as_its_longest_caption_rounded_up(qwen):
    layer = conditioner(qwen)
    lengths = [len(layer.encoder.tokens().ids(text)) for text in (SHORT, LONG)]
    context = layer([SHORT, LONG, ""])
    assert context.num_valid.tolist() == [*lengths, 1]
    assert context.tokens.shape[1] == -(-max(lengths) // 4) * 4
    assert context.mask.tolist() == [
        [i < n for i in range(context.tokens.shape[1])] for n in (*lengths, 1)
    ]


def test_equally_long_captions_need_no_mask(qwen):
    layer = conditioner(qwen)
    for texts in ([SHORT], [SHORT, SHORT], [""], ["", ""]):
        context = layer(texts)
        assert context.mask is None
        assert context.tokens.shape[:2] == (
            len(texts),
            len(layer.encoder.tokens().ids(texts[0])) if texts[0] else 1,
        )


@pytest.mark.parametrize("null", ["learned", "empty"])
def test_a_caption_does_not_depend_on_its_batch_and_null_takes_its_place(qwen, null):
    layer = conditioner(qwen, null=null)
    texts = [LONG, SHORT, LONG, ""]
    alone = [layer([text]) for text in texts]
    together = layer(texts)
    for i, own in enumerate(alone):
        part = [together.tokens[i : i + 1], None, together.pooled[i : i + 1]]
        assert_close(Context(rows(together)[i][None], None, part[2]), own)
    dropped = layer(texts, torch.tensor([False, True, True, False]))
    assert_close(dropped, layer([LONG, "", "", ""]))
    assert_close(layer.empty(2), layer(["", ""]))
    assert (layer([""]).pooled - alone[0].pooled).abs().max() > 0.05


def test_states_stand_for_their_text(qwen):
    layer = conditioner(qwen)
    states = layer.encoder.encode([SHORT], torch.device("cpu"))[0]
    assert_close(layer([states, LONG, ""]), layer([SHORT, LONG, ""]))
    layer.encoder.free()
    layer.known[SHORT] = states
    torch.testing.assert_close(layer([SHORT]), layer([states]))
    assert layer.encoder.network is None


def test_equal_captions_are_encoded_once(qwen, monkeypatch):
    layer, asked = conditioner(qwen), []
    encode = layer.encoder.encode

    def counting(texts, device):
        asked.append(texts)
        return encode(texts, device)

    monkeypatch.setattr(layer.encoder, "encode", counting)
    layer([SHORT, LONG, SHORT, ""], torch.tensor([False, True, False, False]))
    assert asked == [[SHORT]]


def test_remembered_captions_are_encoded_once_and_whatever_their_batch(qwen, monkeypatch):
    first, again = (conditioner(qwen, num_remembered=2) for _ in range(2))
    first([SHORT, LONG])
    again([LONG])
    again([SHORT, "a third one"])
    assert again.known.keys() == {SHORT, LONG}
    for text in (SHORT, LONG):
        assert torch.equal(first.known[text], again.known[text])
    monkeypatch.setattr(again.encoder, "encode", lambda *_: pytest.fail("it was encoded again"))
    again([SHORT, LONG, ""])


@pytest.mark.parametrize("texts", [[SHORT, LONG], ["", ""], [SHORT, ""]])
def test_every_parameter_has_a_gradient_whatever_the_batch(qwen, texts):
    """DDP waits for every parameter's."""
    layer = conditioner(qwen)
    context = layer(texts)
    (context.tokens.sum() + context.pooled.sum()).backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_gradients_are_the_same_to_the_bit_whatever_the_threads_do(qwen):
    """A gradient of the null that threads sum up in any order would spoil an exact resume."""
    layer, threads = conditioner(qwen, dim=512), torch.get_num_threads()
    states = [randn(60 - i, WIDTH, seed=i).bfloat16() for i in range(32)]
    null, weight = torch.tensor([i > 1 for i in range(32)]), randn(32, 60, 512)
    found = []
    torch.set_num_threads(2)
    for _ in range(20):
        layer.zero_grad()
        context = layer(states, null)
        ((context.tokens * weight).sum() + (context.pooled * weight[:, 0]).sum()).backward()
        found.append([parameter.grad.clone() for parameter in layer.parameters()])
    torch.set_num_threads(threads)
    assert all(all(map(torch.equal, found[0], other)) for other in found)


def test_the_encoder_is_in_no_checkpoint_and_shared_by_copies(qwen):
    layer = conditioner(qwen)
    layer([SHORT])
    assert {key.split(".")[0] for key in layer.state_dict()} == {
        "token_norm", "token_projection", "pooled_norm", "pooled_projection", "null_token",
        "null_pooled",
    }  # fmt: skip
    assert copy.deepcopy(layer).encoder is layer.encoder


@pytest.mark.parametrize("path", ["tokens", "pooled"])
@pytest.mark.parametrize("hidden_dim", [32, 48])
def test_text_reaches_the_pixels_by_both_paths(qwen, path, hidden_dim):
    """Output and gradient depend on the tokens alone and on the pooled vector alone."""
    heads = {"head_dim": hidden_dim // 4, "rope_dims": (2, 2, hidden_dim // 4 - 4)}
    network = perturb(tiny_network(hidden_dim=hidden_dim, **heads))
    layer = perturb(conditioner(qwen, dim=hidden_dim), 0.02)
    z, t = randn(1, 4, 6, 3), torch.tensor([0.4])
    one, other = layer([SHORT]), layer(["a blue table"])
    mixed = one._replace(**{path: getattr(other, path)})
    assert (network(z, t, one).output - network(z, t, mixed).output).abs().max() > 1e-4
    network(z, t, one).output.square().sum().backward()
    projection = layer.token_projection if path == "tokens" else layer.pooled_projection
    assert projection.weight.grad.abs().max() > 1e-6


def test_text_reaches_patch_path_and_pixel_path(qwen):
    """What both paths compute, and the gradients of their weights, depend on the text."""
    network, layer = perturb(tiny_network()), perturb(conditioner(qwen), 0.02)
    z, t, steered = randn(1, 4, 6, 3), torch.tensor([0.4]), []
    network.pixel_blocks[0].register_forward_pre_hook(lambda _, given: steered.append(given[1]))
    weights = network.patch_blocks[-1].mlp.up.weight, network.pixel_blocks[0].mlp.up.weight
    found = []
    for text in (SHORT, "a blue table"):
        prediction = network(z, t, layer([text]))
        gradients = torch.autograd.grad(prediction.output.square().sum(), weights)
        found.append((prediction.features, steered[-1], *gradients))
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() > 1e-4


def test_padding_changes_nothing_of_the_image(qwen):
    network, layer = perturb(tiny_network()), conditioner(qwen)
    z, t = randn(1, 4, 6, 3), torch.tensor([0.4])
    short = layer([SHORT])
    length = short.tokens.shape[1]
    padded = short.padded(length + 5)
    padded.tokens[:, length:] = 100.0
    torch.testing.assert_close(
        network(z, t, short).output, network(z, t, padded).output, rtol=1e-4, atol=1e-5
    )


def test_class_numbers_are_refused(qwen):
    with pytest.raises(UserError, match=r"captions for Qwen3Conditioner, got class numbers .* 3\."):
        conditioner(qwen).check(torch.tensor([3, 1]))
    conditioner(qwen).check([SHORT, ""])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pad_multiple": 0}, "pad_multiple must be at least 1, got 0"),
        ({"num_remembered": -1}, "num_remembered must be at least 0, got -1"),
        ({"null_prob": 2.0}, "null_prob must lie in 0 … 1, got 2.0"),
    ],
)
def test_wrong_settings_are_one_sentence(qwen, settings, words):
    with pytest.raises(UserError, match=words):
        conditioner(qwen, **settings)


def test_states_have_the_encoders_width(qwen):
    assert conditioner(qwen).encoder.width == WIDTH


def test_qwen3_is_the_default_of_its_own_class_alone():
    assert Qwen3Conditioner(DIM).encoder.source == "Qwen/Qwen3-0.6B"
    with pytest.raises(UserError, match="source of TextConditioner must be a text encoder"):
        TextConditioner(DIM)
