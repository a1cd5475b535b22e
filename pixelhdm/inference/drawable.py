"""Whether images can be drawn, before the first one is."""

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from pixelhdm.data.draw_loader import conditions
from pixelhdm.data.draws import DrawItem
from pixelhdm.data.start_files import as_conditions
from pixelhdm.errors import UserError
from pixelhdm.inference.draw import Drawing
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.listed import drawing_for
from pixelhdm.inference.model import Model
from pixelhdm.inference.samplers import Sampler
from pixelhdm.inference.way import check_edits
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.models.conditioners.text_conditioner import TextConditioner
from pixelhdm.models.encoders.tokenization import beyond
from pixelhdm.models.network import Network


def check_drawable(
    items: list[DrawItem], network: Network, conditioner: Conditioner, guidance: Guidance
) -> None:
    """Raise a UserError unless network and conditioner take all of them; name prompts that lose
    their end, and a negative one that has no effect.
    """
    if not items:
        raise UserError(
            "data.prompts or data.draw.classes must say what to draw, got neither. Set one of them."
        )
    sizes: set[tuple[int, int]] = set()
    for item in items:
        size = item.height, item.width
        try:
            if size not in sizes:
                network.check_size(*size)
                guidance.check_routes(network, *size)
        except UserError as error:
            raise UserError(f"{item.place}: {error}") from error
        sizes.add(size)
    conditioner.check(conditions(items))
    edited = [item for item in items if item.start is not None and item.start.source is not None]
    if edited:
        try:
            conditioner.check(as_conditions([item.start.source for item in edited]))
        except UserError as error:
            raise UserError(f"{edited[0].place}, source: {error}") from error
    if isinstance(conditioner, TextConditioner) and rank_zero_only.rank == 0:
        name_cut_prompts(items, conditioner)
    if rank_zero_only.rank == 0:
        name_idle_negative(items, guidance)


def check_solvers(items: list[DrawItem], run: Drawing, samplers: dict[str, Sampler]) -> None:
    """Raise a UserError unless the solver of each can edit an image, where it has to."""
    for item in items:
        if item.start is not None and item.start.source is not None:
            try:
                check_edits(drawing_for(item, run, samplers).sampler)
            except UserError as error:
                raise UserError(f"{item.place}: {error}") from error


def check_weaker(items: list[DrawItem], model: Model, guidance: Guidance) -> None:
    """Raise a UserError unless guidance's weaker model, if there is one, takes all of them."""
    if guidance.weaker is None:
        return
    weak = guidance.weaker.model_like(model)
    try:
        weak.conditioner.check(conditions(items))
        weak.network.check_size(items[0].height, items[0].width)
    except UserError as error:
        raise UserError(f"guidance.weak: {error}") from error


def name_idle_negative(items: list[DrawItem], guidance: Guidance) -> None:
    """Say of the first negative prompt that guidance does not look at why that is."""
    for item in items:
        why = guidance.at(item.scale).idle_negative if item.negative else None
        if why is not None:
            rank_zero_info(
                f"Warning: {item.place}: negative prompt {item.negative!r} has no effect {why}."
            )
            return


def name_cut_prompts(items: list[DrawItem], conditioner: TextConditioner) -> None:
    """Say once of each prompt that is longer than the encoder's limit what is left out."""
    places: dict[str, str] = {}
    for item in items:
        for text in item.texts:
            places.setdefault(text, item.place)
    for text, place in places.items():
        if not text or text in conditioner.known:
            continue
        if excess := conditioner.encoder.excess(text):
            said = beyond(excess.num_tokens, excess.cut, conditioner.encoder.max_length)
            rank_zero_info(f"Warning: {place}: {said}")
