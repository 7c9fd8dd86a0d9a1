import json

import pytest
import torch

from vq3dcli.data.images import encode_png
from vq3dcli.export.page import page_html
from vq3dcli.pipelines.run_report.curves import read_metrics
from vq3dcli.pipelines.studies.report import GEOMETRY_TARGETS, geometry_section, training_section

GOOD = {
    "psnr": 22.5,
    "novel_psnr": 20.3,
    "copy_psnr": 19.8,
    "flat_psnr": 18.0,
    "warp_psnr": 27.0,
    "spearman": 0.93,
    "ssi_error": 0.15,
    "relief": 0.95,
    "weight_variance": 1e-4,
    "template_spearman": 0.75,
    "template_ssi_error": 0.39,
}
BAD = {
    "psnr": 21.9,
    "novel_psnr": 19.8,
    "spearman": 0.79,
    "ssi_error": 0.23,
    "relief": 1.3,
    "weight_variance": 6e-4,
}


@pytest.fixture
def run(tmp_path):
    records = [
        {"images_seen": 16 * i, "loss": 1.0 / (i + 1), "perplexity": 3.0 * i, "quantizing": i > 4} for i in range(9)
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(text + '{"images_seen": 160, "lo')
    (tmp_path / "sheets").mkdir()
    for number in range(7):
        (tmp_path / "sheets" / f"images-{number:06d}.png").write_bytes(
            encode_png(torch.zeros(3, 4, 4, dtype=torch.uint8))
        )
    (tmp_path / "recipe.toml").write_text('kind = "stage1"  # <b>\n')
    return tmp_path


def test_half_a_line_is_passed_over(run):
    assert [record["images_seen"] for record in read_metrics(run / "metrics.jsonl")] == [16 * i for i in range(9)]


def test_a_run_becomes_curves_and_sheets(run):
    page = page_html("run", "", [training_section(run, "Training", "")])
    assert page.count("<svg") == 2
    assert page.count("<img") == 4
    assert "images-000000" in page
    assert "images-000006" in page
    assert "&lt;b&gt;" in page


def test_an_empty_run_has_a_section_too(tmp_path):
    assert "no metrics yet" in page_html("run", "", [training_section(tmp_path, "Training", "")])


def test_good_figures_are_marked_good():
    page = page_html("figures", "", [geometry_section(GOOD)])
    assert page.count('class="yes"') == len(GEOMETRY_TARGETS)
    assert 'class="no"' not in page


@pytest.mark.parametrize("name", [target.name for target in GEOMETRY_TARGETS])
def test_each_bad_figure_is_marked_bad(name):
    page = page_html("figures", "", [geometry_section({**GOOD, name: BAD[name]})])
    assert page.count('class="no"') == 1
    assert f"✗</b> {name}" in page
