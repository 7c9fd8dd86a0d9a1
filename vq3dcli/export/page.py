"""One self-contained HTML page: text, tables, charts, pictures and videos, nothing loaded from anywhere.

Pictures and videos are embedded as data URIs; there is no script, and a content security policy forbids any. All text
is escaped. The page follows the reader's light or dark setting.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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


@dataclass(frozen=True)
class Text:
    """A paragraph, as it stands."""

    text: str


@dataclass(frozen=True)
class Code:
    """Lines to copy, for example commands."""

    text: str


@dataclass(frozen=True)
class Media:
    """A picture or a video."""

    path: Path  # a file; its suffix says what it is
    caption: str  # what it shows
    width_px: int | None = None  # width on the page, with sharp pixels where that enlarges; the file's own by default


@dataclass(frozen=True)
class Row:
    """Blocks side by side, as many as fit."""

    blocks: Sequence[Text | Code | Media | Table | Svg]


@dataclass(frozen=True)
class Table:
    """Cells of text; the first row of `rows` is the heading."""

    rows: Sequence[Sequence[str]]  # text of each cell
    # one a row after the heading: True and False put a tick or a cross before it, None nothing
    marks: Sequence[bool | None] = field(default=())


@dataclass(frozen=True)
class Svg:
    """A chart from `export.charts`, which is trusted as it stands."""

    markup: str


Block = Text | Code | Media | Row | Table | Svg


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


def page_html(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as text.

    Raises:
        InputMissingError: A picture or video is not there.
        DataError: A file is neither a picture nor a video.
    """
    body = "".join(
        f"<section><h2>{html.escape(section.title)}</h2>{''.join(map(_block, section.blocks))}</section>"
        for section in sections
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


def data_uri(path: Path) -> str:
    """A file's bytes as a data URI."""
    kind = _MEDIA.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"neither a picture nor a video ({path})", remedy=f"one of {', '.join(_MEDIA)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputMissingError(f"cannot read ({path}): {error.strerror}", remedy="make it again") from error
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre>{html.escape(block.text)}</pre>"
    if isinstance(block, Media):
        return _media(block)
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Svg):
        return block.markup
    return f'<div class="row">{"".join(map(_block, block.blocks))}</div>'


def _media(block: Media) -> str:
    uri, caption = data_uri(block.path), html.escape(block.caption)
    style = "" if block.width_px is None else f' style="width:{block.width_px:d}px;image-rendering:pixelated"'
    if uri.startswith("data:video"):
        element = f'<video src="{uri}" controls loop autoplay muted playsinline aria-label="{caption}"{style}></video>'
    else:
        element = f'<img src="{uri}" alt="{caption}"{style}>'
    return f"<figure>{element}<figcaption>{caption}</figcaption></figure>"


def _table(block: Table) -> str:
    head, *rows = block.rows
    marks = list(block.marks) or [None] * len(rows)
    assert len(marks) == len(rows), (len(marks), len(rows))
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for row, mark in zip(rows, marks, strict=True):
        sign = {True: '<b class="yes">✓</b> ', False: '<b class="no">✗</b> ', None: ""}[mark]
        first, *rest = (html.escape(cell) for cell in row)
        lines.append(f"<tr><td>{sign}{first}</td>" + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


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
