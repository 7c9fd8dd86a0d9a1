import json

import pytest

from vq3dcli.cli import run
from vq3dcli.data.images import read_image


@pytest.fixture(autouse=True)
def no_weights_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_figures_page_and_sheet(tiny_weights, tmp_path, capsys):
    out = tmp_path / "figures"
    options = ["--weights", str(tiny_weights), "--count", "3", "--features", "none", "--device", "cpu", "-o", str(out)]
    assert run(["evaluate", "reconstruction", *options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["protocol"], result["count"]) == ("reconstruction-1, 16 px", 3)
    assert any("LPIPS is left out" in warning for warning in result["warnings"])
    metrics = result["metrics"]
    assert {"psnr", "ssim", "codes", "classes", "conditions"} <= set(metrics)
    kept = json.loads((out / "reconstruction.json").read_text())
    assert kept["conditions"] == metrics["conditions"]
    assert kept["weights"] == result["weights"]["sha256"]
    assert {"images", "rendering", "versions", "seed"} <= set(metrics["conditions"])
    page = (out / "reconstruction.html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    assert read_image(out / "reconstruction.png").shape[0] == 3


def test_features_that_are_not_installed_are_left_out_unless_asked_for(tiny_weights, monkeypatch, capsys):
    from vq3dcli.metrics import features

    monkeypatch.setitem(features.EFFICIENTNET_LITE, "efficientnet-lite1", ("no_such_package", "x.pth", "0" * 64, 240))
    options = ["evaluate", "reconstruction", "--weights", str(tiny_weights), "--count", "2", "--device", "cpu"]
    assert run([*options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert any("no_such_package" in warning for warning in result["warnings"])
    assert result["metrics"]["conditions"]["features"] is None
    assert run([*options, "--features", "efficientnet-lite1"]) == 69


@pytest.mark.parametrize(
    ("options", "code", "problem"),
    [
        (["--data", "nowhere"], 66, "no such data"),
        (["--data", __file__], 65, "not a data set ("),
        (["--features", "inception"], 69, "Inception"),
        (["--inception", "x.pth", "--features", "none"], 2, "--inception"),
        (["--lpips-weights", "none.pth"], 66, "none.pth"),
        (["--weights", "none"], 66, "none"),
    ],
)
def test_what_cannot_be_measured_is_one_line(options, code, problem, tiny_weights, capsys):
    given = [] if "--weights" in options else ["--weights", str(tiny_weights)]
    none = [] if {"--features", "--inception"} & set(options) else ["--features", "none"]
    assert run(["evaluate", "reconstruction", "--device", "cpu", *given, *none, *options]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: " in captured.err
    assert problem in captured.err.splitlines()[-1]


def test_parts_measure_the_whole_to_the_bit(tiny_weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vq3dcli.pipelines.evaluation.measured_set._BLOCK_IMAGES", 64)
    given = ["--device", "cpu", "--weights", str(tiny_weights), "--count", "150", "--lpips", "none"]
    given += ["--features", "none"]
    told = []
    for name, part in (("whole", "1/1"), ("parts", "2/2"), ("parts", "1/2")):
        options = ["--json", "--part", part, "-o", str(tmp_path / name)]
        assert run(["evaluate", "reconstruction", *given, *options]) == 0
        told.append(json.loads(capsys.readouterr().out)["metrics"])
    assert told[1] == {"part": "2/2"}
    assert told[2] == told[0]
    assert not list((tmp_path / "parts" / "statistics").glob("*block*"))
    sheets = [(tmp_path / name / "reconstruction.png").read_bytes() for name in ("whole", "parts")]
    assert sheets[0] == sheets[1]
    assert run(["evaluate", "reconstruction", *given, "--part", "1/2"]) == 2
    assert "-o FOLDER" in capsys.readouterr().err
