"""A sweep's results as curves."""

from pathlib import Path
from typing import TYPE_CHECKING

from pixelhdm.files import replacing
from pixelhdm.sweeping.layout import PARTS, Layout, grouped, layout_of, tick
from pixelhdm.sweeping.results import Row, ranked, shown
from pixelhdm.sweeping.setting import Setting

if TYPE_CHECKING:  # it costs half a second
    from matplotlib.axes import Axes

COLUMNS, MOST_TICKS = 3, 12
WIDE, HIGH = 5.2, 3.9  # inches of a panel
LOGARITHMIC = 30  # from this ratio of largest and smallest on
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#8C6D00")  # Okabe and Ito's
MARKERS = "osD^vP"
AXIS_WORDS = {"scale": "guidance scale", "ema": "average of the weights (EMA)"}


def draw_plot(
    file: Path, settings: list[Setting], found: dict[Setting, Row], metric: str, about: str
) -> None:
    """Write curves of a metric; `found` has the row of every setting."""
    from matplotlib.figure import Figure

    layout = layout_of(settings)
    groups = grouped(settings, layout.panels)
    columns = min(len(groups), COLUMNS)
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(max(columns * WIDE, 7.0), rows * HIGH + 1.0), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    best = ranked(list(found.values()), metric)[0]
    for panel, group in zip(panels, groups, strict=False):
        draw_panel(panel, group, found, metric, layout, best)
        panel.set_ylabel(metric if panel.get_subplotspec().is_first_col() else "")
        panel.set_title(group[0].words(layout.panels), fontsize=10)
    for panel in panels[len(groups) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside right center", fontsize=8)
    fixed = settings[0].words(name for name in layout.fixed if name != layout.along)
    lines = [f"{metric}, {best.score(metric).better} is better", fixed, about]
    figure.suptitle("\n".join(filter(None, lines)), fontsize=10)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def draw_panel(
    panel: "Axes",
    settings: list[Setting],
    found: dict[Setting, Row],
    metric: str,
    layout: Layout,
    best: Row,
) -> None:
    """The lines of one panel, with the real images' score and a ring around the best setting."""
    along = PARTS[layout.along]
    is_number = layout.along in ("scale", "steps")
    for number, group in enumerate(grouped(settings, layout.lines)):
        own = sorted(group, key=along) if is_number else group
        x = [along(setting) if is_number else tick(along(setting)) for setting in own]
        scores = [found[setting].score(metric) for setting in own]
        y, errors = [s.value for s in scores], [s.error or 0.0 for s in scores]
        line = {"linewidth": 1.3, "linestyle": "-" if is_number else "none"}
        look = line | {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
        }
        label = own[0].words(layout.lines) or None
        panel.errorbar(x, y, errors, label=label, markersize=4, capsize=2, **look)
        for setting, place, value in zip(own, x, y, strict=True):
            if found[setting] is best:
                panel.plot([place], [value], "o", markersize=13, mfc="none", mec="black", zorder=9)
                panel.annotate(
                    f"best {shown(best.score(metric))}",
                    (place, value),
                    xytext=(0, -18),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                )
    draw_frame(panel, settings, found, metric, layout)


def draw_frame(
    panel: "Axes", settings: list[Setting], found: dict[Setting, Row], metric: str, layout: Layout
) -> None:
    """What is around the lines: floor, scales and labels."""
    scores = [found[setting].score(metric) for setting in settings]
    floor = scores[0].floor
    if floor is not None:
        panel.axhline(
            floor, linestyle="--", color="0.35", linewidth=1, label="real images, as many"
        )
    values = [score.value for score in scores]
    if min(values) > 0 and max(values) > LOGARITHMIC * min(values):
        panel.set_yscale("log")
    ticks = sorted({PARTS[layout.along](setting) for setting in settings}, key=str)
    if layout.along in ("scale", "steps") and len(ticks) <= MOST_TICKS:
        panel.set_xticks(sorted(ticks), [f"{value:g}" for value in sorted(ticks)])
    panel.set_xlabel(AXIS_WORDS.get(layout.along, layout.along))
    panel.margins(y=0.12)
    panel.grid(alpha=0.25)
