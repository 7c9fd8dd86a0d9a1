"""A run's page: whole, self-contained, honest about what is missing, and safe whatever the folder holds."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from vq3dcli.config.load import dump_recipe
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.data.images import decode_image, encode_png
from vq3dcli.errors import InputMissingError, OutputError
from vq3dcli.pipelines.run_report.page import write_run_report

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'
SECTIONS = [
    "The run",
    "Health",
    "Newest pictures",
    "Losses and reconstruction",
    "Geometry",
    "Codes",
    "Discriminators",
    "Steps",
]


class Reader(HTMLParser):
    """Elements, sources and text; checks that what was opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.titles: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "path"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag != "path":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def record(images_seen: int, **figures: Any) -> dict[str, Any]:
    return {
        "images_seen": images_seen,
        "loss": 0.1,
        "l2": 0.04,
        "l1": 0.1,
        "depth": 0.01,
        "commitment": 0.03,
        "chroma_ratio": 0.9,
        "weight_variance": 1e-3,
        "relief": 0.95,
        "perplexity": 160.0,
        "learning_rate": 1e-3,
        "gradient_norm": 0.3,
        "quantizing": True,
        "images_per_second": 16.0,
        **figures,
    }


def fill(
    run: Path, records: list[dict[str, Any]], recipe: Stage1Recipe | Stage2Recipe, sheets: int = 5, width_px: int = 24
) -> None:
    (run / "sheets").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (run / "recipe.toml").write_text(dump_recipe(recipe))
    (run / "run.json").write_text(json.dumps({"samples": 2000, "labels": "exact"}))
    for number in range(1, sheets + 1):
        picture = torch.full((3, width_px // 2, width_px), 40 * number, dtype=torch.uint8)
        (run / "sheets" / f"images-{4000 * number:012d}.png").write_bytes(encode_png(picture))


def page_of(run: Path) -> str:
    path = write_run_report(run)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Stage1Recipe]) -> Stage1Recipe:
    return tiny_recipe("training.images=16000", "model.codebook_size=512")


def test_a_run_has_every_section_and_stands_alone(recipe: Stage1Recipe, tmp_path: Path) -> None:
    run = tmp_path / "toys"
    fill(run, [record(1000 * i) for i in range(1, 9)], recipe)
    page = page_of(run)
    reader = Reader(page)
    assert reader.titles == [*SECTIONS, "Recipe"]
    for title in ("PSNR of training rays, dB", "perplexity / codes", "relief", "weight variance", "learning rate"):
        assert f'aria-label="{title}"' in page
    assert "Content-Security-Policy" in page and "default-src &#x27;none&#x27;" in page.replace("'", "&#x27;")
    assert not re.search(r"https?://|//[a-z]", re.sub(r"data:[^\"]*", "", page))
    assert len(reader.sources) == 3 and all(source.startswith("data:image/") for source in reader.sources)
    assert "images-000000020000" in page and "images-000000004000" not in page
    assert "none has spoken in 8 records" in page
    assert "This run has no discriminators." in page
    assert "8000 of 16000 images (50%)" in page
    assert "samples</td><td>2000" in page
    assert "8 min" in page  # 8000 images at 16 a second
    assert "kind = &quot;stage1&quot;" in page


def test_psnr_is_of_colours_from_minus_one_to_one(recipe: Stage1Recipe, tmp_path: Path) -> None:
    fill(tmp_path / "run", [record(1000, l2=0.04), record(2000, l2=0.04)], recipe)
    svg = next(part for part in page_of(tmp_path / "run").split("<svg") if "PSNR of training rays" in part)
    assert 'text-anchor="end">20</text>' in svg  # 10 log10(4 / 0.04)


def test_a_finished_run_says_so(recipe: Stage1Recipe, tmp_path: Path) -> None:
    fill(tmp_path, [record(16000)], recipe)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    assert "finished: 16000 images" in page_of(tmp_path)


def test_warnings_stand_with_cause_and_remedy(recipe: Stage1Recipe, tmp_path: Path) -> None:
    values = [0.95] * 3 + [0.07] * 5 + [0.95] * 5
    series = [record(1000 * (i + 1), relief=v, weight_variance=0.04 if i > 5 else 1e-3) for i, v in enumerate(values)]
    fill(tmp_path, series, recipe)
    page = page_of(tmp_path)
    assert "<td>flat geometry</td><td>7k</td><td>12k</td>" in page
    assert "a flat wall with the picture painted on it" in page
    assert '<b class="no">✗</b> floaters</td><td>11k</td><td></td>' in page


