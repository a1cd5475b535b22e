"""CLIP features, from a tiny model that transformers saved itself."""

from pathlib import Path

import pytest
import torch

from pixelhdm.errors import UserError
from pixelhdm.evaluation.extractors.clip_features import ClipFeatures
from tests.stubs import perturb
from tests.tiny_dino import quiet
from tests.tiny_qwen3 import tiny_bpe

START, END = "<|startoftext|>", "<|endoftext|>"
CPU = torch.device("cpu")
LENGTH = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from tokenizers.processors import TemplateProcessing
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    bpe = tiny_bpe([START, END])
    numbers = [(token, bpe.token_to_id(token)) for token in (START, END)]
    bpe.post_processor = TemplateProcessing(single=f"{START} $A {END}", special_tokens=numbers)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=START, eos_token=END, pad_token=END, model_max_length=77
    )
    tokenizer.save_pretrained(folder)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = sizes | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = sizes | {"image_size": 28, "patch_size": 14}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    torch.manual_seed(0)
    with quiet():
        perturb(CLIPModel(config)).save_pretrained(folder)
    return folder


@pytest.fixture
def own(folder) -> ClipFeatures:
    extractor = ClipFeatures(str(folder))
    with quiet():
        extractor.load(CPU)
    return extractor


def pictures(num: int) -> torch.Tensor:
    noise = torch.randint(0, 256, (num, 28, 40, 3), generator=torch.manual_seed(0))
    return noise.to(torch.uint8)


def test_scores_are_the_cosines_of_the_librarys_own_model(own, folder):
    from transformers import CLIPImageProcessorPil, CLIPModel

    with quiet():
        model = CLIPModel.from_pretrained(folder).eval()
    process = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28)
    texts = ["a photo of a cat", "", "one of many"]
    planes = process([image.numpy() for image in pictures(3)], return_tensors="pt")
    rows = own.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(pixel_values=planes["pixel_values"], **rows)
    torch.testing.assert_close(own(pictures(3)).pool, found.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own.of_texts(texts, CPU), found.text_embeds, rtol=1e-4, atol=1e-5)
    cosines = (found.image_embeds * found.text_embeds).sum(dim=-1)
    assert cosines.abs().min() > 1e-3
    scores = own.score(pictures(3), texts)
    torch.testing.assert_close(scores, 100 * cosines.relu(), rtol=1e-3, atol=1e-3)


def test_a_negative_cosine_scores_nothing(own, monkeypatch):
    pool = own(pictures(2)).pool
    monkeypatch.setattr(own, "of_texts", lambda texts, device: torch.stack([-pool[0], pool[1]]))
    torch.testing.assert_close(own.score(pictures(2), ["", ""]), torch.tensor([0.0, 100.0]))


def test_long_texts_lose_their_end_with_one_note(own):
    long = "a red square on a blue table " * 10
    with pytest.warns(UserWarning, match=f"reads {LENGTH} tokens of a text: 1 texts"):
        cut = own.of_texts([long, "a cat"], CPU)
    other_end = own.of_texts([long + "cat"], CPU)  # a second warning would be an error
    torch.testing.assert_close(cut[:1], other_end, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cut[1:], own.of_texts(["a cat"], CPU), rtol=1e-4, atol=1e-5)


def test_it_looks_at_the_middle_square(own):
    images = pictures(2)
    torch.testing.assert_close(own(images).pool, own(images[:, :, 6:34]).pool)
    assert own.resize == "middle square, PIL bicubic to 28"


def test_its_name_is_in_its_configuration(own, tmp_path):
    from transformers import CLIPConfig

    assert (own.label, own.key, own.dim) == ("CLIP ViT-32/14-28", "clip-vit3214-28", 24)
    vision = {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 14, "image_size": 336}
    CLIPConfig(vision_config=vision, projection_dim=768).save_pretrained(tmp_path)
    large = ClipFeatures(str(tmp_path))
    assert (large.label, large.key) == ("CLIP ViT-L/14-336", "clip-vitl14-336")
    assert large.kind == "clip"


def test_other_models_are_refused(folder, tmp_path):
    from transformers import ViTConfig

    with pytest.raises(UserError, match="which does not exist"):
        _ = ClipFeatures(str(tmp_path / "none")).label
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="must hold a CLIP, got vit"):
        _ = ClipFeatures(str(tmp_path)).label
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with quiet(), pytest.raises(UserError, match="no vocabulary"):
        ClipFeatures(str(tmp_path)).of_texts(["a cat"], CPU)
