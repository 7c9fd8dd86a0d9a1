"""`vq3d inspect` says what each kind of input is, and ends with 65 where something is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from vq3dcli.checkpoint import write_checkpoint
from vq3dcli.cli import run
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.images import decode_image, encode_jpeg
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.prepare import Options, image_job, open_source, prepare
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.model.build import build_autoencoder
from vq3dcli.pipelines.tokenize import tokenize
from vq3dcli.weights_file import load_weights, save_weights


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`toy` with labels, `photos`, `weights.safetensors`, `tokens`, and `run`."""
    folder = tmp_path_factory.mktemp("inspect")
    prepare_toyscenes(folder / "toy", count=5, size=16, seed=0, shard_size=2)
    label_exact(folder / "toy")
    for i in range(6):
        path = folder / "source" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jpeg(torch.full((3, 20 + i, 40), 40 * i, dtype=torch.uint8)) if i != 3 else b"text")
    listed = open_source("folder", folder / "source", folder / "photos")
    prepare(folder / "photos", image_job("folder", listed, Options(16), max_bad=0.5))
    small = ["image_size=16", "patch=4", "encoder_width=32", "decoder_width=32", "encoder_heads=2", "decoder_heads=2"]
    recipe = load_recipe("toy-cpu", Stage1Recipe, [f"model.{value}" for value in small])
    model = build_autoencoder(recipe)
    save_weights(folder / "weights.safetensors", model, recipe, {"licence": "CC0", "figures": {"psnr": 12.5}})
    tokenize(load_weights(folder / "weights.safetensors"), [folder / "toy"], folder / "tokens")
    (folder / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(folder / "weights.safetensors", folder / "run")
    write_checkpoint(folder / "run" / "checkpoints" / "000100", {"model": {"w": torch.ones(3)}}, {"images_seen": 100})
    return folder


def inspected(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict[str, object]:
    assert run(["inspect", *map(str, arguments), "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    return dict(found if code else found["metrics"])


def test_shards(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sheet = tmp_path / "new" / "sheet.png"
    found = inspected(capsys, inputs / "photos", "--verify", "--sheet", sheet)
    assert (found["is"], found["samples"], found["rejects"], found["problems"]) == ("shards", 5, 1, 0)
    assert found["rejected_because"] == {"cannot decode image": 1}
    assert found["classes"]["largest"] == {"a": 3, "b": 2}  # type: ignore[index]
    sizes = {"least": 20, "median": 22, "most": 25, "smaller_than_stored": 0.0}
    assert found["original_short_side_px"] == sizes
    assert decode_image(sheet.read_bytes(), name="sheet").shape[0] == 3
    found = inspected(capsys, inputs / "toy")
    assert found["labels"] == {"exact": "5 samples"}
    found = inspected(capsys, inputs / "toy" / "disparity" / "exact", "--sheet", sheet)
    assert (found["holds"], found["kinds"], found["sizes"]) == ("disparity labels", {"metric": 5}, {"16x16": 5})


def test_damage_ends_with_65_and_is_named(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = Path(shutil.copytree(inputs / "toy", tmp_path / "toy"))
    path = folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-700])
    (folder / "disparity" / "exact" / "plan.json").write_bytes(b"{}")
    found = inspected(capsys, folder, "--verify", code=65)
    text = " ".join(found["warnings"])  # type: ignore[arg-type]
    assert f"({path})" in text
    assert "cut: " in text
    assert f"({folder / 'disparity' / 'exact' / 'plan.json'})" in text
    (folder / "manifest.json").write_bytes(b"{")
    assert run(["inspect", str(folder)]) == 65
    assert run(["inspect", str(folder), "--verify"]) == 65
    assert "manifest.json" in capsys.readouterr().err


def test_a_file_that_only_vouches_is_missed(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = Path(shutil.copytree(inputs / "toy", tmp_path / "toy"))
    for name in ("SHA256SUMS", "manifest.json"):
        sound = (folder / name).read_bytes()
        (folder / name).unlink()
        found = inspected(capsys, folder, "--verify", code=65)
        assert f"missing ({folder / name})" in found["warnings"]  # type: ignore[operator]
        (folder / name).write_bytes(sound)


def test_tokens(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = inspected(capsys, inputs / "tokens", "--verify")
    assert (found["is"], found["images"], found["length"], found["sources"]) == ("tokens", 5, 16, {"toy": 5})
    folder = Path(shutil.copytree(inputs / "tokens", tmp_path / "tokens"))
    codes = bytearray((folder / "tokens.u16").read_bytes())
    codes[7] ^= 4
    (folder / "tokens.u16").write_bytes(codes)
    assert "tokens.u16" in " ".join(inspected(capsys, folder, "--verify", code=65)["warnings"])  # type: ignore[arg-type]


def test_weights_print_their_card(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = inspected(capsys, inputs / "weights.safetensors", "--verify")
    assert (found["is"], found["stage"], found["card"]) == (
        "weights",
        "stage1",
        {"licence": "CC0", "figures": {"psnr": 12.5}},
    )
    assert run(["inspect", str(inputs / "weights.safetensors")]) == 0
    assert "1 figures, shown by --json" in capsys.readouterr().out
    found = inspected(capsys, inputs / "run", "--verify")
    assert (found["is"], found["finished"], found["checkpoints"]) == ("run", True, {"000100": "sound"})
    assert inspected(capsys, inputs / "run" / "checkpoints" / "000100")["images_seen"] == 100
    run_folder = Path(shutil.copytree(inputs / "run", tmp_path / "run"))
    path = run_folder / "checkpoints" / "000100" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    found = inspected(capsys, run_folder, "--verify", code=65)
    assert "model.safetensors" in " ".join(found["warnings"])  # type: ignore[arg-type]


def test_a_photo_is_called_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF")
    assert run(["inspect", str(tmp_path / "photo.jpg")]) == 2
    assert "a picture, and nothing of vq3d" in capsys.readouterr().err


def test_embedded_weights(capsys: pytest.CaptureFixture[str]):
    found = inspected(capsys, "embedded")
    assert found["stage1"]["stage"] == "stage1"  # type: ignore[index]
    assert found["stage1"]["card"]  # type: ignore[index]
    assert found["stage2"]["fits_stage1"] is True  # type: ignore[index]


def test_a_card_reads_from_the_left(capsys: pytest.CaptureFixture[str]):
    """Its sentences are wider than any screen, and would push its figures off it."""
    assert run(["inspect", "embedded"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) <= 40 and max(map(len, shown)) <= 100  # a screen
    rows = [line.split(maxsplit=1) for line in shown if not line.startswith(" ")]
    assert "stage1.figures" in [name for name, _ in rows]
    longest = max(len(name) for name, _ in rows)
    assert [line for line in shown if not line.startswith(" ")] == [f"{n.ljust(longest)}  {v}" for n, v in rows]
    assert all(line[: longest + 2].isspace() for line in shown if line.startswith(" "))
    text = " ".join(line.strip() for line in shown)
    assert all(name in text for name in ("Scopia", "Wildfire Games", "CC-BY-SA-3.0"))  # credits are not cut


def test_what_cannot_be_inspected(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    unfinished = Path(shutil.copytree(inputs / "toy", tmp_path / "toy"))
    (unfinished / "manifest.json").unlink()
    (unfinished / "SHA256SUMS").unlink()
    (tmp_path / "pickle.pt").write_bytes(b"\x80\x04K\x01.")
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    cases = [
        (tmp_path / "none", 66),
        (unfinished, 66),
        (tmp_path / "empty", 2),
        (inputs / "toy" / "shard-000000.tar", 2),
        (tmp_path / "pickle.pt", 77),
        (tmp_path / "text.txt", 65),
    ]
    for path, code in cases:
        assert run(["inspect", str(path)]) == code, path
    assert capsys.readouterr().err.count("error: ") == len(cases)
    assert run(["inspect", str(inputs / "tokens"), "--sheet", str(tmp_path / "x.png")]) == 2


def test_a_sheet_replaces_pictures_alone(inputs: Path, tmp_path: Path):
    toy = Path(shutil.copytree(inputs / "toy", tmp_path / "toy"))
    shard, before = toy / "shard-000000.tar", (toy / "shard-000000.tar").read_bytes()
    (tmp_path / "link.png").symlink_to(shard)
    for sheet in (shard, tmp_path / "link.png"):
        assert run(["inspect", str(toy), "--sheet", str(sheet)]) == 2
    assert shard.read_bytes() == before
    for _ in range(2):
        assert run(["inspect", str(toy), "--sheet", str(tmp_path / "sheet.png")]) == 0
