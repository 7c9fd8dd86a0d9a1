import json

import pytest

from vq3dcli.export.page import page_html
from vq3dcli.pipelines.run_report.page import read_metrics
from vq3dcli.pipelines.studies.toy_runs import geometry_section, geometry_targets

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


def test_half_a_line_is_passed_over(tmp_path):
    text = "".join(json.dumps({"images_seen": 16 * i, "loss": 1.0 / (i + 1)}) + "\n" for i in range(9))
    (tmp_path / "metrics.jsonl").write_text(text + '{"images_seen": 160, "lo')
    assert [record["images_seen"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [16 * i for i in range(9)]


def test_good_figures_are_marked_good():
    page = page_html("figures", "", [geometry_section(GOOD)])
    assert page.count('class="yes"') == len(geometry_targets(GOOD)) == len(BAD)
    assert 'class="no"' not in page


@pytest.mark.parametrize("name", BAD)
def test_each_bad_figure_is_marked_bad(name):
    page = page_html("figures", "", [geometry_section({**GOOD, name: BAD[name]})])
    assert page.count('class="no"') == 1
    assert f"✗</b> {name}" in page
