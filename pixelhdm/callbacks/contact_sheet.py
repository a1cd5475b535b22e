"""A page that shows all drawn images."""

from collections.abc import Callable
from html import escape
from urllib.parse import quote

from pixelhdm.callbacks.layouts import sheet_file
from pixelhdm.data.draws import DrawItem, by_group

SMALL = 64  # shorter sides than this are enlarged without smoothing
BESIDE = ("class", "prompt", "negative_prompt", "seed", "size", "scale")  # stands at each image
IN_CAPTION = ("sampler", "steps", "calls", "image", "mask", "strength", "source", "source_scale")
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff; }
header p, figcaption, .away { color: #666; font-size: 13px; }
section { margin: 1.5rem 0; content-visibility: auto; contain-intrinsic-size: auto 300px; }
h2 { font-size: 16px; font-weight: 600; margin: 0 0 .4rem; max-width: 60rem; }
.row { display: flex; flex-wrap: wrap; gap: 10px; align-items: flex-start; }
figure { margin: 0; }
figcaption { max-width: 16rem; }
img { display: block; height: 220px; width: auto; background: #eee; }
img.sheet { height: auto; max-width: 100%; }
img.small { image-rendering: pixelated; height: 96px; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818; } }
""".strip()


def contact_sheet(
    items: list[DrawItem],
    facts: dict[DrawItem, dict[str, str]],
    sheets: list[DrawItem],
    way_of: Callable[[DrawItem], str | None],
) -> str:
    """The page as HTML: images by class or prompt, each with its text, seed, size, scale and what
    else differs between them; above them the sheets of a sweep, of which `sheets` has one image
    each. `way_of` names the file that shows how an image came to be, where there is one.

    Its links are relative, so that the folder can be moved.
    """
    title = f"{len(items)} images"
    first = facts[items[0]]
    common = {
        name: value
        for name, value in first.items()
        if name not in BESIDE and all(facts[item].get(name) == value for item in items)
    }
    settings = " · ".join(f"{name} {value}" for name, value in common.items())
    captions = {item: caption(facts[item], common) for item in items}
    told = {item: escape(text) + way_link(way_of(item)) for item, text in captions.items()}
    sections = [section(group, told) for group in by_group(items)]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{title}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>",
            f"<header><h1>{title}</h1><p>{escape(settings)}</p></header>",
            *map(sheet_section, sheets),
            *sections,
            "</body>\n</html>\n",
        ]
    )


def sheet_section(item: DrawItem) -> str:
    """A sheet of a sweep."""
    link = quote(sheet_file(item))
    heading = f"<h2>{escape(item.label)}, seed {item.seed}</h2>"
    image = f'<img class="sheet" src="{link}" loading="lazy" alt="{escape(item.label)}">'
    return f'<section>{heading}<a href="{link}">{image}</a></section>'


def section(items: list[DrawItem], captions: dict[DrawItem, str]) -> str:
    """The images of one class or prompt; `captions` are HTML."""
    away = f'<p class="away">not: {escape(items[0].negative)}</p>' if items[0].negative else ""
    figures = "\n".join(figure(item, captions[item]) for item in items)
    heading = f"<h2>{escape(items[0].label)}</h2>{away}"
    return f'<section>{heading}<div class="row">\n{figures}\n</div></section>'


def figure(item: DrawItem, caption: str) -> str:
    """One image with its caption, which is HTML."""
    link, kind = quote(item.file), "small" if min(item.height, item.width) < SMALL else "large"
    image = (
        f'<img class="{kind}" src="{link}" width="{item.width}" height="{item.height}" '
        f'loading="lazy" alt="{escape(item.label)}">'
    )
    told = f"<figcaption>{caption}</figcaption>"
    return f'<figure><a href="{link}">{image}</a>{told}</figure>'


def way_link(file: str | None) -> str:
    """A link to the file that shows how an image came to be."""
    return "" if file is None else f' · <a href="{quote(file)}">from noise</a>'


def caption(facts: dict[str, str], common: dict[str, str]) -> str:
    """What stands below an image: what `common`, at the head of the page, does not tell."""
    parts = [f"seed {facts['seed']}", facts["size"].replace("x", "×"), f"scale {facts['scale']}"]
    parts += [
        f"{name} {facts[name]}" for name in IN_CAPTION if name in facts and name not in common
    ]
    return " · ".join(parts)
