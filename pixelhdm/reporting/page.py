"""The report as one HTML page that asks nothing of any other file or machine."""

from datetime import datetime
from html import escape
from pathlib import Path

from pixelhdm.reporting.curve_sections import losses, others, rates_and_norms, throughput
from pixelhdm.reporting.markup import Section
from pixelhdm.reporting.record_sections import config, environment, faults, summary
from pixelhdm.reporting.run import Run
from pixelhdm.reporting.sample_section import samples
from pixelhdm.reporting.score_section import quality, sweeps
from pixelhdm.reporting.time_section import losses_by_time

SECTIONS = (
    summary,
    faults,
    samples,
    losses,
    losses_by_time,
    quality,
    sweeps,
    rates_and_norms,
    throughput,
    others,
    environment,
    config,
)
STYLE, SCRIPT = (Path(__file__).with_name(f"page.{ending}") for ending in ("css", "js"))


def page(runs: list[Run]) -> str:
    """The page of one run, or of several over each other; parts that they have nothing for are
    left out.
    """
    sections = [part for part in (section(runs) for section in SECTIONS) if part.body]
    title = escape(", ".join(run.name for run in runs))
    links = "".join(f'<a href="#{part.key}">{escape(part.title)}</a>' for part in sections)
    folders = escape(", ".join(str(run.folder) for run in runs))
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title} · run report</title>",
            f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>",
            f'<header><h1>{title}</h1><p class="note">{folders} · report of {made}</p></header>',
            f"<nav>{links}</nav>\n<main>",
            *map(section_html, sections),
            f"</main>\n<script>\n{SCRIPT.read_text(encoding='utf-8')}</script>\n</body>\n</html>\n",
        ]
    )


def section_html(part: Section) -> str:
    """A part of the page under its heading."""
    return f'<section id="{part.key}"><h2>{escape(part.title)}</h2>\n{part.body}</section>'
