"""The ablation of a tiny model: trained, drawn, continued with another seed, and what it says of known figures."""

import json

import pytest

from vq3dcli.cli import run
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.images import read_image
from vq3dcli.pipelines.studies.ablation import FIGURES, KINDS, Ablation, Plan, spread_of, verdict
from vq3dcli.pipelines.studies.ablation_figure import markdown, table
from vq3dcli.sealed import read_sealed_json, write_sealed_json

TINY = [
    *("model.image_size=16", "model.encoder_layers=1", "model.decoder_layers=1", "model.patch=4"),
    *("model.encoder_width=16", "model.encoder_heads=1", "model.decoder_width=16", "model.decoder_heads=1"),
    *("model.codebook_size=16", "model.field_hidden=8", "rendering.samples=4", "rendering.rays_per_image=16"),
]


def made(variance, gain, seeds=(0, 1)) -> Ablation:
    """Runs with given figures by loss, the second seed 10 % above the first."""
    runs = {}
    for kind in KINDS:
        found = dict.fromkeys(FIGURES, 1.0) | {"weight_variance": variance[kind], "novel_gain": gain[kind]}
        runs[kind] = {seed: {name: value * (1 + 0.1 * seed) for name, value in found.items()} for seed in seeds}
    none = {kind: dict.fromkeys(seeds, "ab") for kind in KINDS}
    return Ablation(Plan(), seeds, runs, {"template_spearman": 0.8}, none)


def test_the_verdict_says_what_was_found():
    gain = {"accumulated": -0.1, "pointwise": 0.5, "none": -0.8}
    held = made({"accumulated": 1e-2, "pointwise": 1e-4, "none": 6e-3}, gain)
    assert held.factors() == pytest.approx([100, 100])
    assert "100 times as large (100 to 100 seed by seed), at least the factor of 50" in verdict(held)[0]
    assert "+0.53 dB" in verdict(held)[1]
    assert "do not overlap" in verdict(held)[1]
    missed = made({"accumulated": 1e-3, "pointwise": 1e-4, "none": 6e-3}, dict.fromkeys(KINDS, 0.5))
    assert "10 times as large (10 to 10 seed by seed), short of the factor of 50" in verdict(missed)[0]
    alone = made({"accumulated": 1e-2, "pointwise": 1e-4, "none": 6e-3}, gain, seeds=(0,))
    assert "100 times as large, at least" in verdict(alone)[0]
    assert "overlap" not in verdict(alone)[1]
    assert verdict(missed)[1].endswith("first two overlap.")
    worse = made({"accumulated": 1e-2, "pointwise": 1e-4, "none": 6e-3}, gain | {"accumulated": 0.8})
    assert verdict(worse)[1].endswith("first two do not overlap.")


def test_the_table_has_mean_and_spread():
    result = made(dict.fromkeys(KINDS, 1e-3), dict.fromkeys(KINDS, 0.5))
    assert table(result)[1] == ["weight_variance", *["0.00105 (0.001 to 0.0011)"] * 3, None]
    assert next(row for row in table(result) if row[0] == "spearman")[-1] == 0.8
    assert result.summary()["none"]["novel_gain"]["std"] == pytest.approx(0.05 / 2**0.5)
    assert spread_of([2.0]) == {"mean": 2.0, "std": 0.0, "min": 2.0, "max": 2.0}
    page = markdown(result, "vq3d evaluate ablation")
    assert page.count("\n| ") == 2 + len(FIGURES)
    assert "(ablation.png)" in page and "| 0.8 |" in page


def test_recipes_differ_in_the_loss_alone_and_keep_their_shares():
    plan = Plan(images=5200)
    recipes = [plan.recipe(kind, 1) for kind in KINDS]
    whole = load_recipe("toy-cpu", Stage1Recipe, ["training.seed=1"])
    for kind, recipe in zip(KINDS, recipes, strict=True):
        loss = recipe.loss.model_copy(update={"depth_kind": "pointwise"})
        assert recipe.loss.depth_kind == kind
        assert recipe.model_copy(update={"loss": loss}) == recipes[1]
        assert recipe.training.images == 5200
        share = recipe.training.quantize_from_images / whole.training.quantize_from_images
        assert share == pytest.approx(5200 / whole.training.images, abs=0.01)


def test_runs_figure_and_pages(tmp_path, capsys):
    out = tmp_path / "figures"
    options = ["-o", str(out), "--images", "40", "--scenes", "16", "--count", "2", "--device", "cpu"]
    options += [word for text in TINY for word in ("--set", text)]
    assert run(["evaluate", "ablation", *options, "--seeds", "0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    metrics = result["metrics"]
    assert set(metrics["runs"]) == set(KINDS)
    assert set(metrics["summary"]["none"]) == set(FIGURES)
    conditions = metrics["conditions"]
    assert conditions["images_a_run"] == 40
    assert (conditions["scenes"]["count"], conditions["scenes"]["size_px"]) == (2, 16)
    assert "8 bits" in conditions["rendering"]
    assert set(conditions["weights_sha256"]) == set(KINDS)
    assert metrics.items() <= json.loads((out / "ablation.json").read_text()).items()
    for kind in KINDS:
        assert (out / "runs" / f"{kind}-0" / "report.html").is_file()
    _, height_px, width_px = read_image(out / "ablation.png").shape
    assert width_px == 2 + 10 * 34
    assert (height_px - 2 - 5 * (14 + 32 + 2)) % 14 == 0  # the first row's labels take several lines
    assert (out / "profiles.svg").read_text().startswith("<svg")
    page = (out / "ablation.html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    assert str(tmp_path) not in (out / "ablation.md").read_text() + page

    # Another seed trains three more runs and leaves the others as they are.
    weights = {kind: (out / "runs" / f"{kind}-0" / "weights.safetensors").stat().st_mtime_ns for kind in KINDS}
    assert run(["evaluate", "ablation", *options, "--seeds", "0,1", "--json"]) == 0
    both = json.loads(capsys.readouterr().out)["metrics"]
    assert both["runs"]["none"]["0"] == metrics["runs"]["none"]["0"]
    assert both["runs"]["none"]["1"] != metrics["runs"]["none"]["0"]
    for kind, before in weights.items():
        assert (out / "runs" / f"{kind}-0" / "weights.safetensors").stat().st_mtime_ns == before

    assert run(["evaluate", "ablation", *options, "--seeds", "0", "--images", "48"]) == 2
    assert "begun with other options" in capsys.readouterr().err
    # The same options by a version whose recipe is another one.
    record = out / "runs" / "plan.json"
    plan = read_sealed_json(record, what="plan", remedy="")
    plan["recipe"]["model"]["codebook_size"] = 32
    write_sealed_json(record, plan)
    assert run(["evaluate", "ablation", *options, "--seeds", "0"]) == 2
    assert "other recipes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override",
    ["loss.depth_kind=none", "loss.depth_order=1", "loss.novel_l2=1", "training.images=16", "training . seed=3"],
)
def test_what_the_ablation_sets_itself_is_refused(override, tmp_path, capsys):
    runs = tmp_path / "runs"
    options = ["-o", str(tmp_path / "o"), "--runs", str(runs), "--set", override]
    assert run(["evaluate", "ablation", *options]) == 2
    assert "the ablation itself sets" in capsys.readouterr().err
    assert not runs.exists()


@pytest.mark.parametrize("seeds", ["", "x", "0,0", "-1"])
def test_seeds_that_are_none(seeds, tmp_path, capsys):
    assert run(["evaluate", "ablation", "-o", str(tmp_path / "o"), f"--seeds={seeds}"]) == 2
    assert "--seeds" in capsys.readouterr().err