def test_discriminators_have_curves_when_they_play(
    tiny_recipe: Callable[..., Stage1Recipe], recipe: Stage1Recipe, tmp_path: Path
) -> None:
    playing = {"adversarial_main_accuracy": 0.8, "adversarial_novel_real_score": 0.4}
    fill(tmp_path / "a", [record(100), record(200, **playing)], recipe)
    page = page_of(tmp_path / "a")
    assert all(f'aria-label="{name}"' in page for name in playing)
    waiting = tiny_recipe(
        "adversarial.main=0.1", "adversarial.size_px=16", "adversarial.start_images=32", "adversarial.minibatch_group=1"
    )
    fill(tmp_path / "b", [record(8)], waiting)
    assert "The discriminators have not started." in page_of(tmp_path / "b")


def test_the_order_loss_stands_beside_the_depth_loss_where_it_is_on(
    tiny_recipe: Callable[..., Stage1Recipe], recipe: Stage1Recipe, tmp_path: Path
) -> None:
    fill(tmp_path / "off", [record(100), record(200)], recipe)
    assert "depth_order 0" not in page_of(tmp_path / "off")
    fill(
        tmp_path / "on",
        [record(n, depth_order=0.2) for n in (100, 200)],
        tiny_recipe("loss.depth=3", "loss.depth_order=2"),
    )
    page = page_of(tmp_path / "on")
    assert "depth 3.0, depth_order 2.0" in page and 'aria-label="depth order"' in page


def test_novel_views_have_a_section_where_they_are_trained_on(
    tiny_recipe: Callable[..., Stage1Recipe], recipe: Stage1Recipe, tmp_path: Path
) -> None:
    fill(tmp_path / "off", [record(100), record(200)], recipe)
    assert "Novel views" not in Reader(page_of(tmp_path / "off")).titles
    records = [record(n, novel_l2=0.04, novel_depth=0.2, novel_views=0.5) for n in (100, 200)]
    fill(tmp_path / "on", records, tiny_recipe("loss.novel_l2=1", "loss.novel_depth=2"), sheets=1)
    page = page_of(tmp_path / "on")
    assert "Novel views" in Reader(page).titles and "novel_l2 1.0, novel_depth 2.0" in page
    titles = ("PSNR of rays of novel views, dB", "L2 at novel views", "depth at novel views", "novel views an image")
    assert all(f'aria-label="{title}"' in page for title in titles)
    assert "an exact view, where there is one: rendered, true." in page
    # 10 log10(4 / 0.04), which the curve's last point says.
    assert ">20<" in page


def test_figures_that_no_section_names_are_shown_too(recipe: Stage1Recipe, tmp_path: Path) -> None:
    fill(tmp_path, [record(100, grace=0.5), record(200, grace=0.6)], recipe)
    page = page_of(tmp_path)
    assert "Other figures" in Reader(page).titles
    assert 'aria-label="grace"' in page


def test_wide_sheets_are_embedded_smaller(recipe: Stage1Recipe, tmp_path: Path) -> None:
    fill(tmp_path, [record(100)], recipe, sheets=1, width_px=2600)
    [source] = Reader(page_of(tmp_path)).sources
    assert decode_image(base64.b64decode(source.split(",")[1]), name="sheet").shape == (3, 520, 1040)


def test_unknown_relief_is_a_gap(recipe: Stage1Recipe, tmp_path: Path) -> None:
    unknown = [record(1000 * i) for i in range(1, 12)]
    for line in unknown:
        line.pop("relief", None)
    fill(tmp_path, unknown, recipe)
    page = page_of(tmp_path)
    assert 'aria-label="relief"' not in page
    assert "none has spoken" in page


