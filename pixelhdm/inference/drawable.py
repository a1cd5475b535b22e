"""Whether images can be drawn, before the first one is."""

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from pixelhdm.data.draw_loader import conditions
from pixelhdm.data.draws import DrawItem
from pixelhdm.errors import UserError
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.models.conditioners.text_conditioner import TextConditioner
from pixelhdm.models.encoders.tokenization import beyond
from pixelhdm.models.network import Network


def check_drawable(items: list[DrawItem], network: Network, conditioner: Conditioner) -> None:
    """Raise a UserError unless network and conditioner take all of them; name prompts that lose
    their end.
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
        except UserError as error:
            raise UserError(f"{item.place}: {error}") from error
        sizes.add(size)
    conditioner.check(conditions(items))
    if isinstance(conditioner, TextConditioner) and rank_zero_only.rank == 0:
        name_cut_prompts(items, conditioner)


def name_cut_prompts(items: list[DrawItem], conditioner: TextConditioner) -> None:
    """Say once of each prompt that is longer than the encoder's limit what is left out."""
    places: dict[str, str] = {}
    for item in items:
        for text in (str(item.condition), item.negative):
            places.setdefault(text, item.place)
    for text, place in places.items():
        if not text or text in conditioner.known:
            continue
        if excess := conditioner.encoder.excess(text):
            said = beyond(excess.num_tokens, excess.cut, conditioner.encoder.max_length)
            rank_zero_info(f"Warning: {place}: {said}")
