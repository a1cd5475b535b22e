"""Numbers, tables and sections as HTML."""

from html import escape
from typing import Any, NamedTuple


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        key: what links to it.
        title: its heading.
        body: HTML.
    """

    key: str
    title: str
    body: str


def readable(value: float, digits: int = 4) -> str:
    """A finite number for a person."""
    if value == int(value) or abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def compact(value: float) -> str:
    """A number beside an axis."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.6g}{letter}"
    return f"{value:.6g}"


def duration(seconds: float) -> str:
    """A time span in its two largest units."""
    total = round(seconds)
    units = {"d": 86_400, "h": 3_600, "min": 60, "s": 1}
    parts = []
    for unit, size in units.items():
        number, total = divmod(total, size)
        if number or parts or unit == "s":
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2])


def table(head: list[str], rows: list[list[str]], kind: str = "") -> str:
    """A table whose cells are HTML; it scrolls sideways where it is wide."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    thead = f"<thead><tr>{top}</tr></thead>\n" if head else ""
    return f'<div class="wide"><table class="{kind}">{thead}<tbody>\n{body}</tbody></table></div>'


def facts_table(facts: dict[str, Any]) -> str:
    """Names and values, none of them HTML."""
    rows = [f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in facts.items()]
    return f'<div class="wide"><table class="facts"><tbody>{"".join(rows)}</tbody></table></div>'


def folded(summary: str, body: str) -> str:
    """HTML that opens on a click below its summary, a text."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def note(text: str) -> str:
    """A small sentence; a text."""
    return f'<p class="note">{escape(text)}</p>'
