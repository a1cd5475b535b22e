"""A page that shows all drawn images."""

from html import escape
from urllib.parse import quote

from pixelhdm.data.draws import DrawItem, by_group

SMALL = 64  # shorter sides than this are enlarged without smoothing
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fff; }
header p, figcaption, .away { color: #666; font-size: 13px; }
section { margin: 1.5rem 0; content-visibility: auto; contain-intrinsic-size: auto 300px; }
h2 { font-size: 16px; font-weight: 600; margin: 0 0 .4rem; max-width: 60rem; }
.row { display: flex; flex-wrap: wrap; gap: 10px; align-items: flex-start; }
figure { margin: 0; }
img { display: block; height: 220px; width: auto; background: #eee; }
img.small { image-rendering: pixelated; height: 96px; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818; } }
""".strip()


def contact_sheet(items: list[DrawItem], shared: dict[str, str], scale: float) -> str:
    """The page as HTML: images by class or prompt, each with its text, seed, size and scale.

    Its links are relative, so that the folder can be moved. `scale` is the strength of those that
    have none of their own.
    """
    title = f"{len(items)} images"
    settings = " · ".join(f"{name} {value}" for name, value in shared.items())
    sections = [section(group, scale) for group in by_group(items)]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{title}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>",
            f"<header><h1>{title}</h1><p>{escape(settings)}</p></header>",
            *sections,
            "</body>\n</html>\n",
        ]
    )


def section(items: list[DrawItem], scale: float) -> str:
    """The images of one class or prompt."""
    away = f'<p class="away">not: {escape(items[0].negative)}</p>' if items[0].negative else ""
    figures = "\n".join(figure(item, scale) for item in items)
    heading = f"<h2>{escape(items[0].label)}</h2>{away}"
    return f'<section>{heading}<div class="row">\n{figures}\n</div></section>'


def figure(item: DrawItem, scale: float) -> str:
    """One image with its caption."""
    link, kind = quote(item.file), "small" if min(item.height, item.width) < SMALL else "large"
    image = (
        f'<img class="{kind}" src="{link}" width="{item.width}" height="{item.height}" '
        f'loading="lazy" alt="{escape(item.label)}">'
    )
    caption = f"seed {item.seed} · {item.height}×{item.width} · scale {item.strength(scale):g}"
    return f'<figure><a href="{link}">{image}</a><figcaption>{caption}</figcaption></figure>'
