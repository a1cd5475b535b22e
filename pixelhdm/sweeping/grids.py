"""Images that show what the settings of a sweep change."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pixelhdm.files import replacing
from pixelhdm.inference.showing.grid import Pixels, labelled_grid
from pixelhdm.sweeping.layout import PARTS, grouped, layout_of, tick
from pixelhdm.sweeping.setting import Setting

FOLDER = "grids"
MOST_COLUMNS = 9


def draw_grids(
    folder: Path,
    settings: list[Setting],
    labels: list[str],
    images: Mapping[Setting, Sequence[Pixels]],
    best: Setting,
) -> list[Path]:
    """Write a grid for each image that is shown, and for each panel of the plot: a column for each
    scale, a row for each of the other combinations.

    Args:
        folder: the sweep's.
        settings: all combinations.
        labels: name of each image that is shown, for its file.
        images: those of each setting, one a label.
        best: the setting whose column is never left out, where there are many.
    """
    layout = layout_of(settings)
    along = PARTS[layout.along]
    shown = thinned(list(dict.fromkeys(map(along, settings))), along(best))
    heads = [heading(layout.along, value) for value in shown]
    kept = [setting for setting in settings if along(setting) in shown]
    files = []
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for panel in grouped(kept, layout.panels):
        suffix = "_".join(["", *panel[0].words(layout.panels).replace(",", "").split()])
        for number, label in enumerate(labels):
            rows = [
                (line[0].words(layout.lines), [images[setting][number] for setting in line])
                for line in grouped(panel, layout.lines)
            ]
            files.append(folder / FOLDER / f"{label}{suffix}.png")
            with replacing(files[-1]) as temporary:
                labelled_grid(rows, heads).save(temporary, "png")
    return files


def thinned(values: list, kept: object) -> list:
    """At most MOST_COLUMNS of them, evenly spread with both ends, and one that must be kept."""
    if len(values) <= MOST_COLUMNS:
        return values
    step = (len(values) - 1) / (MOST_COLUMNS - 1)
    places = {round(number * step) for number in range(MOST_COLUMNS)} | {values.index(kept)}
    return [values[place] for place in sorted(places)]


def heading(part: str, value: object) -> str:
    """What stands above a column."""
    shown = f"{value:g}" if isinstance(value, float | int) else tick(value)
    return f"{part} {shown}"
