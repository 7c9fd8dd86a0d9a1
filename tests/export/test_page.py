import base64
import re
from html.parser import HTMLParser

import pytest

from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.export.page import Html, Section, code, media, page_html, paragraph, row, table, write_page

HOSTILE = '</title><script>alert("x")</script><img src=x onerror=alert(1)>'


class Reader(HTMLParser):
    """Collects elements, and checks that what was opened is closed."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID and tag != "path":
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag):
        if tag != "path":
            assert self.open.pop() == tag


@pytest.fixture
def files(tmp_path):
    picture, video = tmp_path / 'a"b<c>.png', tmp_path / "orbit.mp4"
    picture.write_bytes(b"\x89PNG picture")
    video.write_bytes(b"video bytes")
    return picture, video


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    return reader


def test_everything_is_inside_the_page(files):
    picture, video = files
    beside = row([media(picture, "a picture", width_px=64), media(video, "a video"), Html("<svg></svg>")])
    page = page_html("title", "subtitle", [Section("one", [paragraph("text"), beside, code("make demo")])])
    links = read(page).links
    assert len(links) == 2
    assert base64.b64decode(links[0].removeprefix("data:image/png;base64,")) == picture.read_bytes()
    assert base64.b64decode(links[1].removeprefix("data:video/mp4;base64,")) == video.read_bytes()
    assert not re.search(r"https?://", page)


def test_hostile_text_stays_text(files):
    blocks = [paragraph(HOSTILE), code(HOSTILE), media(files[0], HOSTILE), table([[HOSTILE], [HOSTILE]])]
    reader = read(page_html(HOSTILE, HOSTILE, [Section(HOSTILE, blocks)]))
    assert "script" not in reader.tags
    assert reader.tags.count("img") == 1


def test_marks_stand_before_their_rows():
    page = page_html("t", "s", [Section("x", [table([["name"], ["good"], ["bad"], ["plain"]], [True, False, None])])])
    assert '<b class="yes">✓</b> good' in page
    assert '<b class="no">✗</b> bad' in page
    assert "<td>plain</td>" in page


def test_other_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(DataError):
        media(tmp_path / "notes.txt", "no picture")
    with pytest.raises(InputMissingError):
        media(tmp_path / "missing.png", "no file")


def test_a_page_is_written_whole(tmp_path):
    write_page(tmp_path / "report.html", "Größe", "s", [])
    assert "Größe" in (tmp_path / "report.html").read_text(encoding="utf-8")
