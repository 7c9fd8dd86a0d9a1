import json

import pytest

from vq3dcli.cli import run
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.images import read_image
from vq3dcli.model.build import build_autoencoder
from vq3dcli.weights_file import save_weights


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--weights", "no-such-file"], 66),
        (["--count", "0"], 2),
        (["--data", "photos"], 66),
        (["--labels", "exact"], 2),
    ],
)
def test_what_cannot_be_measured(arguments, code, capsys):
    assert run(["evaluate", "geometry", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


@pytest.fixture
def weights(tmp_path):
    shape = [
        "image_size=16",
        "encoder_width=32",
        "encoder_heads=1",
        "decoder_width=32",
        "decoder_heads=1",
        "encoder_layers=1",
        "decoder_layers=1",
        "codebook_size=16",
        "field_hidden=8",
    ]
    recipe = load_recipe("toy-cpu", Stage1Recipe, [f"model.{part}" for part in shape])
    path = tmp_path / "weights.safetensors"
    save_weights(path, build_autoencoder(recipe), recipe, {})
    return path


def test_weights_are_measured_and_shown(weights, tmp_path, capsys):
    out = tmp_path / "figures"
    options = ["--weights", str(weights), "--count", "3", "--device", "cpu", "--out", str(out), "--json"]
    assert run(["evaluate", "geometry", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["command"], result["count"], result["seed"]) == ("evaluate geometry", 3, 0)
    assert result["weights"]["path"] == str(weights)
    assert set(result["metrics"]) >= {
        *("psnr", "novel_psnr", "copy_psnr", "flat_psnr", "warp_psnr"),
        *("spearman", "ssi_error", "relief", "weight_variance"),
        *("template_psnr", "template_spearman", "template_ssi_error", "template_relief"),
    }
    assert len(result["metrics"]["view_psnr"]) == 6
    assert all(value is not None for value in result["metrics"].values())
    views = result["metrics"]["views"]
    assert set(views["10,0"]) == {"novel_psnr", "copy_psnr", "flat_psnr", "pivot_psnr", "warp_psnr"}
    assert result["metrics"]["conditions"]["weights_sha256"] == result["weights"]["sha256"]
    assert json.loads((out / "geometry.json").read_text())["conditions"] == result["metrics"]["conditions"]
    page = (out / "geometry.html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    assert read_image(out / "geometry.png").shape == (3, 2 + 6 * 18, 2 + 8 * 18)


def test_weights_for_another_camera_are_refused(tmp_path, capsys):
    recipe = load_recipe("toy-cpu", Stage1Recipe, ["camera.fov_deg=50", "model.image_size=16"])
    path = tmp_path / "weights.safetensors"
    save_weights(path, build_autoencoder(recipe), recipe, {})
    assert run(["evaluate", "geometry", "--weights", str(path), "--count", "1"]) == 2
    assert "another camera" in capsys.readouterr().err


def test_labels_of_shards_and_the_stereo_pair(weights, tmp_path, capsys):
    pytest.importorskip("skimage")
    shards, out = tmp_path / "shards", tmp_path / "figures"
    assert run(["prepare-data", "toyscenes", str(shards), "--count", "2", "--size", "16", "--quiet"]) == 0
    options = ["evaluate", "geometry", "--weights", str(weights), "--device", "cpu", "--json"]
    assert run([*options, "--data", str(shards)]) == 66
    assert "no finished disparity labels" in capsys.readouterr().err
    assert run(["depth-labels", str(shards), "--model", "exact", "--quiet"]) == 0
    capsys.readouterr()
    assert run([*options, "--data", str(shards), "-o", str(out)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["protocol"], result["count"]) == ("geometry-labels-2, 16 px", 2)
    assert {"spearman", "template_spearman", "reprojection_error", "nfs"} <= set(result["metrics"])
    assert str(tmp_path) not in json.dumps(result["metrics"])
    assert (out / "geometry.html").is_file()
    assert run([*options, "--data", "stereo"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"right_psnr", "copy_psnr", "warp_psnr", "spearman"} <= set(result["metrics"])
    assert len(result["metrics"]["conditions"]["files_sha256"]) == 3
