"""States of filler, and an instruction before every caption, against transformers' own call."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pixelhdm.errors import UserError
from pixelhdm.models.encoders.text_encoder import TextEncoder
from tests.tiny_gemma import save_tiny_gemma
from tests.tiny_qwen3 import save_tiny_qwen3

CPU = torch.device("cpu")
TEXTS = ["a red square", "a photo of a cat on a blue table, one of many pictures", "cat", ""]
INSTRUCTION = "Say what is seen on the picture, in many words.\nCaption: "
LENGTH = 40
PADDED = {"max_length": LENGTH, "attends_padding": True}


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_gemma(tmp_path_factory.mktemp("gemma")))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_qwen3(tmp_path_factory.mktemp("qwen")))


def padded_states(folder: str, texts: list[str], length: int) -> tuple[Tensor, Tensor]:
    """What transformers itself gives for texts filled up on the right, and its mask."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    network = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    settings = {"padding": "max_length", "max_length": length, "truncation": True}
    given = tokenizer(texts, return_tensors="pt", **settings)
    with torch.no_grad():
        states = network(given.input_ids, given.attention_mask).last_hidden_state
    return states, given.attention_mask


def assert_states(states: list[Tensor], expected: list[Tensor]) -> None:
    """Equal up to the last bits of float32, which rounding to bfloat16 may carry."""
    for own, wanted in zip(states, expected, strict=True):
        torch.testing.assert_close(own, wanted.bfloat16(), rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("kind", ["gemma", "qwen"])
def test_filler_has_the_states_that_transformers_gives_it(kind, request):
    folder = request.getfixturevalue(kind)
    expected, mask = padded_states(folder, TEXTS, LENGTH)
    encoder = TextEncoder(folder, **PADDED)
    states = encoder.encode(TEXTS, CPU)
    assert_states(states, list(expected))
    assert mask.sum(dim=1).tolist()[-1] == (kind == "gemma")  # the empty text is all filler
    assert expected.isfinite().all()
    assert_states(encoder.encode(TEXTS[2:3], CPU), [expected[2]])
    exact = encoder.load(CPU)(*encoder.tokens().batch(TEXTS))  # before it is rounded
    torch.testing.assert_close(exact, expected, rtol=1e-5, atol=1e-5)
    plain = TextEncoder(folder, max_length=LENGTH).encode(TEXTS[:3], CPU)
    each = zip(expected[:3], mask[:3].bool(), strict=True)
    assert_states(plain, [own[valid] for own, valid in each])


@pytest.mark.parametrize("kind", ["gemma", "qwen"])
@pytest.mark.parametrize("attends_padding", [True, False])
def test_of_an_instruction_two_states_are_kept(kind, attends_padding, request):
    """The rule as SANA and PixelDiT-T2I state it, computed plainly."""
    from transformers import AutoTokenizer

    folder = request.getfixturevalue(kind)
    num_instruction = len(AutoTokenizer.from_pretrained(folder).encode(INSTRUCTION))
    whole = num_instruction + LENGTH - 2
    expected, mask = padded_states(folder, [INSTRUCTION + text for text in TEXTS[:3]], whole)
    index = [0, *range(whole - (LENGTH - 1), whole)]
    assert index[1] == num_instruction - 1
    expected, mask = expected[:, index], mask[:, index].bool()
    null, null_mask = (own[0] for own in padded_states(folder, [""], LENGTH))
    wanted = [*expected, null]
    if not attends_padding:
        wanted = [own[valid] for own, valid in zip(expected, mask, strict=True)]
        wanted += [null[null_mask.bool()]] if kind == "gemma" else []
    encoder = TextEncoder(folder, None, -1, None, LENGTH, INSTRUCTION, attends_padding)
    states = encoder.encode(TEXTS, CPU)
    assert_states(states[: len(wanted)], wanted)
    assert [len(own) for own in encoder.encode(["cat", ""], CPU)] == [
        LENGTH if attends_padding else len(wanted[2]), LENGTH if attends_padding else 1,
    ]  # fmt: skip


def test_only_the_end_of_a_caption_is_cut_behind_an_instruction(gemma):
    encoder = TextEncoder(gemma, max_length=12, instruction=INSTRUCTION, attends_padding=True)
    whole = TextEncoder(gemma, max_length=200, instruction=INSTRUCTION)
    excess = encoder.excess(TEXTS[1])
    kept = TEXTS[1].removesuffix(excess.cut)
    assert excess.num_tokens == len(whole.encode([TEXTS[1]], CPU)[0]) > 12
    assert len(kept) + len(excess.cut) == len(TEXTS[1])
    assert encoder.tokens().ids(TEXTS[1]) == whole.tokens().ids(kept)
    cut, alone = encoder.encode([TEXTS[1], kept], CPU)
    assert cut.shape == (12, encoder.width)
    assert torch.equal(cut, alone)
    assert encoder.excess("cat") is encoder.excess("") is None


def test_settings_tell_both_options_where_they_are_set(gemma):
    plain = TextEncoder(gemma, instruction="", attends_padding=False).settings()
    assert plain == TextEncoder(gemma).settings()
    assert plain.keys() == {"name", "layer", "template", "max_length", "width"}
    both = TextEncoder(gemma, instruction=INSTRUCTION, attends_padding=True).settings()
    assert both == plain | {"instruction": INSTRUCTION, "attends_padding": True}


def test_the_width_of_gemma_is_known_without_its_files():
    assert TextEncoder("google/gemma-2-2b-it").width == 2304


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"template": "{}", "instruction": "Draw: "}, r"template must be empty where .*got '\{\}'"),
        ({"instruction": "a"}, r"instruction must have at least 2 tokens, got 1 in 'a'\."),
        ({"instruction": INSTRUCTION, "max_length": 2}, "above the 2 tokens of the instruction th"),
        ({"instruction": INSTRUCTION, "max_length": 500}, r"at most 4\d\d, .*got 500"),
    ],
)
def test_wrong_settings_are_one_sentence(qwen, change, words):
    with pytest.raises(UserError, match=words):
        TextEncoder(**{"source": qwen} | change).encode(["cat"], CPU)


def test_a_tokenizer_without_padding_is_one_sentence(gemma, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gemma)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((Path(gemma) / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"attends_padding must be false for .*got true\."):
        TextEncoder(str(tmp_path), **PADDED).tokens()
