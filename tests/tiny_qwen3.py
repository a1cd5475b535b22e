"""A tiny random Qwen3 with a real tokenizer, saved as transformers saves the large ones."""

import os
from pathlib import Path
from typing import Any

import torch

from tests.stubs import perturb

WIDTH = 32
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking | default(true) %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
CORPUS = ("a photo of a cat", "a red square on a blue table", "number one of many pictures")


def tiny_bpe(special_tokens: list[str]) -> Any:
    """A byte-level BPE of 300 tokens, of the library tokenizers."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.decoder = normalizers.NFC(), decoders.ByteLevel()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=alphabet,
        special_tokens=special_tokens,
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return bpe


def save_tiny_qwen3(folder: str | Path, width: int = WIDTH, seed: int = 0) -> Path:
    """Write a two-layer Qwen3 and a byte-level BPE of 300 tokens into `folder`; gives it back."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3Model
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=tiny_bpe([PAD, START, END]),
        unk_token=None,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[START, END],
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Qwen3Model(config)
    perturb(network).save_pretrained(folder)
    return Path(folder)
