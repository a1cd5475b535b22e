"""Time the way of the data, beside plain webdataset and the floors below it.

    python benchmarks/data.py                           # synthetic photos
    python benchmarks/data.py --images photos           # mosaics of the images of a folder
    python benchmarks/data.py --parts plan --plan 100000000
    python benchmarks/data.py --device cuda             # batches end on the GPU

Parts:
    loading     JPEGs of 1088x1152 pixels (quality 90, 4:2:0), prepared as shards, to batches of
                1024x1024: as float32 in [-1, 1] by webdataset and Pillow, in this process and
                through DataLoader workers; as uint8 by ours, in this thread, in others, and in
                other processes. The floors work on bytes in memory, image after image. A turn is
                `--turn` images, and all take turns, `--rounds` times, so that other work on the
                machine disturbs all alike. With CUDA all batches are copied to the GPU, from
                pinned memory where workers load them or they are ours. CPU-seconds are those of
                this process and its workers. Workers start before the first turn, and a turn goes
                from full queues to full queues: neither their start nor what is loaded ahead counts
                for or against anyone. On a CPU the process keeps its heap, as the command line's.
                Figures are medians over the rounds, and so are the ratios of a round's figures.
    plan        an index of `--plan` images in shards of 1000, with web-like sizes and the default
                bucket table: CPU-seconds and memory of an epoch's order and batches, and the time
                until the first batch. The shards exist, and are one file by many names. Each row is
                a process of its own.
torch takes one thread everywhere, so that a CPU-second is one of useful work. Linux only.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

sys.path.insert(0, str(Path(__file__).parent.parent))

from pixelhdm.data.buckets import Buckets
from pixelhdm.data.coverage import coverage_table
from pixelhdm.data.indexing.cache import Cache
from pixelhdm.data.indexing.index import COLUMNS, Index
from pixelhdm.data.loader import Bucketed, EpochLoader, Sharing
from pixelhdm.data.plan import plan_epoch
from pixelhdm.data.prepare.prepare import prepare
from pixelhdm.data.samplers import BufferedShufflePlan, RandomPlan, SequentialPlan
from pixelhdm.data.shards import Shards
from pixelhdm.models.cpu import keep_heap

HEIGHT, WIDTH, SIDE = 1088, 1152, 1024  # of the photos, and of the batches
SCALED = [SIDE, round(WIDTH * SIDE / HEIGHT)]  # before the cut
PER_SHARD = 1000  # images, in the large index
FLOOR, RIVAL, OURS = "decode + resize alone", "webdataset + PIL, 2 workers", "ours, 2 threads"
POLL, QUIET = 0.01, 10  # seconds; polls without work after which all queues are full
BY = ("cpu", "wall")
PLANS = {plan.__name__: plan for plan in (SequentialPlan, RandomPlan, BufferedShufflePlan)}
Step = Callable[[], int]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--images", help="folder of images to make photos of; synthetic when empty")
    parser.add_argument("--num", type=int, default=304, help="photos; a multiple of --batch")
    parser.add_argument("--batch", type=int, default=8, help="images of a batch")
    parser.add_argument("--turn", type=int, default=80, help="images of a turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--plan", type=int, default=10_000_000, help="images of the large index")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", help="for the photos and shards; a temporary one when empty")
    parser.add_argument("--row", help="(internal) time one row of the plan")
    return parser.parse_args()


# Photos -------------------------------------------------------------------------------------------


def make_shards(folder: Path, args: argparse.Namespace, num: int) -> Path:
    """Shards of photos in a folder."""
    photos, shards = folder / "photos", folder / "shards"
    photos.mkdir()
    files = sorted(Path(args.images).rglob("*.*")) if args.images else []
    images = [file for file in files if file.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")]
    if args.images and not images:
        sys.exit(f"images must be a folder of images, got {args.images}, which has none.")
    for number in range(num):
        photo = mosaic(images, random.Random(number)) if images else noise(number)
        photo.save(photos / f"{number:05}.jpg", quality=90, subsampling="4:2:0")
    sizes = sorted(file.stat().st_size // 1000 for file in photos.iterdir())
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(str(photos), str(shards), images_per_shard=-(-num // 8), num_processes=1)
    print(
        f"{num} {'mosaics' if images else 'synthetic photos'} of {HEIGHT}x{WIDTH}, "
        f"{sizes[0]} … {sizes[-1]} kB, median {median(sizes):.0f}"
    )
    return shards


def mosaic(files: list[Path], rng: random.Random) -> Image.Image:
    """Two images side by side."""
    photo = Image.new("RGB", (WIDTH, HEIGHT))
    for left, file in zip((0, WIDTH // 2), rng.choices(files, k=2), strict=True):
        with Image.open(file) as image:
            centre = rng.random(), rng.random()
            half = ImageOps.fit(
                image.convert("RGB"), (WIDTH // 2, HEIGHT), Image.Resampling.BICUBIC, 0, centre
            )
        photo.paste(half, (left, 0))
    return photo


def noise(seed: int) -> Image.Image:
    """Octaves of smooth noise whose amplitude falls with the frequency, as it does in photos."""
    generator = torch.Generator().manual_seed(seed)
    photo = torch.zeros(1, 3, HEIGHT, WIDTH)
    for octave in range(9):
        small = [max(side >> octave, 2) for side in (HEIGHT, WIDTH)]
        grey = torch.randn(1, 1, *small, generator=generator)
        colour = 0.3 * torch.randn(1, 3, *small, generator=generator) if octave > 1 else 0
        amplitude = 3.4 * 1.6**octave
        photo += amplitude * interpolate(grey + colour, (HEIGHT, WIDTH), mode="bilinear")
    pixels = (photo[0].permute(1, 2, 0) + 128).clamp(0, 255)
    return Image.fromarray(pixels.byte().numpy())


# Contenders ---------------------------------------------------------------------------------------


@dataclass
class Contender:
    """One way to load, or a part of it.

    Attributes:
        step: does some images' worth of work; returns how many.
        before: what comes before each turn, uncounted.
        cpu: images per CPU-second of each turn.
        wall: images per second of each turn.
    """

    step: Step
    before: Callable[[], None] = lambda: None
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def turn(self, num: int) -> None:
        """Do at least `num` images."""
        self.before()
        settled()
        start, cpu, done = time.perf_counter(), cpu_seconds(), 0
        while done < num:
            done += self.step()
        end, cpu_end = settled()
        self.cpu.append(done / (cpu_end - cpu))
        self.wall.append(done / (end - start))


def cpu_seconds() -> float:
    """CPU-seconds so far of this process, of its living workers, and of those that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(usage.ru_utime + usage.ru_stime for usage in used)
    for child in multiprocessing.active_children():
        seconds += time.clock_gettime(~child.pid << 3 | 2)  # clock_getcpuclockid(3) of Linux
    return seconds


