"""One self-contained HTML page: text, tables, charts, pictures and videos, nothing loaded from anywhere.

Pictures and videos are embedded as data URIs; there is no script, and a content security policy forbids any. All text
is escaped. The page follows the reader's light or dark setting.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NewType

from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.files import as_bytes, write_bytes

_MEDIA = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
}


Html = NewType("Html", str)
"""Markup that is trusted as it stands: what the functions below make, and the charts of `export.charts`."""


class Section(NamedTuple):
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Html]


def paragraph(text: str) -> Html:
    """A paragraph."""
    return Html(f"<p>{html.escape(text)}</p>")


def code(text: str) -> Html:
    """Lines to copy, for example commands."""
    return Html(f"<pre>{html.escape(text)}</pre>")


def media(path: Path, caption: str, *, width_px: int | None = None) -> Html:
    """A picture or a video, by the suffix of its file; with a width it has sharp pixels where that enlarges.

    Raises `InputMissingError`: it is not there; `DataError`: neither a picture nor a video.
    """
    kind = _MEDIA.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"neither a picture nor a video ({path})", remedy=f"one of {', '.join(_MEDIA)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputMissingError(f"cannot read ({path}): {error.strerror}", remedy="make it again") from error
    return media_bytes(data, kind, caption, width_px=width_px)


def media_bytes(data: bytes, kind: str, caption: str, *, width_px: int | None = None) -> Html:
    """`media` of the bytes of a file of a MIME type."""
    uri, caption = f"data:{kind};base64,{base64.b64encode(data).decode()}", html.escape(caption)
    style = "" if width_px is None else f' style="width:{width_px:d}px;image-rendering:pixelated"'
    if kind.startswith("video"):
        element = f'<video src="{uri}" controls loop autoplay muted playsinline aria-label="{caption}"{style}></video>'
    else:
        element = f'<img src="{uri}" alt="{caption}"{style}>'
    return Html(f"<figure>{element}<figcaption>{caption}</figcaption></figure>")


def row(blocks: Sequence[Html]) -> Html:
    """Blocks side by side, as many as fit."""
    return Html(f'<div class="row">{"".join(blocks)}</div>')


def number_text(value: float) -> str:
    """A number in a few characters: 32000 as 32k, 0.00031 as 3.1e-4."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        scale, unit = (1e6, "M") if abs(value) >= 1e6 else (1e3, "k")
        return f"{value / scale:.4g}{unit}"
    if abs(value) >= 0.001:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def cell_text(value: object) -> str:
    """A value in a table: a number in a few characters, - for none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return number_text(value) if isinstance(value, float) else str(value)


def tables(rows: Sequence[Sequence[object]]) -> list[Html]:
    """Several tables: an empty row begins a new one."""
    parts: list[list[Sequence[object]]] = [[]]
    for cells in rows:
        if cells:
            parts[-1].append(cells)
        else:
            parts.append([])
    return [table(part) for part in parts if part]


def table(rows: Sequence[Sequence[object]], marks: Sequence[bool | None] = ()) -> Html:
    """Cells of any values; the first row is the heading.

    `marks`, one a row after the heading, put a tick (True) or a cross (False) before it, or nothing.
    """
    head, *others = [[cell_text(value) for value in row] for row in rows]
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for cells, mark in zip(others, marks or [None] * len(others), strict=True):
        sign = {True: '<b class="yes">✓</b> ', False: '<b class="no">✗</b> ', None: ""}[mark]
        first, *rest = (html.escape(cell) for cell in cells)
        lines.append(f"<tr><td>{sign}{first}</td>" + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>")
    return Html(f'<div class="wide"><table>{"".join(lines)}</table></div>')


def page_html(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as text."""
    body = "".join(
        f"<section><h2>{html.escape(section.title)}</h2>{''.join(section.blocks)}</section>" for section in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; media-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><header><h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p></header>{body}</body></html>\n"
    )


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write `page_html` to `path` atomically."""
    write_bytes(path, as_bytes(page_html(title, subtitle, sections)))


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #626b7a; --ground: #fff; --panel: #f4f5f7; --rule: #d9dce1;
  --line: #7a3ea8; --yes: #1a7f37; --no: #b3261e }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --soft: #9aa3b2; --ground: #14161a; --panel: #1d2026;
  --rule: #343943; --line: #f0935c; --yes: #57c276; --no: #ff8a80 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
h1 { margin: 0; font-size: 1.7rem } h2 { margin: 2.2rem 0 .6rem; font-size: 1.2rem }
header p, figcaption { color: var(--soft) } header p { margin: .2rem 0 0 } p { max-width: 48rem }
figure { margin: 0 0 1rem } figcaption { font-size: .85rem; margin-top: .3rem; max-width: 32rem }
img, video { max-width: 100%; height: auto; border-radius: 4px; display: block; background: var(--panel) }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
.row .chart { flex: 1 1 18rem; max-width: 24rem }
.chart, .charts { background: var(--panel); border-radius: 4px; display: block }
section > .chart { max-width: 44rem }
.wide + .wide, .wide + .row { margin-top: 1.2rem }
.chart text { font: 11px system-ui, sans-serif; fill: var(--soft) }
.chart .name, .chart .last { font-size: 12px; font-weight: 600; fill: var(--ink) }
.chart .grid { stroke: var(--rule); fill: none }
.chart .line { stroke: var(--line); stroke-width: 1.6; stroke-linejoin: round; fill: none }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--rule); text-align: left }
th { color: var(--soft); font-weight: 600 } .yes { color: var(--yes) } .no { color: var(--no) }
pre { background: var(--panel); border-radius: 4px; padding: .8rem; overflow-x: auto; font-size: .85rem }
"""
