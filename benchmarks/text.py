"""What text costs in training: live, cached, and padded.

    python benchmarks/text.py                            # small network and encoder, on a CPU
    python benchmarks/text.py --captions captions.txt    # one a line, instead of a law of lengths
    python benchmarks/text.py --device cuda --full --encoder 0.6B --batch 32 --size 256 256
    python benchmarks/text.py --device cuda --full --source Qwen/Qwen3-0.6B --batch 32

Steps, in turns, forward, backward and fused AdamW each:
    live text       captions as texts; the step encodes them, those of dropped conditions excepted
    cached text     captions as states, as cached_text gives them
    padded to all   cached text whose batches are filled up to max_length, as they never are here;
                    left out where captions are equally long, as one alone is, for none is padded
and beside them:
    encoder alone   a batch's texts to states
    reading         a batch's states from a file of cache-text; loading threads do that ahead
Padding: tokens of many batches as the conditioner fills them up, to the longest caption of a batch
rounded up to pad_multiple, against max_length for all.

Without --captions lengths are log-normal: --median tokens, --sigma of the logarithm, cut at
max_length. Without --source the encoder is a Qwen3 with random weights, small or, by --encoder, of
a published size, which costs the same as the real one. Times are of --repeats runs after a first.
"""

import argparse
import os
import random
import string
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW

sys.path.insert(0, str(Path(__file__).parent.parent))

from training import Bench, print_table

from pixelhdm.data.reading.storage import Storage
from pixelhdm.data.text_file import ITEM, read_text_file, states_of, write_text_file
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.samplers import EulerSampler
from pixelhdm.models.conditioners.text_conditioner import Qwen3Conditioner
from pixelhdm.models.cpu import keep_heap
from pixelhdm.models.encoders.text_encoder import TextEncoder
from pixelhdm.models.pixelhdm import PixelHDM
from pixelhdm.module import PixelHDMModule
from pixelhdm.training.losses.frequency import FrequencyLoss
from pixelhdm.training.losses.triple import TripleLoss
from pixelhdm.training.losses.velocity import VelocityLoss
from pixelhdm.training.optim.groups import parameter_groups