def settled() -> tuple[float, float]:
    """When the last work of this process's threads and workers ended, and the CPU-seconds then."""
    last = at = time.perf_counter(), cpu_seconds()
    quiet = 0
    while quiet < QUIET:
        time.sleep(POLL)
        now = time.perf_counter(), cpu_seconds()
        quiet = 0 if now[1] - last[1] > 0.2 * (now[0] - last[0]) else quiet + 1
        at = at if quiet else now
        last = now
    return at


def take(batches: Iterator[Any], device: torch.device) -> int:
    """Receive a batch, on the device; returns the number of its images."""
    batch = next(batches)
    if isinstance(batch, dict):
        images, num = batch["image"], int(batch["weight"].count_nonzero())
    else:
        [images], num = batch, len(batch[0])
    if device.type == "cuda":
        images.to(device, non_blocking=True)
        torch.cuda.synchronize(device)
    return num


def as_float(image: Image.Image) -> Tensor:
    """Resized and cut as ours is, float32 in [-1, 1]."""
    height, width = SCALED
    left = (width - SIDE) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.array(image.crop((left, 0, left + SIDE, SIDE)))
    return torch.from_numpy(pixels).float().div_(127.5).sub_(1)


def plain(shards: Path, args: argparse.Namespace, num_workers: int) -> Contender:
    """Webdataset and Pillow, endless."""
    device = torch.device(args.device)
    tars = [str(tar) for tar in sorted(shards.glob("*.tar"))]
    dataset = webdataset.WebDataset(tars, shardshuffle=False).repeat().decode("pil")
    dataset = dataset.to_tuple("jpg").map_tuple(as_float).batched(args.batch)
    if num_workers:
        pin = device.type == "cuda"
        dataset = DataLoader(dataset, batch_size=None, num_workers=num_workers, pin_memory=pin)
    return Contender(partial(take, iter(dataset), device))


