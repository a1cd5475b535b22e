"""Sample grids over time, inside the page."""

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

from pixelhdm.reporting.markup import Section, note
from pixelhdm.reporting.run import Run

BUDGET = 9e6  # bytes of all pictures, a third less than as text in the page
MOST_GRIDS, LONGEST = 60, 1280  # of a run; pixels of a picture's longer side
QUALITY = 85


def samples(runs: list[Run]) -> Section:
    """Each run's sample grids with a slider over its steps, of both weights side by side."""
    shown = [run for run in runs if run.samples]
    parts = [slider(run, BUDGET / len(shown), len(runs) > 1) for run in shown]
    body = f'<div class="beside">{"".join(parts)}</div>' if len(runs) > 1 else "".join(parts)
    return Section("samples", "Samples", body if shown else "")


def slider(run: Run, budget: float, is_named: bool) -> str:
    """The grids of one run, as many as fit."""
    steps = list(run.samples)
    last = sum(len(embedded(file)[1]) for file in run.samples[steps[-1]].values())
    chosen = evenly(steps, min(MOST_GRIDS, int(budget / last)))
    views = []
    for step in chosen:
        figures = "".join(
            figure(file, weights_of(ending, run), step)
            for ending, file in sorted(run.samples[step].items())
        )
        hidden = "" if step == chosen[-1] else " hidden"
        views.append(f'<div class="view" data-step="{step:,}"{hidden}>{figures}</div>')
    heading = f"<h3>{escape(run.name)}</h3>" if is_named else ""
    control = ""
    if len(chosen) > 1:
        control = (
            f'<label class="slide"><input type="range" min="0" max="{len(chosen) - 1}" '
            f'value="{len(chosen) - 1}" aria-label="step"> <output>step {chosen[-1]:,}</output>'
            "</label>"
        )
    left_out = len(steps) - len(chosen)
    told = f"{left_out} of {len(steps)} steps are left out, to keep the page small; all are in "
    told = note(f"{told}{run.folder / 'samples'}.") if left_out else ""
    return f'<div class="samples">{heading}{control}{"".join(views)}{told}</div>'


def evenly(steps: list[int], num: int) -> list[int]:
    """About `num` of the steps, evenly spread, the first and the last among them."""
    if num >= len(steps):
        return steps
    num = max(num, 1)
    gap = (len(steps) - 1) / max(num - 1, 1)
    places = {len(steps) - 1 - round(number * gap) for number in range(num)}
    return [steps[place] for place in sorted(places)]


def weights_of(ending: str, run: Run) -> str:
    """Which weights a file shows."""
    return ending or str(run.setting("model.weights") or "ema")


def figure(file: Path, weights: str, step: int) -> str:
    """A picture with its weights below it."""
    kind, data = embedded(file)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return (
        f'<figure><img src="{source}" loading="lazy" alt="samples at step {step}, '
        f'{escape(weights)}"><figcaption>{escape(weights)}</figcaption></figure>'
    )


def embedded(file: Path) -> tuple[str, bytes]:
    """A picture's kind and bytes, no larger than needed on a page: as it is, or smaller as WebP."""
    own = file.read_bytes()
    with Image.open(io.BytesIO(own)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "webp", quality=QUALITY)
    as_webp = buffer.getvalue()
    return ("png", own) if len(own) <= 1.5 * len(as_webp) else ("webp", as_webp)
