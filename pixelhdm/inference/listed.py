"""From a list of images to draw to what is drawn."""

from typing import Any

from pixelhdm.data.draws import DrawItem
from pixelhdm.inference.draw import Drawing
from pixelhdm.inference.pixels import from_pixels
from pixelhdm.inference.request import Request, Start
from pixelhdm.inference.samplers import Sampler
from pixelhdm.inference.way import begun
from pixelhdm.training.flow import FlowMatching


def drawing_for(item: DrawItem, run: Drawing, samplers: dict[str, Sampler]) -> Drawing:
    """How an image is drawn: as the run's are, but for what it asks for."""
    sampler = samplers[item.sampler] if item.sampler else run.sampler
    return run._replace(
        sampler=sampler.with_steps(item.num_steps), guidance=run.guidance.at(item.scale)
    )


def request_for(batch: dict[str, Any]) -> Request:
    """What a batch of DrawLoader asks for."""
    items, given = batch["items"], batch.get("start")
    start = None
    if given is not None:
        image = from_pixels(given.pixels)
        start = Start(image, given.strength, given.mask, given.source, given.source_scale)
    return Request(
        batch["condition"],
        batch["seed"].tolist(),
        items[0].height,
        items[0].width,
        [item.negative for item in items],
        start,
    )


def num_calls(item: DrawItem, drawing: Drawing, flow: FlowMatching) -> int:
    """Calls of the network for an image; guidance makes each twice as large."""
    start = item.start
    if start is None or (start.strength == 1 and start.source is None):
        return drawing.num_calls
    if start.strength == 0:
        return 0
    times = drawing.time_grid.times(drawing.sampler.num_steps, flow, item.height, item.width)
    calls = drawing.sampler.num_calls(len(begun(times, start.strength)) - 1)
    return calls if start.source is None else 2 * calls
