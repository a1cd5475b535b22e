"""A trained model for Python programs, in the habits of the library diffusers."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from pixelhdm.checkpoints import Weights
from pixelhdm.data.start_files import SOURCE_SCALE, as_conditions, default_strength
from pixelhdm.errors import UserError, check_at_least, check_one_of
from pixelhdm.inference.draw import Drawing, draw_images
from pixelhdm.inference.exports.exported import (
    MODEL_TYPES,
    Description,
    assembled,
    read_description,
    read_weights,
    settings_in,
)
from pixelhdm.inference.exports.hub import local_folder, upload
from pixelhdm.inference.exports.parts import build
from pixelhdm.inference.exports.save import save
from pixelhdm.inference.exports.trained import Configs, Trained, read_trained
from pixelhdm.inference.exports.training_facts import training_facts
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.model import Model
from pixelhdm.inference.pictures import Picture, images_of, in_form, listed, masks_of
from pixelhdm.inference.request import Request, Start
from pixelhdm.inference.samplers import Image as Images
from pixelhdm.inference.samplers import Sampler
from pixelhdm.inference.seeds import Generators, each, seeds_of, texts, whole
from pixelhdm.inference.time_grid import TimeGrid
from pixelhdm.inference.watch import Stopped, Watch
from pixelhdm.models.compiling import compile_blocks
from pixelhdm.models.conditioners.class_conditioner import ClassConditioner
from pixelhdm.models.conditioners.positioned_text_conditioner import (
    GemmaConditioner,
    PositionedTextConditioner,
)
from pixelhdm.models.conditioners.text_conditioner import TextConditioner
from pixelhdm.models.presets import NETWORKS
from pixelhdm.models.routing import TokenRouting

# Imported so that a config may call them by their bare names.
CONDITIONERS = (ClassConditioner, TextConditioner, PositionedTextConditioner, GemmaConditioner)
BY_NAME = (*CONDITIONERS, *NETWORKS, TokenRouting)
OutputType = Literal["pil", "numpy", "tensor"]
DRAWING_TYPES = {"sampler": Sampler, "guidance": Guidance, "time_grid": TimeGrid}
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class PipelineOutput(NamedTuple):
    """What a call of a pipeline gives.

    Attributes:
        images: the images, in the form asked for.
        seeds: seed of each; with it alone the same image comes out again.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    seeds: list[int]


