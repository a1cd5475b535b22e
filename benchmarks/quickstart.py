"""How good are the quickstart's digits?

    python benchmarks/quickstart.py --ckpt_path runs/quickstart/checkpoints/step_….ckpt

Draws with the real command line and prints two figures:

- obedience: the share of 500 samples at guidance scale 2 to which a logistic regression, trained on
  the real training digits, gives the class that was asked for (beside it: the same judge on real
  held-out digits);
- variety: the mean distance between two samples of one class at scale 1, over the same of real
  training digits (1 means as varied as the data; beside it: the held-out digits).
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.distance import pdist
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).parent.parent))

from pixelhdm.data.digits import Digits

CLASSES = range(10)
MAIN = Path(__file__).parent.parent / "main.py"


def real(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in [0, 1] as rows, and labels."""
    source = Digits(split=split)
    source.prepare()
    source.open()
    records = [source.load(index, 0, 8, 8) for index in range(len(source))]
    pixels = [record.image[..., 0].ravel() / 255 for record in records]
    return np.stack(pixels), np.array([record.condition for record in records])


def drawn(
    arguments: argparse.Namespace, scale: float, folder: str
) -> tuple[np.ndarray, np.ndarray]:
    """The same of samples, drawn by the command line."""
    flags = {
        "--ckpt_path": arguments.ckpt_path,
        "--model.guidance.scale": scale,
        "--data.draw.num_images": arguments.num_samples // len(CLASSES),
        "--data.draw.seed": 1000,
        "--data.batch_size": 250,
        "--save_images.folder": folder,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    subprocess.run(
        [sys.executable, str(MAIN), "predict", "-c", arguments.config, *words],
        check=True,
    )
    files = sorted(Path(folder).glob("class*_seed*.png"))
    pixels = [np.asarray(Image.open(file).convert("L")).ravel() / 255 for file in files]
    return np.stack(pixels), np.array([int(file.name[5:9]) for file in files])


def spread(pixels: np.ndarray, labels: np.ndarray) -> float:
    """Mean Euclidean distance between two different images of the same class."""
    return float(np.mean([pdist(pixels[labels == c]).mean() for c in CLASSES]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of the trained quickstart")
    parser.add_argument("--config", default="configs_c2i/quickstart.yaml", help="its config")
    parser.add_argument(
        "--num_samples", type=int, default=500, help="samples for each figure, all classes together"
    )
    arguments = parser.parse_args()
    train, held_out = real("train"), real("val")
    judge = LogisticRegression(max_iter=1000).fit(*train)
    with tempfile.TemporaryDirectory() as strong, tempfile.TemporaryDirectory() as plain:
        guided, free = drawn(arguments, 2.0, strong), drawn(arguments, 1.0, plain)
    reached = judge.score(*held_out)
    print(f"obedience at scale 2   {judge.score(*guided):.3f}   (real held-out {reached:.3f})")
    print(f"obedience at scale 1   {judge.score(*free):.3f}")
    unit = spread(*train)
    real_spread = spread(*held_out) / unit
    print(f"variety at scale 1     {spread(*free) / unit:.3f}   (real held-out {real_spread:.3f})")
    print(f"variety at scale 2     {spread(*guided) / unit:.3f}")


if __name__ == "__main__":
    main()
