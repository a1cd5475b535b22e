"""Does the text steer the t2i quickstart's pictures?

    python benchmarks/t2i_quickstart.py --ckpt_path runs/t2i_quickstart/checkpoints/step_….ckpt

For every training picture the denoising loss is measured under its own caption and under those of
other pictures of the same size, at the same noise and times. Prints for how many pictures the own
caption gives the lower loss (chance is 50 %), with the averaged weights.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from einops import repeat
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from pixelhdm.checkpoints import choose_weights, read_checkpoint
from pixelhdm.cli import run_cli
from pixelhdm.initial_weights import fitting
from pixelhdm.module import PixelHDMModule
from pixelhdm.trainer_cli import PixelHDMCLI
from pixelhdm.training.draws import draw
from pixelhdm.training.losses.velocity import VelocityLoss


class Built(PixelHDMCLI):
    """The command line, which builds what a config says and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing."""


@torch.no_grad()
def losses(
    module: PixelHDMModule, image: Tensor, captions: list[str], num_times: int, seed: int
) -> list[float]:
    """Mean velocity loss of one image under each caption, at the same noise and times."""
    height, width = image.shape[:2]
    draws = draw(torch.arange(seed, seed + num_times), height, width, image.device)
    times = module.flow.even_time(torch.arange(num_times))
    x = repeat(image.float() / 127.5 - 1, "h w c -> b h w c", b=num_times)
    sample, values = module.flow.sample(x, draws.noise, times), []
    for caption in captions:
        context = module.conditioner([caption] * num_times)
        prediction = module.network(sample.z_t, sample.t, context)
        prediction = module.flow.velocity(prediction, sample.z_t, sample.t)
        values.append(float(VelocityLoss()(prediction, sample).mean()))
    return values


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of the trained quickstart")
    parser.add_argument("--config", default="configs_t2i/quickstart.yaml", help="its config")
    parser.add_argument("--num_times", type=int, default=16, help="times, and noises, a picture")
    parser.add_argument("--num_wrong", type=int, default=3, help="wrong captions a picture")
    arguments = parser.parse_args()
    sys.argv = ["main.py", "fit", "-c", arguments.config, "--ckpt_path", arguments.ckpt_path]
    built = run_cli(Built)
    module, data = built.model.eval(), built.datamodule
    state = read_checkpoint(arguments.ckpt_path)["state_dict"]
    module.load_state_dict(
        fitting(
            module.state_dict(),
            choose_weights(state, "ema", arguments.ckpt_path),
            arguments.ckpt_path,
        )
    )
    source = data.sources["train"]
    source.prepare()
    source.open()
    bucket = data.buckets.assign(source.sizes()).bucket
    captions = [source.load(i, 0, 8, 8).condition for i in range(len(source))]
    rows = []
    for index in tqdm(np.flatnonzero(bucket >= 0), unit="picture"):
        others = np.flatnonzero(bucket == bucket[index])
        at = int(np.searchsorted(others, index))
        wrong = [int(others[(at + 1 + k) % len(others)]) for k in range(arguments.num_wrong)]
        image = source.load(int(index), 0, *data.buckets.table[bucket[index]]).image
        texts = [captions[i] for i in (int(index), *wrong)]
        rows.append(losses(module, torch.from_numpy(image.copy()), texts, arguments.num_times, 0))
    own, wrong = np.array(rows)[:, :1], np.array(rows)[:, 1:]
    print(f"pictures                       {len(rows)}")
    print(f"own caption beats the next     {np.mean(own < wrong[:, :1]):.1%}")
    print(f"own caption beats a wrong one  {np.mean(own < wrong):.1%}   ({wrong.shape[1]} each)")
    print(f"own caption beats all of them  {np.mean(own < wrong.min(axis=1, keepdims=True)):.1%}")
    print(f"mean loss                      {own.mean():.4f} own, {wrong.mean():.4f} wrong")


if __name__ == "__main__":
    main()
