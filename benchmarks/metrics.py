"""Do the scores see what is wrong with images, and are they the numbers that others compute?

    python main.py prepare … --out data/cifar10/val        # any prepared dataset with classes
    python benchmarks/metrics.py --data data/cifar10/val
    python benchmarks/metrics.py --data data/cifar10/val --extractors lite --num 1000 --levels 4

First table: real images, none of which is in the reference, as they are ("real"), and then made
worse by noise, blur, JPEG, a red tint and missing classes of growing strength. Each score must move
one way with the strength; the last line of a table says where it does not. "floor" is what real
images of the reference itself get.

Second table, of Inception, on half of the images: our Fréchet distance beside that of plain NumPy
and SciPy on the same features, and that of torch-fidelity's calculate_metrics on the same images as
PNG files, with the seconds that each took.

On two cores Inception sees about 5 images of 32x32 pixels a second, Lite 20 to 100.
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from PIL import Image, ImageFilter
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from pixelhdm.data.shards import Shards
from pixelhdm.evaluation.distances import frechet_distance
from pixelhdm.evaluation.extractors.extractor import Extractor, Features
from pixelhdm.evaluation.extractors.inception import InceptionFeatures
from pixelhdm.evaluation.extractors.inception_files import read_state
from pixelhdm.evaluation.extractors.lite_features import LiteFeatures
from pixelhdm.evaluation.gathering import joined
from pixelhdm.evaluation.moments import Moments
from pixelhdm.evaluation.numbers import floors_of
from pixelhdm.evaluation.reference import Reference, references_of
from pixelhdm.evaluation.scores import Score, score_table, scores
from pixelhdm.evaluation.walk import Walk

BATCH = 50
EXTRACTORS = {"inception": InceptionFeatures, "lite": LiteFeatures}
Change = Callable[[np.ndarray], np.ndarray]


def by_pillow(change: Callable[[Image.Image], Image.Image]) -> Change:
    return lambda pixels: np.asarray(change(Image.fromarray(pixels)))


def noise(std: float) -> Change:
    random = np.random.default_rng(0)
    return lambda pixels: np.clip(pixels + std * random.normal(size=pixels.shape), 0, 255)


def blur(radius: float) -> Change:
    return by_pillow(lambda image: image.filter(ImageFilter.GaussianBlur(radius)))


def jpeg(quality: float) -> Change:
    def through(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(quality))
        return Image.open(file).convert("RGB")

    return by_pillow(through)


def tint(shift: float) -> Change:
    return lambda pixels: np.clip(pixels + np.array([shift, 0, -shift]), 0, 255)


CHANGES = {
    "noise, std": (noise, (2, 5, 10, 25)),
    "blur, radius": (blur, (0.3, 0.5, 0.8, 1.5)),
    "jpeg, quality": (jpeg, (90, 70, 40, 10)),
    "tint, levels": (tint, (5, 10, 20, 40)),
}
CLASSES = ("classes, missing", (0.2, 0.4, 0.6, 0.8))  # share of them


class Material:
    """Real images: those of the reference, and others.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.source = Shards(arguments.data, condition="class")
        self.source.open()
        self.size, self.num, self.levels = arguments.size, arguments.num, arguments.levels
        size, num_real = arguments.size, arguments.num_real or 2 * arguments.num
        self.walk = Walk(
            self.source, size, size, torch.device("cpu"), num_real, num_real, batch_size=BATCH
        )
        others = np.setdiff1d(np.arange(len(self.source)), self.walk.order)
        self.others = np.random.default_rng(1).permutation(others)

    def images(self, index: np.ndarray, change: Change | None = None) -> Tensor:
        """Images by their numbers, changed."""
        loaded = [self.source.load(int(i), 0, self.size, self.size).image for i in index]
        changed = [image if change is None else change(image) for image in loaded]
        return torch.from_numpy(np.stack(changed).astype(np.uint8))

    def strengths(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """Some of four strengths, the last among them."""
        every = len(values) // self.levels
        return values[every - 1 :: every]

    def series(self) -> dict[str, list[tuple[float, Tensor]]]:
        """By kind, images of growing strength."""
        found = {}
        for name, (change, values) in CHANGES.items():
            sets = [(own, change(own)) for own in self.strengths(values)]
            found[name] = [(own, self.images(self.others[: self.num], act)) for own, act in sets]
        name, shares = CLASSES
        labels = self.source.index.label[self.others]
        num_classes = len(self.source.classes)
        found[name] = [
            (
                share,
                self.images(self.others[labels < round((1 - share) * num_classes)][: self.num]),
            )
            for share in self.strengths(shares)
        ]
        return found


def features_of(extractor: Extractor, images: Tensor) -> Features:
    return joined([extractor(part) for part in images.split(BATCH)])


def line(name: str, found: list[Score]) -> str:
    return f"{name:<24}" + "".join(f"{score.value:>14.5g}" for score in found)


def table(extractor: Extractor, material: Material) -> tuple[Reference, Features]:
    """Print the scores of worse and worse images; give the reference and the real images' back."""
    started = time.monotonic()
    reference = references_of(material.walk.gather([extractor]))[extractor.key]
    floors = floors_of(extractor, reference, material.num)
    real = features_of(extractor, material.images(material.others[: material.num]))
    clean = scores(extractor, real, reference, floors)
    print(f"\n{extractor.label}, {material.num} images of {material.size}x{material.size}:")
    print(score_table(clean))
    print(f"\n{'':<24}" + "".join(f"{score.name.split('-')[0]:>14}" for score in clean))
    print(f"{'floor':<24}" + "".join(f"{score.floor:>14.5g}" for score in clean))
    print(line("real", clean), flush=True)
    out_of_order = []
    for kind, sets in material.series().items():
        rows = [clean]
        for strength, images in sets:
            rows.append(scores(extractor, features_of(extractor, images), reference, floors))
            print(line(f"{kind} {strength:g}", rows[-1]), flush=True)
        for column in zip(*rows, strict=True):
            sign = 1 if column[0].better == "lower" else -1
            values = [sign * score.value for score in column]
            if values != sorted(values):
                out_of_order.append(f"{column[0].name} under {kind.split(',')[0]}")
    print(f"not in order: {'; '.join(out_of_order) or 'none'}")
    print(f"{time.monotonic() - started:.0f} s", flush=True)
    return reference, real


def timed(function: Callable[[], float]) -> tuple[float, float]:
    started = time.monotonic()
    return function(), time.monotonic() - started


def by_numpy(a: Moments, b: Moments) -> float:
    """The distance from the eigenvalues of the product, as in the published formula."""
    one, other = a.cov.numpy(), b.cov.numpy()
    roots = np.sqrt(np.linalg.eigvals(one @ other).astype(complex)).real.sum()
    shift = ((a.mean - b.mean) ** 2).sum().item()
    return shift + np.trace(one) + np.trace(other) - 2 * roots


def by_scipy(a: Moments, b: Moments) -> float:
    """The distance with SciPy's root of the product, as pytorch-fid and ADM's evaluator do."""
    product = scipy.linalg.sqrtm(a.cov.numpy() @ b.cov.numpy())
    shift = ((a.mean - b.mean) ** 2).sum().item()
    return shift + (a.cov.trace() + b.cov.trace()).item() - 2 * np.trace(product.real)


def by_torch_fidelity(extractor: InceptionFeatures, sets: list[Tensor]) -> float:
    """The distance that torch-fidelity finds from image files, its own extractor included."""
    from torch_fidelity import calculate_metrics

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "inception.pth"
        torch.save(read_state(extractor.file), weights)
        for name, images in zip("ab", sets, strict=True):
            (Path(folder) / name).mkdir()
            for index, image in enumerate(images.numpy()):
                Image.fromarray(image).save(Path(folder) / name / f"{index:05}.png")
        found = calculate_metrics(
            input1=f"{folder}/a",
            input2=f"{folder}/b",
            fid=True,
            cuda=False,
            cache=False,
            verbose=False,
            batch_size=BATCH,
            feature_extractor_weights_path=str(weights),
        )
    return found["frechet_inception_distance"]


def compare(extractor: InceptionFeatures, material: Material) -> None:
    """Print our distance of real and noisy images beside those of others."""
    num = max(material.num // 2, 10)
    index = material.others[: 2 * num]
    sets = [material.images(index[:num]), material.images(index[num:], noise(10))]

    def ours() -> float:
        return frechet_distance(*(Moments.of(features_of(extractor, own).pool) for own in sets))

    own, seconds = timed(ours)
    print(f"\nFréchet distance of 2 x {num} images{'':<8}value{'':>7}relative{'':>8}s")
    print(f"{'ours, images to number':<36}{own:>12.7f}{'':>15}{seconds:>9.1f}")
    moments = [Moments.of(features_of(extractor, own).pool) for own in sets]
    for name, function in (
        ("ours, features to number", lambda: frechet_distance(*moments)),
        ("NumPy, features to number", lambda: by_numpy(*moments)),
        ("SciPy, features to number", lambda: by_scipy(*moments)),
        ("torch-fidelity, files to number", lambda: by_torch_fidelity(extractor, sets)),
    ):
        value, seconds = timed(function)
        print(f"{name:<36}{value:>12.7f}{value / own - 1:>15.1e}{seconds:>9.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="prepared shards with classes")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--num", type=int, default=1000, help="images that are scored at once")
    parser.add_argument("--num_real", type=int, help="of the reference; twice as many when empty")
    parser.add_argument("--levels", type=int, default=4, choices=(1, 2, 4), help="strengths")
    parser.add_argument("--extractors", nargs="+", default=list(EXTRACTORS), choices=EXTRACTORS)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    material = Material(arguments)
    for name in arguments.extractors:
        extractor = EXTRACTORS[name]()
        table(extractor, material)
        if name == "inception":
            compare(extractor, material)


if __name__ == "__main__":
    main()
