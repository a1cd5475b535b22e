"""Everything about a job that a prediction needs, counted once."""

from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import torch

from pixelhdm.callbacks.throughput import PASSES
from pixelhdm.models.flops import ForwardFlop
from pixelhdm.models.network import GradCheckpoint
from pixelhdm.planning.fake_step import Counted, FakeStep, OptimizerCount, eight_bit_state
from pixelhdm.planning.gpus import Gpu
from pixelhdm.planning.memory import Passes, Setting, Static, parts_of, size_of
from pixelhdm.planning.parts import Job
from pixelhdm.planning.recording import Work
from pixelhdm.planning.speed import Line, moving_seconds, seconds, shares
from pixelhdm.planning.standins import is_known, known_text

MODES = get_args(GradCheckpoint)
POINTS = (32, 64)  # images at which a batch is counted; what lies between and beyond is a line
MARGIN = 0.04  # share of a device's memory that is to stay free: the count is a prediction
COPY_RATE = 2.2e10  # bytes a second between GPU and CPU memory over PCIe 4.0 x16, of 3.2e10
STEP_BYTES = 4 + 12  # of a parameter: its gradient's norm; its average read and written, and itself


@dataclass(frozen=True)
class Passed:
    """What the passes of a batch take in one grad_checkpoint mode.

    Args:
        passes: bytes.
        works: the operations at each of POINTS.
    """

    passes: Passes
    works: tuple[list[Work], list[Work]]

    def seconds(self, gpu: Gpu, is_compiled: bool) -> Line:
        """Time by the images of a batch."""
        times = (seconds(works, gpu, is_compiled) for works in self.works)
        return line(*times)

    def flop(self) -> Line:
        """FLOP that run by the images of a batch."""
        return line(*(sum(work.flop for work in works) for works in self.works))


def line(value: float, other: float) -> Line:
    """The line through what was counted at POINTS."""
    return Line.through(POINTS[0], value, POINTS[1], other)