@pytest.mark.parametrize("lines", ["", '{"images_seen": 320, "lo', '{"images_seen": 320}\n{"images_s'])
def test_an_interrupted_run_has_a_page(lines: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(lines)
    page = page_of(tmp_path)
    assert Reader(page).titles == [*SECTIONS, "Recipe"]
    assert "There are no figures yet." in page and "There are no pictures yet." in page
    assert "Not judged" in page


def test_damage_is_shown_and_not_fatal(recipe: Stage1Recipe, tmp_path: Path) -> None:
    fill(tmp_path, [record(100)], recipe, sheets=2)
    huge = "9" * 400
    (tmp_path / "metrics.jsonl").write_text(
        f'{{"images_seen": {huge}, "loss": 1}}\n[1]\n{{"images_seen": "x"}}\n{{"images_seen": NaN}}\n'
        f'{{"images_seen": 100, "loss": {huge}, "l2": NaN, "l1": null}}\n'
        f'{{"images_seen": 50, "loss": 1.0}}\n{{"images_seen": 200, "loss": 0.5, "l2": -Infinity, "l1": "text"}}\n'
    )
    (tmp_path / "run.json").write_text("[")
    (tmp_path / "sheets" / "images-000000008000.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    page = page_of(tmp_path)
    Reader(page)
    assert "A sheet is left out" in page
    assert "images-000000004000" in page


def test_hostile_names_stay_text(recipe: Stage1Recipe, tmp_path: Path) -> None:
    run = tmp_path / "<script>alert(1)<"
    fill(run, [record(100, **{HOSTILE: 1.0, f"adversarial_{HOSTILE}": 2.0})] * 2, recipe)
    (run / "sheets" / "images-9<img src=x onerror=y>.png").write_bytes(
        encode_png(torch.zeros(3, 4, 8, dtype=torch.uint8))
    )
    (run / "run.json").write_text(json.dumps({HOSTILE: HOSTILE, "b": {HOSTILE: [HOSTILE]}}))
    (run / "recipe.toml").write_text(f'kind = "stage1"  # </pre>{HOSTILE}\n')
    reader = Reader(page_of(run))
    assert "script" not in reader.tags
    assert reader.tags.count("img") == 3


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="no such run"):
        write_run_report(tmp_path / "missing")


def test_a_page_that_cannot_be_written_is_named(recipe: Stage1Recipe, tmp_path: Path) -> None:
    fill(tmp_path, [record(100)], recipe)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError):
        write_run_report(tmp_path)


def prior_record(images_seen: int, held_out: float | None = None, unigram: float = 5.0) -> dict[str, Any]:
    judged = {} if held_out is None else {"held_out_bits": held_out, "held_out_share": held_out / unigram}
    return {"images_seen": images_seen, "bits": 3.0, "gradient_norm": 0.3, "learning_rate": 1e-3, **judged}


def test_a_prior_s_page_has_its_own_sections(tiny_prior_recipe: Callable[..., Stage2Recipe], tmp_path: Path) -> None:
    records = [prior_record(8), prior_record(16, 3.6), *(prior_record(16 + 8 * i, 4.5) for i in range(1, 5))]
    fill(tmp_path, records, tiny_prior_recipe(), sheets=1)
    rows = {"ant": {"images": 4, "bits": 3.0, "unigram_bits": 5.0}, HOSTILE: {"images": 1, "bits": 4.0}}
    table = {"images_seen": 64, "images": 5, "bits": 3.2, "unigram_bits": 4.8, "classes": rows}
    (tmp_path / "held_out.json").write_text(json.dumps(table))
    page = page_of(tmp_path)
    reader = Reader(page)
    titles = ["The run", "Health", "Newest pictures", "Bits a code", "Steps", "Held-out images by class", "Recipe"]
    assert reader.titles == titles
    assert "script" not in reader.tags
    assert "<td>all</td><td>5</td><td>3.200</td><td>4.800</td><td>66.7%</td>" in page
    assert page.index("4.000") < page.index("<td>ant</td>")  # the worst first
    assert "overfitting" in page
    assert "vq3d tokenize --views 2" in page
    for name in ("bits a code, training", "bits a code, held out", "held out / counting"):
        assert f'aria-label="{name}"' in page


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", '{"classes": 3}', '{"classes": {"a": 1}}', "\xff"])
def test_damaged_figures_of_held_out_images_are_left_out(
    tiny_prior_recipe: Callable[..., Stage2Recipe], tmp_path: Path, text: str
) -> None:
    fill(tmp_path, [prior_record(8)], tiny_prior_recipe())
    (tmp_path / "held_out.json").write_bytes(text.encode("latin-1"))
    assert "Held-out images by class" not in Reader(page_of(tmp_path)).titles
