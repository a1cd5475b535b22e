import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pixelhdm.errors import UserError
from pixelhdm.models.encoders.text_encoder import TextEncoder
from tests.stubs import perturb
from tests.tiny_qwen3 import WIDTH, save_tiny_qwen3

CPU = torch.device("cpu")
TEXTS = ["a red square", "a photo of a cat on a blue table, one of many pictures", "cat"]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_qwen3(tmp_path_factory.mktemp("qwen")))


def library_states(folder: str, text: str, layer: int) -> torch.Tensor:
    """What transformers itself gives for one text."""
    from transformers import AutoModel, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    network = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return network(ids, output_hidden_states=True).hidden_states[layer][0]


@pytest.mark.parametrize("layer", [-1, -2, 0])
def test_states_are_those_of_transformers_whatever_stands_beside_them(qwen, layer):
    states = TextEncoder(qwen, layer=layer).encode(TEXTS, CPU)
    for text, own in zip(TEXTS, states, strict=True):
        assert own.dtype == torch.bfloat16
        expected = library_states(qwen, text, layer)
        torch.testing.assert_close(own.float(), expected, rtol=1e-2, atol=1e-4)


def test_layers_differ(qwen):
    last, before = (TextEncoder(qwen, layer=layer).encode(TEXTS, CPU)[0] for layer in (-1, -2))
    assert (last - before).abs().max() > 0.1


def test_a_template_surrounds_the_caption_and_stays_whole_when_it_is_cut(qwen):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(qwen)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": TEXTS[0]}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    tokens = TextEncoder(qwen, template="chat").tokens()
    assert tokens.ids(TEXTS[0]) == tokenizer(chat).input_ids
    around = len(tokens.ids(""))
    limited = TextEncoder(qwen, template="chat", max_length=around + 3).tokens()
    cut = limited.ids(TEXTS[1])
    assert len(cut) <= around + 3
    text = tokenizer.decode(cut)
    assert text.startswith("<|im_start|>user\n")
    assert text.endswith("</think>\n\n")
    assert (
        TextEncoder(qwen, template="Draw {}!").tokens().ids("cat")
        == tokenizer("Draw cat!").input_ids
    )


def test_excess_names_what_is_cut(qwen):
    encoder = TextEncoder(qwen, max_length=5)
    whole = len(TextEncoder(qwen).tokens().ids(TEXTS[1]))
    excess = encoder.excess(TEXTS[1])
    assert excess.num_tokens == whole
    kept = TEXTS[1].removesuffix(excess.cut)
    assert len(kept) + len(excess.cut) == len(TEXTS[1])
    assert encoder.tokens().ids(TEXTS[1]) == encoder.tokens().ids(kept)
    assert encoder.excess("cat") is None


def test_the_first_cut_is_a_warning_with_its_text(qwen):
    encoder = TextEncoder(qwen, max_length=5)
    with pytest.warns(UserWarning, match=r"at most max_length=5 tokens, got \d+; .*'.*pictures'"):
        encoder.encode(TEXTS, CPU)


def test_a_text_without_tokens_has_one_state(qwen):
    (states,) = TextEncoder(qwen).encode([""], CPU)
    assert states.shape == (1, WIDTH)


def test_settings_and_digest_tell_encoders_apart(qwen, tmp_path):
    encoder = TextEncoder(qwen)
    assert encoder.network is None
    assert encoder.settings() == {
        "name": Path(qwen).name, "layer": -1, "template": "", "max_length": 256, "width": WIDTH,
    }  # fmt: skip
    assert encoder.files_digest() == TextEncoder(qwen + "/").files_digest()
    other = TextEncoder(str(save_tiny_qwen3(tmp_path / "other", seed=1)))
    assert encoder.files_digest() != other.files_digest()
    assert TextEncoder("nobody/nothing", width=8).files_digest() == ""


def test_width_comes_from_the_name_the_files_or_a_person(qwen):
    widths = [TextEncoder(f"Qwen/Qwen3-{size}").width for size in ("0.6B", "1.7B", "4B")]
    assert widths == [1024, 2048, 2560]
    assert TextEncoder(qwen).width == WIDTH
    with pytest.raises(UserError, match=rf"width of text encoder .* must be {WIDTH}, .*got 7"):
        TextEncoder(qwen, width=7).encode(["cat"], CPU)