class Forecast:
    """What a job takes, counted on tensors without numbers.

    Args:
        job: what is trained, and how.
        on_cpu: whether it trains on a CPU.
    """

    def __init__(self, job: Job, on_cpu: bool):
        self.job, self.on_cpu = job, on_cpu
        parts = job.parts
        self.num_trained = sum(p.numel() for p in parts.trained.parameters() if p.requires_grad)
        largest = job.shapes[0]
        tokens = getattr(parts.conditioner, "num_tokens", 0) or largest.text_len
        flop = ForwardFlop(parts.network)
        self.model_flop = PASSES * flop(largest.height, largest.width, tokens)
        self.mode = parts.network.grad_checkpoint
        self.offloads = parts.network.activation_offload
        self.step = FakeStep(parts, job.dtype, on_cpu)
        self.known: dict[str, Passed] = {}
        self.times: dict[tuple[str, Gpu], Line] = {}
        self.update_times: dict[Gpu, float] = {}
        self.eight_bit = eight_bit_state(parts.trained)
        if self.own.is_eight_bit:  # it is not built: it reads values
            self.optimizer = OptimizerCount(self.eight_bit, 0, [])
        else:
            self.optimizer = self.step.optimizer()
        self.static = self.static_bytes()

    def static_bytes(self) -> Static:
        """What stays from step to step."""
        parts, job = self.job.parts, self.job
        frozen = {id(net): net.network for _, net in parts.frozen()}
        blocks = [size_of(block, only_trained=True) for block in parts.network.all_blocks]
        text = known_text(job.encoder) if job.encoder else None
        each = 4 if self.on_cpu else 2
        return Static(
            weights=size_of(parts.trained),
            gradients=size_of(parts.trained, only_trained=True),
            states=self.optimizer.state,
            averages=job.num_averages * size_of(parts.averaged),
            frozen=sum(size_of(network) for network in frozen.values()),
            encoder=each * text.parameters if text else 0,
            block=max(blocks, default=0),
        )

    def passed(self, mode: str) -> Passed:
        """What a batch takes in a mode."""
        if mode not in self.known:
            counts = [self.counted(num, mode) for num in POINTS]
            self.known[mode] = Passed(passes_of(counts), tuple(count.works for count in counts))
        return self.known[mode]

    @cached_property
    def works_without_repa(self) -> list[Work]:
        """The operations of the larger of POINTS after the end of REPA."""
        repa = self.job.parts.loss.terms["repa"]
        repa.active = False
        works = self.counted(POINTS[1], self.mode).works
        repa.active = True
        return works

    def counted(self, num: int, mode: str) -> Counted:
        """The count of a batch of the largest size."""
        return self.step.count(self.job.shapes[0]._replace(num=num), mode)

    @property
    def own(self) -> Setting:
        """The config's own setting."""
        job = self.job
        return Setting(
            self.mode,
            job.shapes[0].num,
            job.accumulate,
            job.average_on_cpu,
            self.offloads,
            "8bit" in job.optimizer_name.lower(),
            job.is_sharded,
        )

    # Memory ---------------------------------------------------------------------------------------

    def passes(self, setting: Setting) -> Passes:
        """Bytes of the passes in a setting."""
        passes = self.passed(setting.mode).passes.scaled(self.smallest_ratio)
        if not setting.offloads:
            return passes
        # Offloaded, blocks keep their inputs as under "all", and two blocks are on the device.
        least = self.passed("all").passes.scaled(self.smallest_ratio)
        share = 2 / max(2, len(self.job.parts.network.all_blocks))
        inside = Line(*(share * (a - b) for a, b in zip(passes.kept, least.kept, strict=True)))
        return Passes(*(Line(a.constant + inside.constant, a.slope + inside.slope) for a in least))

    def memory(self, setting: Setting) -> dict[str, float]:
        """Bytes of each part on one device."""
        passes = self.passes(setting)
        return parts_of(
            self.static, passes, setting, self.job.num_processes, self.eight_bit, self.on_cpu
        )

    @cached_property
    def smallest_ratio(self) -> float:
        """What the batch of the smallest size keeps, over that of the largest; at least 1."""
        if len(self.job.shapes) == 1:
            return 1.0
        small = self.step.count(self.job.shapes[-1], self.mode)
        return max(1.0, small.kept / max(1.0, self.passed(self.mode).passes.kept(self.own.num)))

    def total(self, setting: Setting) -> float:
        """All bytes on one device."""
        return sum(self.memory(setting).values())

    def fits(self, setting: Setting, gpu: Gpu) -> bool:
        """Whether it leaves MARGIN of the device's memory free."""
        return self.total(setting) <= (1 - MARGIN) * gpu.bytes

    def most_images(self, setting: Setting, gpu: Gpu) -> int:
        """The largest batch that fits on one device, 0 where none does."""
        low, high = 0, 1
        while high < 2**20 and self.fits(setting._replace(num=high), gpu):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.fits(setting._replace(num=middle), gpu)
            low, high = (middle, high) if fits else (low, middle)
        return low

    # Time -----------------------------------------------------------------------------------------

    def batch_seconds(self, setting: Setting, gpu: Gpu) -> float:
        """Time of the passes of one batch."""
        passed = self.passed(setting.mode)
        if (setting.mode, gpu) not in self.times:
            self.times[setting.mode, gpu] = passed.seconds(gpu, self.job.is_compiled)
        time = self.times[setting.mode, gpu](setting.num)
        if setting.offloads:
            time = max(time, 2 * passed.passes.kept(setting.num) / COPY_RATE)
        return time + setting.num * self.encoder_flop / (shares(gpu)[0] * gpu.peak(torch.bfloat16))

    def repa_seconds(self, gpu: Gpu) -> float:
        """What REPA adds to the time of an image."""
        both = self.passed(self.mode).works[1], self.works_without_repa
        with_it, without = (seconds(works, gpu, self.job.is_compiled) for works in both)
        return (with_it - without) / POINTS[1]

    @property
    def encoder_flop(self) -> int:
        """FLOP of the text encoder for one image."""
        text = known_text(self.job.encoder) if self.job.encoder else None
        return text.flop(self.job.shapes[0].text_len) if text else 0

    def update_seconds(self, setting: Setting, gpu: Gpu) -> float:
        """Time of optimizer, gradient norm and average, once a step."""
        ranks = self.job.num_processes if setting.is_sharded else 1
        if gpu not in self.update_times:
            self.update_times[gpu] = seconds(self.optimizer.works, gpu)
        own = self.update_times[gpu] or moving_seconds(16 * self.num_trained, gpu)
        time = own + moving_seconds(STEP_BYTES * self.num_trained, gpu)
        if setting.average_on_cpu and not self.on_cpu:
            time += 4 * self.num_trained / COPY_RATE
        return time / ranks

    def step_seconds(self, setting: Setting, gpu: Gpu) -> float:
        """Time of an optimizer step; what processes tell each other is taken as hidden."""
        batches = setting.accumulate * self.batch_seconds(setting, gpu)
        return batches + self.update_seconds(setting, gpu)

    def flop_per_image(self, setting: Setting) -> float:
        """FLOP that run for an image, all networks and what is computed again."""
        flop = self.passed(setting.mode).flop()(setting.num) / setting.num
        update = sum(work.flop for work in self.optimizer.works)
        return flop + self.encoder_flop + update / (setting.num * setting.accumulate)

    @property
    def notes(self) -> list[str]:
        """What the count took for granted or left out."""
        job, found = self.job, []
        largest = job.shapes[0]
        if job.num_sizes > 1:
            found.append(
                f"{job.num_sizes} sizes: counted is the largest, {largest.height}x{largest.width}"
                + (
                    ", with as much memory as batches of the smallest." * (self.smallest_ratio > 1)
                    or "."
                )
            )
        if largest.text_len:
            found.append(f"Captions of {largest.text_len} tokens, all alike (--text_len).")
        if job.encoder and not known_text(job.encoder):
            found.append(f"Text encoder {job.encoder} is of unknown size and not counted.")
        for name, frozen in job.parts.frozen():
            if not is_known(frozen):
                found.append(f"The network of loss {name} is of unknown size and not counted.")
        if any(hasattr(term, "t_min") for term in job.parts.loss.terms.values()):
            found.append("Perceptual losses as if all images counted, whatever their times.")
        if job.is_compiled:
            found.append(
                "Compiled: chains between products as one operation each, memory as in eager."
            )
        if job.num_processes > 1:
            found.append("What processes tell each other is taken as hidden behind the passes.")
        return found


def passes_of(counts: list[Counted]) -> Passes:
    """The lines through two counts."""
    return Passes(
        line(*(count.kept for count in counts)),
        line(*(count.forward_peak for count in counts)),
        line(*(count.backward_peak for count in counts)),
    )
