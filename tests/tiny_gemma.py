"""A tiny random Gemma 2 with a real tokenizer, saved as transformers saves the large ones."""

import os
from pathlib import Path

import torch

from tests.stubs import perturb
from tests.tiny_qwen3 import tiny_bpe

WIDTH = 32
PAD, END, START = "<pad>", "<eos>", "<bos>"


def save_tiny_gemma(folder: str | Path, width: int = WIDTH, seed: int = 0) -> Path:
    """Write a two-layer Gemma 2 and a byte-level BPE into
    `folder`; gives it back. As with the large ones, every text begins with a token of its own, and
    the library would fill texts up on the left.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from tokenizers.processors import TemplateProcessing
    from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    bpe = tiny_bpe([PAD, END, START])
    bpe.post_processor = TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, bpe.token_to_id(START))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=512,
    )
    tokenizer.save_pretrained(folder)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=128,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Gemma2ForCausalLM(config)
    perturb(network).save_pretrained(folder)
    return Path(folder)