SMALL = {"hidden_dim": 384, "patch_depth": 8, "pixel_depth": 2, "num_heads": 6, "num_kv_heads": 2}
SMALL |= {"feature_block": 4}
SIZES = {  # hidden_size, intermediate_size, layers, heads, key-value heads, head_dim
    "small": (256, 768, 8, 4, 2, 64),
    "0.6B": (1024, 3072, 28, 16, 8, 128),
    "1.7B": (2048, 6144, 28, 16, 8, 128),
    "4B": (2560, 9728, 36, 32, 8, 128),
}
BATCHES = 1000  # whose padding is counted


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="real weights: a Hub name or a folder")
    parser.add_argument("--encoder", choices=SIZES, default="small")
    parser.add_argument("--captions", help="text file with a caption a line")
    parser.add_argument("--median", type=float, default=60.0)
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--full", action="store_true", help="PixelHDM's default network")
    parser.add_argument("--size", nargs=2, type=int, default=[128, 128], metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def save_qwen3(folder: str, size: str) -> str:
    """Write a random Qwen3 whose tokenizer makes each " x" one token, as the real one does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3Model
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([words(string.ascii_lowercase)], trainer)
    end = "<|endoftext|>"
    tokenizer = Qwen2TokenizerFast(tokenizer_object=bpe, eos_token=end, pad_token=end)
    tokenizer.save_pretrained(folder)
    width, inner, layers, heads, kv_heads, head_dim = SIZES[size]
    config = Qwen3Config(
        vocab_size=151_936 if size != "small" else len(tokenizer),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        network = Qwen3Model(config)
    network.bfloat16().save_pretrained(folder)
    return folder


def words(letters: str) -> str:
    """A text of as many tokens as letters."""
    return "".join(f" {letter}" for letter in letters)


def captions(args: argparse.Namespace) -> list[str]:
    """The captions of a file, or of the law; enough for all batches."""
    if args.captions:
        lines = Path(args.captions).read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip()]
    dice = random.Random(0)
    lengths = (dice.lognormvariate(np.log(args.median), args.sigma) for _ in range(4096))
    return [words(dice.choices(string.ascii_lowercase, k=max(1, round(n)))) for n in lengths]


class TextBench(Bench):
    """A module with a text conditioner, a batch with captions and one with their states."""

    def __init__(self, args: argparse.Namespace, source: str, texts: list[str]):
        torch.manual_seed(0)
        self.repeats, self.device = args.repeats, torch.device(args.device)
        self.module = PixelHDMModule(
            PixelHDM(**({} if args.full else SMALL)),
            partial(Qwen3Conditioner, source=source, max_length=args.max_length),
            EulerSampler(1),
            Guidance(),
            loss=TripleLoss(extra=[VelocityLoss(), FrequencyLoss()]),
        ).to(self.device)
        self.conditioner, self.texts = self.module.conditioner, texts
        self.optimizer = AdamW(parameter_groups(self.module), lr=1e-6, fused=True)
        self.states = [own.cpu() for own in self.encode()]
        numbers = torch.arange(args.batch)
        image = torch.randint(0, 256, (args.batch, *args.size, 3), dtype=torch.uint8)
        self.images = {"image": image.to(self.device), "index": numbers, "seed": numbers}

    def encode(self) -> list[Tensor]:
        return self.conditioner.encoder.encode(self.texts, self.device)

    def train(self, condition: list, pad_multiple: int = 16) -> None:
        """A training step."""
        self.batch = self.images | {"condition": condition}
        self.conditioner.pad_multiple = pad_multiple
        self.step()
        self.optimizer.step()


def time_steps(args: argparse.Namespace, bench: TextBench, folder: str) -> None:
    file = Path(folder) / "0.text.safetensors"
    width = bench.conditioner.encoder.width
    write_text_file(file, {}, {}, len(bench.states), width, bench.states)
    storage = Storage()
    about = read_text_file(storage, str(file))
    ends = about.start + ITEM * width * np.cumsum(about.arrays["lengths"])

    def read() -> None:
        for end, length in zip(ends.tolist(), about.arrays["lengths"].tolist(), strict=True):
            size = ITEM * width * length
            states_of(storage.read(about.path, end - size, size), width)

    cases = {
        "live text": partial(bench.train, bench.texts),
        "cached text": partial(bench.train, bench.states),
        "encoder alone": bench.encode,
        "reading": read,
    }
    if len(set(about.arrays["lengths"].tolist())) > 1:
        cases["padded to all"] = partial(bench.train, bench.states, args.max_length)
    seconds = bench.seconds(cases)
    print_table("steps", seconds, "live text")
    best = {name: min(values) for name, values in seconds.items()}
    live, cached = best["live text"], best["cached text"]
    print(f"cached text saves {1e3 * (live - cached):.1f} ms a step, {1 - cached / live:.1%}")
    if "padded to all" in best:
        more = best["padded to all"] / cached - 1
        print(f"padding to {args.max_length} would cost {more:.1%} more of a cached one")


def count_padding(args: argparse.Namespace, encoder: TextEncoder, texts: list[str]) -> None:
    lengths = np.array([len(encoder.tokens().ids(text)) for text in texts])
    batches = np.random.default_rng(0).choice(lengths, (BATCHES, args.batch))
    longest = batches.max(axis=1)
    rounded = np.where(batches.min(axis=1) == longest, longest, -(-longest // 16) * 16)
    valid, filled = batches.mean(), rounded.mean()
    quantiles = ", ".join(f"{value:.0f}" for value in np.quantile(lengths, (0.01, 0.5, 0.99)))
    print(f"\npadding, {len(texts):,} captions of {quantiles} tokens (1 %, median, 99 %)")
    print(f"tokens a caption {valid:.1f}, filled up {filled:.1f}, max_length {args.max_length}")
    print(f"saved {1 - filled / args.max_length:.1%} of max_length", end="")
    print(f"; of what is left {1 - valid / filled:.1%} is padding")


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    on_cpu = torch.device(args.device).type == "cpu"
    if on_cpu:
        keep_heap()
    with tempfile.TemporaryDirectory() as folder:
        source, texts = args.source or save_qwen3(folder, args.encoder), captions(args)
        bench = TextBench(args, source, texts[: args.batch])
        network = sum(value.numel() for value in bench.module.network.parameters())
        encoder = sum(value.numel() for value in bench.conditioner.encoder.network.parameters())
        size = "x".join(map(str, args.size))
        print("CPU, float32" if on_cpu else f"{torch.cuda.get_device_name()}, bf16", end="")
        print(f", {args.threads} threads, batch {args.batch} of {size}", end="")
        print(f", load average at the start {os.getloadavg()[0]:.1f}")
        print(f"network {network:,} parameters, encoder {encoder:,}", end="")
        print(f" ({args.source or 'random, ' + args.encoder})", flush=True)
        time_steps(args, bench, folder)
        count_padding(args, bench.conditioner.encoder, texts)


if __name__ == "__main__":
    main()