class PixelHDMPipeline:
    """Draws images with a trained model.

    Args:
        model: what draws.
        drawing: solver, guidance and times.
        known: what is known of the model.

    Attributes:
        sampler: solver; another may be put in its place, as may guidance and time_grid.
        autocast_dtype: type that products are computed in, where it differs from the weights'.
        height: height in pixels of what is drawn unless told otherwise.
        width: width in pixels.
        classes: names of the classes, where they are known.
        facts: what is known of the training.
    """

    def __init__(self, model: Model, drawing: Drawing, known: Description):
        self.model, self.known = model, known
        self.sampler, self.guidance, self.time_grid = drawing
        self.autocast_dtype = AUTOCAST.get(known.precision)
        self.height, self.width = known.height, known.width
        self.classes, self.facts = known.classes, known.facts
        self.progress: dict[str, Any] = {}
        self.watch: Watch | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        text_encoder: str | None = None,
        revision: str | None = None,
    ) -> "PixelHDMPipeline":
        """A pipeline from an exported model.

        Args:
            source: folder that main.py export or save_pretrained wrote, or a name of the Hub.
            dtype: see `to`.
            device: where to draw; empty takes a GPU where there is one.
            text_encoder: folder or name of the text encoder, in the place of the model's own.
            revision: branch, tag or commit of the Hub's; empty takes the newest.

        Raises:
            UserError: a file is missing or does not fit, or a class is of a module that was not
                imported before: a file of the Hub does not decide what is imported.
        """
        folder = local_folder(source, revision)
        known = read_description(folder)
        if text_encoder is not None:
            settings_in(known.model, "conditioner")["source"] = text_encoder
        built = build(MODEL_TYPES | DRAWING_TYPES, [known.model], has_imports=False)
        known.model = built.settings
        model = assembled(built.parts, read_weights(folder), str(folder))
        drawing = Drawing(*(built.parts[name] for name in DRAWING_TYPES))
        return cls(model, drawing, known).to(device or best_device(), dtype)

    @classmethod
    def from_checkpoint(
        cls,
        ckpt_path: str | Path,
        config: Configs = None,
        weights: Weights = "ema",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> "PixelHDMPipeline":
        """A pipeline from a checkpoint of a training, of whose config the model alone is built.

        Args:
            ckpt_path: checkpoint; folder of a run, for its checkpoint with the most steps; or last,
                for that of the config's run.
            config: YAML files of the training; empty takes config.yaml of the checkpoint's run.
            weights: which weights: ema or raw.
            device: where to draw; empty takes a GPU where there is one.
            dtype: see `to`.

        Raises:
            UserError: a file is missing or does not fit.
        """
        return cls.from_trained(read_trained(ckpt_path, config, weights), device, dtype)

    @classmethod
    def from_trained(
        cls,
        found: Trained,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> "PixelHDMPipeline":
        """A pipeline from what a training left; see from_checkpoint."""
        layers = [own.get("model") or {} for own in found.configs]
        built = build(MODEL_TYPES | DRAWING_TYPES, layers, has_imports=True)
        side = found.setting("data.image_size")
        if side is None:
            raise UserError("config must have data.image_size, the size to draw, got none.")
        known = Description(
            built.settings,
            found.setting("data.draw.height") or side,
            found.setting("data.draw.width") or side,
            found.precision,
            facts=training_facts(found),
        )
        model = assembled(built.parts, found.state, str(found.file))
        drawing = Drawing(*(built.parts[name] for name in DRAWING_TYPES))
        return cls(model, drawing, known).to(device or best_device(), dtype)

    # Where and how it computes --------------------------------------------------------------------

    def to(
        self,
        device: str | torch.device | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
    ) -> "PixelHDMPipeline":
        """Bring it to a device, or let weights and products have a type; give it back. A type may
        stand alone, as in diffusers.

        Without a dtype ever given, weights are float32 and products as in training, as predict
        has them. bfloat16 and float16 take half the memory; times, rotary angles and the image
        between steps stay precise.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        for part in self.model[:2]:
            part.to(device=device, dtype=dtype)
        if dtype is not None:
            self.autocast_dtype = None
        return self

    def compile(
        self, mode: str | None = None, backend: str | Callable[..., Any] = "inductor"
    ) -> "PixelHDMPipeline":
        """Let torch.compile make the network faster, block by block, from its next call on; give
        the pipeline back.

        One image at a time and batches of any size are compiled once each, and a line says so.

        Args:
            mode: of torch.compile: reduce-overhead, max-autotune; empty for its default.
            backend: of torch.compile.

        Raises:
            UserError: this machine has no compiler for the device.
        """
        compile_blocks(self.model.network, mode, backend)
        return self

    def text_encoder_offload(self) -> "PixelHDMPipeline":
        """Keep the text encoder in the CPU's memory while it does not encode; give the pipeline
        back.

        Raises:
            UserError: the model has no text encoder.
        """
        conditioner = self.model.conditioner
        if not isinstance(conditioner, TextConditioner):
            raise UserError(
                "text_encoder_offload must be called for a model with a text encoder, got "
                f"{type(conditioner).__name__}."
            )
        conditioner.encoder.rests_between = True
        conditioner.encoder.rest()
        return self

    @property
    def device(self) -> torch.device:
        """Where it draws."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.model.network.parameters()).dtype

    @property
    def is_text(self) -> bool:
        """Whether it draws prompts, not classes."""
        try:
            self.model.conditioner.check([""])
        except UserError:
            return False
        return True

    @property
    def drawing(self) -> Drawing:
        """How images are drawn."""
        return Drawing(self.sampler, self.guidance, self.time_grid)

    # Written down ---------------------------------------------------------------------------------

    def save_pretrained(
        self,
        folder: str | Path,
        copies_text_encoder: bool = True,
        samples: Image.Image | None = None,
    ) -> None:
        """Write it as from_pretrained reads it, with sampler, guidance and times as they are now.

        Args:
            folder: where to write: new, empty, or an earlier export, which makes room.
            copies_text_encoder: whether a text encoder that is a folder of this machine is copied,
                so that the folder is whole; a name of the Hub or a package stays a name.
            samples: picture for the model card.

        Raises:
            UserError: the folder holds other files, or a part cannot be written down.
        """
        known = replace(
            self.known,
            height=self.height,
            width=self.width,
            classes=self.classes,
            facts=self.facts,
        )
        save(Path(folder), self.model, self.drawing, known, copies_text_encoder, samples)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool = False,
        token: str | None = None,
        samples: Image.Image | None = None,
    ) -> str:
        """Upload it to the Hugging Face Hub; its address.

        Args:
            repo_id: owner/name; made where there is none.
            private: whether only its owners see a new one.
            token: of the account; empty takes that of hf auth login.
            samples: picture for the model card.

        Raises:
            UserError: the Hub is out of reach or does not allow it.
        """
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder, samples=samples)
            return upload(folder, repo_id, private, token)

    # Drawing --------------------------------------------------------------------------------------

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        class_labels: int | list[int] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators | None = None,
        seed: int | list[int] | None = None,
        image: Picture | list[Picture] | None = None,
        mask_image: Picture | list[Picture] | None = None,
        strength: float | None = None,
        source_prompt: str | int | list[str] | list[int] | None = None,
        source_scale: float = SOURCE_SCALE,
        output_type: OutputType = "pil",
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        batch_size: int | None = None,
    ) -> PipelineOutput:
        """Draw images.

        Args:
            prompt: what is to be seen, one or a list, where the model takes texts.
            class_labels: class numbers, one or a list, where it takes classes.
            negative_prompt: what is not to be seen, one for all or one per prompt.
            height: height in pixels; empty takes that of the training's images.
            width: width in pixels, the same way.
            num_inference_steps: steps of the solver; empty takes its own.
            guidance_scale: strength of the guidance; empty takes its own.
            num_images_per_prompt: images of each prompt or class.
            generator: draws the images' seeds, or a list with one for each image. Without it and
                `seed` PyTorch's global one does.
            seed: seed of the first image of each prompt or class, the next ones count up; or a list
                with one for each image. predict draws the same picture from the same seed.
            image: pictures to begin from, one for all, one per prompt or one per image; arrays and
                tensors H W 3 hold 8-bit pixels or floats in 0 … 1.
            mask_image: what is drawn anew of them: white anew, black stays.
            strength: 0 gives the pictures back, 1 ignores them; empty takes 1 with a mask, 0.66
                with a source_prompt, else 0.7.
            source_prompt: prompt or class that the pictures show, to edit them into the new one
                without noise (FlowEdit, arXiv:2412.08629).
            source_scale: strength of the guidance towards it.
            output_type: pil; numpy, B H W 3 in 0 … 1; or tensor, B H W 3 in [-1, 1].
            callback_on_step_end: called as (pipeline, step from 0, time reached, state) after each
                step, where state has latents (the image there), clean (what the network sees in
                it), num_steps and first (place of the batch's first image). Returned latents go on.
            batch_size: images at once; empty takes all. Batches end one after another.

        Raises:
            UserError: something asked for cannot be drawn.
        """
        check_one_of(OutputType, output_type=output_type)
        num_each = whole("num_images_per_prompt", num_images_per_prompt)
        check_at_least(1, num_images_per_prompt=num_each)
        if num_inference_steps is not None:
            num_inference_steps = whole("num_inference_steps", num_inference_steps)
        shown = self.conditions(prompt, class_labels)
        num = len(shown), num_each
        size = (
            self.height if height is None else whole("height", height),
            self.width if width is None else whole("width", width),
        )
        self.model.network.check_size(*size)
        seeds = seeds_of(*num, seed, generator)
        negative = texts("negative_prompt", each("negative_prompt", negative_prompt or "", *num))
        if any(negative) and not self.is_text:
            raise UserError("negative_prompt must be empty for a model of classes, got one.")
        start = None
        if image is None:
            check_none(mask_image=mask_image, strength=strength, source_prompt=source_prompt)
        else:
            pictures = each("image", listed(image), *num)
            mask = None
            if mask_image is not None:
                mask = masks_of(each("mask_image", listed(mask_image), *num), pictures, *size)
            source = self.source(source_prompt, *num)
            if strength is None:
                strength = default_strength(mask is not None, source is not None)
            start = Start(images_of(pictures, *size), float(strength), mask, source, source_scale)
        drawing = self.drawing._replace(
            sampler=self.sampler.with_steps(num_inference_steps),
            guidance=self.guidance.at(guidance_scale),
        )
        condition = as_conditions(each("prompt", shown, *num))
        batch_size = len(seeds) if batch_size is None else whole("batch_size", batch_size)
        check_at_least(1, batch_size=batch_size)
        parts = [slice(at, at + batch_size) for at in range(0, len(seeds), batch_size)]
        requests = [
            Request(condition[own], seeds[own], *size, negative[own], part_of(start, own))
            for own in parts
        ]
        images = self.draw(requests, drawing, callback_on_step_end)
        return PipelineOutput(in_form(images, output_type), seeds[: len(images)])

    def conditions(self, prompt: Any, class_labels: Any) -> list[Any]:
        """What is to be seen, as a list; checked."""
        if (prompt is None) == (class_labels is None):
            what = "neither" if prompt is None else "both"
            raise UserError(f"either prompt or class_labels must be given, got {what}.")
        if (class_labels is None) != self.is_text:
            wanted, got = "prompt", "class_labels"
            if not self.is_text:
                wanted, got = got, wanted
            raise UserError(f"{wanted} must be given to this model, got {got}.")
        given = prompt if self.is_text else class_labels
        if isinstance(given, np.ndarray | Tensor):
            given = given.tolist()
        given = list(given) if isinstance(given, list | tuple | range) else [given]
        if not given:
            raise UserError("prompt or class_labels must name something, got an empty list.")
        if self.is_text:
            given = texts("prompt", given)
        else:
            given = [whole("class_labels", number) for number in given]
        self.model.conditioner.check(as_conditions(given))
        return given

    def source(self, source: Any, num_prompts: int, num_each: int) -> Any:
        """What images to edit show, for each; None where they are not edited."""
        if source is None:
            return None
        given = as_conditions(each("source_prompt", source, num_prompts, num_each))
        self.model.conditioner.check(given)
        return given

    def draw(
        self,
        requests: list[Request],
        drawing: Drawing,
        callback: Callable[..., dict[str, Any] | None] | None,
    ) -> Images:
        """Draw batch by batch, unless stopped."""

        def show(number: int, t: float, state: dict[str, Any]) -> dict[str, Any] | None:
            return None if callback is None else callback(self, number, t, state)

        done: list[Images] = []
        settings = {"total": len(requests) * drawing.sampler.num_steps} | self.progress
        with self.precise(), tqdm(**settings) as bar:
            self.watch = Watch(bar, len(requests), show)
            for request in requests:
                try:
                    done.append(draw_images(self.model, drawing, request, self.watch.on_step))
                except Stopped:
                    done.append(self.watch.latest.clamp(-1, 1).float())
                    break
                self.watch.first += len(done[-1])
        return torch.cat(done).cpu()

    def precise(self) -> AbstractContextManager:
        """The precision of training, unless the weights were given another type."""
        if self.autocast_dtype is None:
            return nullcontext()
        kind = self.device.type
        return torch.autocast(kind, dtype=self.autocast_dtype, cache_enabled=False)

    def stop(self) -> None:
        """Let the running call end, from its callback or another thread: it gives the batches that
        are done, and what the network sees in the one under way.
        """
        if self.watch is not None:
            self.watch.is_stopping = True

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Settings of the progress bar, as tqdm takes them; disable=True shows none."""
        self.progress = settings


def best_device() -> str:
    """A GPU where there is one."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_none(**values: Any) -> None:
    """Raise a UserError for the first of `values` that is given without an image."""
    for name, value in values.items():
        if value is not None:
            raise UserError(f"image must be given where {name} is, got none.")


def part_of(start: Start | None, own: slice) -> Start | None:
    """What some of the images begin from."""
    if start is None:
        return None
    mask = None if start.mask is None else start.mask[own]
    source = None if start.source is None else start.source[own]
    return start._replace(image=start.image[own], mask=mask, source=source)