def ours(shards: Path, args: argparse.Namespace, num_workers: int, executor: str) -> Contender:
    """The module's loader, endless."""
    device = torch.device(args.device)
    source = Shards(str(shards), "none")
    source.open()
    buckets = Buckets(sizes=[(SIDE, SIDE)])
    data = Bucketed(source, buckets.table, buckets.assign(source.sizes()).bucket)
    sharing = Sharing(num_workers=num_workers, executor=executor, pin=device.type == "cuda")
    loader = EpochLoader(data, [args.batch], BufferedShufflePlan(), 0, True, sharing)
    return Contender(partial(take, iter(loader), device))


def floors(shards: Path, args: argparse.Namespace) -> dict[str, Contender]:
    """The parts that no loader can do without, an image a step."""
    source = Shards(str(shards), "none")
    source.open()
    rows = np.random.default_rng(0).permutation(len(source))
    files = [bytearray(source.parts(row)[0]) for row in rows]
    pixels = decoded(files[0])
    target, image = np.empty((SIDE, SIDE, 3), np.uint8), np.zeros((SIDE, SIDE, 3), np.uint8)
    turns = iter(range(sys.maxsize))

    def every(work: Callable[[int], object]) -> Step:
        def step() -> int:
            work(next(turns) % len(files))
            return 1

        return step

    pool, both = ThreadPoolExecutor(2), range(args.batch)

    def threaded() -> int:
        start = next(turns)
        list(pool.map(lambda at: resized(decoded(files[(start + at) % len(files)])), both))
        return len(both)

    def forget() -> None:
        for tar in shards.glob("*.tar"):
            with open(tar, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def read(at: int) -> object:
        return source.parts(rows[at])

    def read_all() -> None:
        for at in range(len(rows)):
            read(at)

    return {
        "JPEG decode alone": Contender(every(lambda at: decoded(files[at]))),
        FLOOR: Contender(every(lambda at: resized(decoded(files[at])))),
        "the same, 2 threads": Contender(threaded),
        "resize alone": Contender(every(lambda at: resized(pixels))),
        "PIL decode + resize": Contender(every(lambda at: pillow(files[at]))),
        "uint8 to float32": Contender(
            every(lambda at: torch.from_numpy(image).float().div_(127.5).sub_(1))
        ),
        "memcpy of the pixels": Contender(every(lambda at: np.copyto(target, image))),
        "CRC-32 of the file": Contender(every(lambda at: zlib.crc32(files[at]))),
        "read, in page cache": Contender(every(read), read_all),
        "read, not in page cache": Contender(every(read), forget),
    }


def decoded(file: bytearray) -> Tensor:
    """The pixels of a JPEG."""
    return decode_jpeg(torch.frombuffer(file, dtype=torch.uint8), ImageReadMode.RGB)


def resized(pixels: Tensor) -> Tensor:
    """Pixels as they are before the cut."""
    return resize(pixels, SCALED, InterpolationMode.BICUBIC, antialias=True)


def pillow(file: bytearray) -> Image.Image:
    """Pixels by Pillow as they are before the cut."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    return image.resize((SCALED[1], SCALED[0]), Image.Resampling.BICUBIC)


def copies(args: argparse.Namespace) -> dict[str, Contender]:
    """The way of a batch to a GPU."""

    def copy(batch: Tensor) -> int:
        batch.to(args.device, non_blocking=True)
        torch.cuda.synchronize(args.device)
        return len(batch)

    batch = torch.zeros(args.batch, SIDE, SIDE, 3, dtype=torch.uint8)
    kinds = {"pinned uint8": batch.pin_memory(), "uint8": batch, "float32": batch.float()}
    return {f"{name} to the GPU": Contender(partial(copy, kinds[name])) for name in kinds}


def time_loading(args: argparse.Namespace, folder: Path) -> None:
    shards = make_shards(folder, args, args.num)
    cases = {
        "webdataset + PIL, no workers": plain(shards, args, 0),
        RIVAL: plain(shards, args, 2),
        "ours, no workers": ours(shards, args, 0, "thread"),
        OURS: ours(shards, args, 2, "thread"),
        "ours, 2 processes": ours(shards, args, 2, "process"),
    }
    cases |= floors(shards, args)
    if torch.device(args.device).type == "cuda":
        cases |= copies(args)
    for contender in cases.values():  # workers start, files come into the page cache
        contender.step()
    for number in range(args.rounds):
        order = list(cases.values())
        for contender in order if number % 2 else reversed(order):
            contender.turn(args.turn)
    print_loading(cases)


def print_loading(cases: dict[str, Contender]) -> None:
    """A row a contender, and what is asked of ours."""
    wide = max(map(len, cases))
    head = f"{'images per CPU-second':>21} {'(range)':>19} {'per second':>11}"
    print(f"\n{'':{wide}} {head} {'of decode + resize':>19} {'of webdataset + workers':>24}")
    for name, case in cases.items():
        span = f"({min(case.cpu):.0f} … {max(case.cpu):.0f})"
        print(
            f"{name:{wide}} {median(case.cpu):21.0f} {span:>19} {median(case.wall):11.0f}", end=""
        )
        shares = [ratio(case.cpu, cases[other].cpu) for other in (FLOOR, RIVAL)]
        print(f" {shares[0]:19.2f} {shares[1]:24.2f}")
    print()
    for other, goal in {FLOOR: 0.8, RIVAL: 2.0}.items():
        cpu, wall = (ratio(getattr(cases[OURS], by), getattr(cases[other], by)) for by in BY)
        verdict = "reached" if cpu >= goal else "MISSED"
        print(
            f"{OURS} over {other}: {cpu:.2f} per CPU-second ({verdict}: at least {goal:.1f}), "
            f"{wall:.2f} per second"
        )


def ratio(mine: list[float], theirs: list[float]) -> float:
    """The median over the rounds."""
    return median(a / b for a, b in zip(mine, theirs, strict=True))


# Plan ---------------------------------------------------------------------------------------------


class WebLike(Shards):
    """Shards whose sizes are told as a web-like distribution's; the images have others."""

    def sizes(self) -> np.ndarray:
        folder = Path(self.path).parent.parent
        return np.stack([np.load(folder / f"{name}.npy", mmap_mode="r") for name in "wh"], axis=1)


def make_index(shards: Path, num: int, folder: Path) -> str:
    """The compiled index of a large set of shards, all of which are links to one that exists.

    Returns:
        the shards in webdataset's syntax.
    """
    real, large, count = Shards(str(shards), "none"), folder / "large", -(-num // PER_SHARD)
    real.open()
    mine = np.flatnonzero(real.index.shard == 0)
    large.mkdir()
    for number in range(count):
        (large / f"{number:06}.tar").symlink_to(real.index.shards[0])
    path = f"{large}/{{000000..{count - 1:06}}}.tar"
    row = np.arange(num, dtype=np.uint32)
    columns = {name: getattr(real.index, name)[mine][row % len(mine)] for name in COLUMNS}
    columns["shard"] = row // np.uint32(PER_SHARD)
    names = [str(large / f"{number:06}.tar") for number in range(count)]
    cache = Cache([path], names, None, False)
    Index(columns, tuple(names)).save(cache.places[0], cache.stamp)
    rng = np.random.default_rng(0)
    short = 900 * np.exp(0.549 * rng.normal(size=num))
    sides = np.stack([short, short * np.exp(np.abs(0.3 * rng.normal(size=num)))])
    sides = np.where(rng.random(num) < 0.6, sides[::-1], sides).clip(1, 65535).astype(np.uint16)
    for name, side in zip("wh", sides, strict=True):
        np.save(folder / f"{name}.npy", side)
    return path


def time_plan(args: argparse.Namespace, folder: Path) -> None:
    shards = make_shards(folder, args, 64)
    path = make_index(shards, args.plan, folder)

    def row(name: str) -> dict[str, Any]:
        command = [sys.executable, __file__, "--row", json.dumps([name, path])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        return json.loads(done.stdout.splitlines()[-1])

    print(f"\nplan of an epoch of {args.plan:,} images, default buckets, 512 images a batch")
    print(
        f"{'':22} {'order':>10} {'batches':>10} {'CPU-seconds':>12} {'peak MiB':>9} {'kept MiB':>9}"
    )
    for name in PLANS:
        found = row(name)
        whole = found["order"] + found["batches"]
        print(f"{name:22} {found['order']:10.2f} {found['batches']:10.2f} {whole:12.2f}", end="")
        print(f" {found['peak']:9.0f} {found['kept']:9.0f}", flush=True)
    found = row("first batch")
    print(
        f"\ntime to the first batch of {args.plan:,} images in "
        f"{-(-args.plan // PER_SHARD):,} shards"
    )
    print(f"{'':24} {'seconds':>8} {'CPU-seconds':>12}")
    for name, (seconds, cpu) in found.items():
        print(f"{name:24} {seconds:8.2f} {cpu:12.2f}")
    verdict = "reached" if found["together"][0] < 10 else "MISSED"
    print(f"{verdict}: under 10 s with a compiled index")


def plan_row(name: str, path: str) -> dict[str, float]:
    """CPU-seconds of an epoch's order and batches, and MiB beside what was there before."""
    source, buckets, plan = WebLike(path, "none"), Buckets(), PLANS[name]()
    source.open()
    bucket = buckets.assign(source.sizes()).bucket
    slots = np.full(len(buckets.table), 512)
    shard = np.array(source.shards())
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, start = memory("VmRSS"), time.process_time()
    order = plan.order(shard, len(source), 0, 0)
    between = time.process_time()
    kept = bucket[order]
    if (kept < 0).any():
        order, kept = order[kept >= 0], kept[kept >= 0]
    result = order, plan_epoch(kept, slots)
    del order, kept
    end, peak, after = time.process_time(), memory("VmHWM"), memory("VmRSS")
    del result  # until here it was counted
    times = {"order": between - start, "batches": end - between}
    return {**times, "peak": peak - before, "kept": after - before}


def memory(key: str) -> float:
    """A figure of this process in MiB."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index(f"{key}:") + 1]) / 1024


def first_batch(path: str) -> dict[str, tuple[float, float]]:
    """Seconds and CPU-seconds of each step on the way to the first batch, after the imports."""
    clock, seconds = [(time.perf_counter(), time.process_time())], {}

    def lap(name: str, since: int = -1) -> None:
        now, then = (time.perf_counter(), time.process_time()), clock[since]
        seconds[name] = now[0] - then[0], now[1] - then[1]
        clock.append(now)

    source, buckets = WebLike(path, "none"), Buckets()
    source.open()
    lap("open the compiled index")
    sizes = source.sizes()
    assignment = buckets.assign(sizes)
    lap("assign buckets")
    batch_sizes = [8] * len(buckets.table)
    coverage_table(buckets, sizes, assignment, batch_sizes, 64)
    lap("coverage table")
    data = Bucketed(source, buckets.table, assignment.bucket)
    sharing = Sharing(world_size=64, num_workers=2)
    loader = EpochLoader(data, batch_sizes, BufferedShufflePlan(), 0, True, sharing)
    lap("build the loader")
    batches = iter(loader)
    batch = next(batches)
    lap("first batch")
    lap("together", since=0)
    loader.close()
    if batch["bad"]:
        sys.exit(f"the first batch must be sound, got {batch['bad'][0]}.")
    return seconds


PARTS = {"loading": time_loading, "plan": time_plan}


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*non-writable")
    if args.row:
        name, path = json.loads(args.row)
        print(json.dumps(first_batch(path) if name == "first batch" else plan_row(name, path)))
        return
    on_cpu = torch.device(args.device).type == "cpu"
    if on_cpu:
        keep_heap()
    print("CPU" if on_cpu else torch.cuda.get_device_name(), end="")
    print(f", one thread of torch, load average at the start {os.getloadavg()[0]:.1f}", flush=True)
    for part in args.parts:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            PARTS[part](args, Path(folder))


if __name__ == "__main__":
    main()