@pytest.mark.parametrize("kind", ["bert", "t5", "clip", "causal"])
def test_other_kinds_of_encoders_work(kind, qwen, tmp_path):
    """An encoder with a pooler, the encoder of a pair, the text's part of a pair, a trunk."""
    save_other(kind, tmp_path, qwen)
    encoder = TextEncoder(str(tmp_path), max_length=16)
    alone, beside = encoder.encode(TEXTS[:1], CPU)[0], encoder.encode(TEXTS, CPU)[0]
    assert alone.shape == (len(encoder.tokens().ids(TEXTS[0])), encoder.width)
    torch.testing.assert_close(alone, beside, rtol=1e-2, atol=1e-3)
    assert alone.float().std() > 0.01


def save_other(kind: str, folder: Path, tokenizer_of: str) -> None:
    """Write a tiny random encoder of another kind."""
    from transformers import (
        AutoTokenizer,
        BertConfig,
        BertModel,
        CLIPConfig,
        CLIPModel,
        Qwen3Config,
        Qwen3ForCausalLM,
        T5Config,
        T5Model,
    )

    AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "vocab_size": 400}
    network: nn.Module = {
        "bert": lambda: BertModel(BertConfig(**sizes)),
        "t5": lambda: T5Model(
            T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=400)
        ),
        "clip": lambda: CLIPModel(
            CLIPConfig(
                text_config=sizes | {"max_position_embeddings": 77},
                vision_config={
                    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
                },
                projection_dim=8,
            )
        ),
        "causal": lambda: Qwen3ForCausalLM(
            Qwen3Config(num_key_value_heads=1, head_dim=8, tie_word_embeddings=False, **sizes)
        ),
    }[kind]()  # fmt: skip
    perturb(network).save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": "/no/such/folder"}, "must be a folder .*does not exist. Correct model.c"),
        ({"source": "/no/such/folder", "width": 8}, "must be a folder .*which does not exist"),
        ({"source": "package:no_such_thing/model", "width": 8}, "pip install no-such-thing"),
        ({"layer": 3}, r"layer must lie in -3 … 2 .*got 3"),
        ({"template": "no place"}, "one {} for the caption, got 'no place'"),
        ({"template": "chat", "max_length": 4}, r"max_length must be above the \d+ tokens"),
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"max_length": 600}, "max_length must be at most 512.*got 600"),
    ],
)
def test_wrong_settings_are_one_sentence(qwen, change, words):
    with pytest.raises(UserError, match=words):
        TextEncoder(**{"source": qwen} | change).encode(["cat"], CPU)


def test_a_tokenizer_of_another_model_is_one_sentence(qwen, tmp_path):
    from transformers import Qwen3Config, Qwen3Model

    for file in Path(qwen).glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    Qwen3Model(Qwen3Config(vocab_size=50, **sizes, **heads)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer of at most 50 tokens, .* got one of \d+"):
        TextEncoder(str(tmp_path)).encode(["cat"], CPU)


def test_the_digest_knows_templates_and_needs_weights(qwen, tmp_path):
    for file in Path(qwen).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    same = TextEncoder(qwen).files_digest()
    assert TextEncoder(str(tmp_path)).files_digest() == same
    template = tmp_path / "chat_template.jinja"
    template.write_text(template.read_text() + "!")
    assert TextEncoder(str(tmp_path)).files_digest() not in (same, "")
    (tmp_path / "model.safetensors").unlink()
    assert TextEncoder(str(tmp_path)).files_digest() == ""


@pytest.mark.parametrize("lost", ["tokenizer.json", "model.safetensors", "layers.1"])
def test_lacking_files_and_tensors_are_one_sentence(qwen, tmp_path, lost):
    from safetensors.torch import load_file, save_file

    for file in Path(qwen).iterdir():
        if file.name not in (lost, "tokenizer_config.json" if "tokenizer" in lost else ""):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    if lost == "layers.1":
        state = load_file(tmp_path / "model.safetensors")
        kept = {key: value for key, value in state.items() if lost not in key}
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"must (have a tokenizer|be readable by transformers)"):
        TextEncoder(str(tmp_path), width=WIDTH).encode(["cat"], CPU)


def test_no_chat_template_is_one_sentence(qwen, tmp_path):
    for file in Path(qwen).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("chat_template", None)
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match="has no chat template, got chat"):
        TextEncoder(str(tmp_path), template="chat").tokens()
