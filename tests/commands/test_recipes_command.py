"""The recipes commands: thin, parseable, and careful with files that are there."""

import json

import pytest

from vq3dcli.cli import run
from vq3dcli.config.load import recipe_names, recipes_folder


def result(capsys, *arguments):
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_ls(capsys):
    listed = result(capsys, "recipes", "ls")
    assert list(listed["metrics"]) == recipe_names()
    assert listed["metrics"]["imagenet256"]["tokens"] == 1024
    assert run(["recipes", "ls"]) == 0
    assert "imagenet256" in capsys.readouterr().out


def test_show_prints_the_file(capsys):
    assert run(["recipes", "show", "demo64"]) == 0
    assert capsys.readouterr().out == (recipes_folder() / "demo64.toml").read_text()
    assert result(capsys, "recipes", "show", "demo64")["metrics"]["model"]["image_size"] == 64


def test_copy_and_diff(tmp_path, capsys):
    mine = tmp_path / "mine.toml"
    assert result(capsys, "recipes", "copy", "toy-cpu", str(mine))["outputs"] == [str(mine)]
    assert run(["recipes", "copy", "toy-cpu", "--out", str(mine)]) == 73
    assert "--force" in capsys.readouterr().err
    assert run(["recipes", "diff", "toy-cpu", str(mine)]) == 0
    assert capsys.readouterr().out == "no difference\n"
    mine.write_text(mine.read_text().replace("patch = 8", "patch = 4"))
    changed = result(capsys, "recipes", "diff", "toy-cpu", str(mine))
    assert changed["metrics"] == {"model.patch": {"before": 8, "after": 4}}


def test_diff_shows_values_in_full(tmp_path, capsys):
    mine = tmp_path / "mine.toml"
    text = (recipes_folder() / "imagenet256.toml").read_text()
    assert "500_000.0" in text
    mine.write_text(text.replace("500_000.0", "500_050.0").replace('space = "frustum"', 'space = "contracted"'))
    assert run(["recipes", "diff", "imagenet256", str(mine)]) == 0
    _, space, half_life = capsys.readouterr().out.splitlines()
    assert space.split() == ["model.space", "'frustum'", "'contracted'"]
    assert half_life.split() == ["training.ema_half_life_images", "500000.0", "500050.0"]


def test_validate(tmp_path, capsys):
    assert result(capsys, "recipes", "validate")["count"] == len(recipe_names())
    bad = tmp_path / "bad.toml"
    bad.write_text("kind = 3\n")
    assert run(["recipes", "validate", "toy-cpu", str(bad)]) == 78
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["show", "no-such"], 66),
        (["diff", "toy-cpu", "no-such.toml"], 66),
        (["copy", "toy-cpu"], 2),
        (["copy", "toy-cpu", "a.toml", "--out", "b.toml"], 2),
        (["validate", "toy-cp"], 66),
        ([], 2),
    ],
)
def test_what_cannot_be_done(arguments, code, capsys):
    assert run(["recipes", *arguments]) == code
    assert capsys.readouterr().out == ""
