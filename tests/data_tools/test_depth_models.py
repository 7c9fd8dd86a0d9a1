"""Labels by tiny random networks of two families and by a tiny ONNX file, all made here and read offline."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from vq3dcli.cli import run
from vq3dcli.data.images import to_square
from vq3dcli.data.loader import TrainingLoader
from vq3dcli.data.shard_reader import ShardFolder, decode_disparity
from vq3dcli.data_tools.depth.labels import label_by_model
from vq3dcli.data_tools.depth.models import DepthModel, find_model, open_model, to_disparity
from vq3dcli.data_tools.depth.transformers import known_meaning
from vq3dcli.data_tools.part import Part
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.errors import DataError, InputMissingError, UnavailableError, UnsafeFileError, UsageError
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.pipelines.film import Shot
from vq3dcli.pipelines.geometry import geometry_of_network, user_s
from vq3dcli.pipelines.inputs import OpenedScene
from vq3dcli.pipelines.render import Look, staged
from vq3dcli.scene_file import camera_of
from vq3dcli.weights_file import load_weights

transformers = pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CPU = torch.device("cpu")
FLAT = DepthModel(lambda images: torch.ones(len(images), *images.shape[2:]), "disparity", {"backend": "none"})


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """No test asks the network: every proxy is a closed port, and the Hub's cache is an empty folder."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def saved(folder: Path, model: torch.nn.Module, processor: object) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():  # their own initialisation gives constant maps
            torch.nn.init.normal_(parameter, std=0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    model.save_pretrained(folder)  # type: ignore[operator]
    processor.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


@pytest.fixture(scope="module")
def dpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        use_auxiliary_head=False,
    )
    processor = transformers.DPTImageProcessor(size={"height": 32, "width": 32})
    return saved(tmp_path_factory.mktemp("models") / "tiny-dpt", transformers.DPTForDepthEstimation(config), processor)


@pytest.fixture(scope="module")
def depth_anything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A metric one."""
    backbone = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=28,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        depth_estimation_type="metric",
        max_depth=20,
    )
    processor = transformers.DPTImageProcessor(size={"height": 28, "width": 28}, ensure_multiple_of=14)
    folder = tmp_path_factory.mktemp("models") / "tiny-depth-anything"
    return saved(folder, transformers.DepthAnythingForDepthEstimation(config), processor)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize("family", ["dpt", "depth_anything"])
def test_labels_are_the_networks_disparity(
    archives: ModuleType, family: str, fresh: Path, request: pytest.FixtureRequest
):
    folder: Path = request.getfixturevalue(family)
    network = open_model(find_model(str(folder)), CPU)
    assert network.facts["family"] == family
    assert network.meaning == {"dpt": "disparity", "depth_anything": "depth"}[family]
    manifest = label_by_model(fresh, network, "tiny", batch_size=3)
    assert manifest is not None
    assert manifest.num_samples == 11
    assert manifest.options["sha256"] == network.facts["sha256"]

    labels = ShardFolder(fresh / "disparity" / "tiny")
    model = transformers.AutoModelForDepthEstimation.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        raw = model(**processor(images=list(archives.images_of(fresh)), return_tensors="pt")).predicted_depth
    for i in range(labels.num_samples):
        members = labels.read(i)
        label = decode_disparity(members["disparity.npy"], members["disparity.json"], name="x")
        expected = raw[i] if family == "dpt" else 1.0 / raw[i].clamp(min=0.02 * float(raw[i].median()))
        assert label.info.kind == "relative"
        extent = label.info.hi - label.info.lo
        assert extent > 0
        assert (label.values - expected.clamp(label.info.lo, label.info.hi)).abs().max() <= 1e-3 * extent


@pytest.mark.parametrize(
    ("config", "meaning"),
    [
        ({"model_type": "dpt"}, "disparity"),
        ({"model_type": "dpt", "backbone_config": {"model_type": "bit"}}, "disparity"),
        ({"model_type": "dpt", "backbone_config": {"model_type": "dinov2"}}, None),
        ({"model_type": "dpt", "backbone": "facebook/dinov2-small"}, None),
        ({"model_type": "dpt", "add_projection": True}, None),
        ({"model_type": "depth_anything", "backbone_config": {"model_type": "dinov2"}}, "disparity"),
        ({"model_type": "depth_anything", "depth_estimation_type": "metric"}, "depth"),
        ({"model_type": "zoedepth"}, "depth"),
        ({"model_type": "new"}, None),
    ],
)
def test_what_the_numbers_mean_is_known_or_asked_for(config: dict[str, object], meaning: str | None):
    assert known_meaning(config) == meaning


def test_heads_on_dinov2_need_predicts(dpt: Path, tmp_path: Path):
    folder = Path(shutil.copytree(dpt, tmp_path / "dpt-dinov2-nyu"))
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"add_projection": True}))
    with pytest.raises(UsageError, match="--predicts depth"):
        open_model(find_model(str(folder)), CPU)


@pytest.mark.parametrize("scale", [1.0, 0.01, 300.0])
def test_depth_of_any_unit_becomes_the_same_disparity(scale: float):
    depth = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.1
    disparity = to_disparity(depth * scale, "depth")
    assert torch.allclose(disparity * scale, 1 / depth)
    depth[0, 3, 3] = 0.0
    assert to_disparity(depth * scale, "depth").isfinite().all()


def test_padding_is_taken_off_the_maps_of_zoedepth(archives: ModuleType, shards: Path, tmp_path: Path):
    backbone = transformers.BeitConfig(
        image_size=64,
        num_hidden_layers=4,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = transformers.ZoeDepthConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[16, 16, 16, 16],
        fusion_hidden_size=16,
        bottleneck_features=16,
        num_relative_features=8,
        bin_embedding_dim=8,
        num_attractors=[4, 2, 2, 1],
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
    )
    processor = transformers.ZoeDepthImageProcessor(size={"height": 64, "width": 64})
    folder = saved(tmp_path / "tiny-zoe", transformers.ZoeDepthForDepthEstimation(config), processor)
    network = open_model(find_model(str(folder)), CPU)
    assert network.meaning == "depth"
    images = archives.images_of(shards)[:2]
    assert processor(images=list(images), return_tensors="pt")["pixel_values"].shape == (2, 3, 64, 64)
    whole = network.predict(images)
    assert whole.shape[1] == whole.shape[2] < 64
    assert whole.isfinite().all()  # random weights keep to no range
    assert whole.min() > 0


def test_killed_parts_and_ranks_give_the_same_bytes(dpt: Path, fresh: Path, shards: Path, tmp_path: Path):
    network = open_model(find_model(str(dpt)), CPU)
    label_by_model(fresh, network, "tiny", batch_size=3)
    whole = contents(fresh / "disparity" / "tiny")
    other = Path(shutil.copytree(shards, tmp_path / "other"))
    assert label_by_model(other, network, "tiny", batch_size=3, part=Part(1, 2)) is None
    assert label_by_model(other, network, "tiny", batch_size=3, part=Part(0, 2)) is not None
    assert contents(other / "disparity" / "tiny") == whole
    (fresh / "disparity" / "tiny" / "shard-000001.tar").unlink()
    (fresh / "disparity" / "tiny" / "manifest.json").unlink()
    label_by_model(fresh, network, "tiny", batch_size=3)
    assert contents(fresh / "disparity" / "tiny") == whole
    with pytest.raises(UsageError, match="size was 32, is 16"):
        label_by_model(fresh, network, "tiny", size=16, batch_size=3)


def test_flagged_labels_are_counted_and_passed_over_in_training(archives: ModuleType, fresh: Path, tmp_path: Path):
    network = open_model(find_model(str(archives.onnx_file(tmp_path / "net.onnx", ["n", 3, 32, 32]))), CPU)
    flagged: Counter[str] = Counter()
    label_by_model(fresh, network, "net", flagged=flagged)
    before = flagged.copy()
    assert before.total() < 6

    label_by_model(fresh, FLAT, "flat", flagged=flagged)
    assert flagged - before == {"constant": 11}
    for name, unlabelled in (("net", before.total()), ("flat", 11)):
        loader = TrainingLoader([fresh], labels=name, batch_size=11, size=32, seed=0, flip=False, crop=False)
        assert (loader.batch_at(0).label_kind == 0).sum() == unlabelled


def test_a_network_that_sees_nothing_ends_the_run(tmp_path: Path):
    prepare_toyscenes(tmp_path / "toy", count=40, size=16, seed=0)
    with pytest.raises(DataError, match="40 of 40 labels of a shard are of no use"):
        label_by_model(tmp_path / "toy", FLAT, "flat")


def test_a_network_that_fails_leaves_no_folder(fresh: Path):
    def fail(images: torch.Tensor) -> torch.Tensor:
        raise DataError("depth model fails")

    with pytest.raises(DataError):
        label_by_model(fresh, DepthModel(fail, "disparity", {}), "failing")
    assert not (fresh / "disparity" / "failing").exists()


def test_a_model_that_is_not_there_says_what_to_fetch_and_where_to_put_it(
    fresh: Path, capsys: pytest.CaptureFixture[str]
):
    name = "depth-anything/Depth-Anything-V2-Small-hf"
    assert run(["depth-labels", str(fresh), "--model", name]) == 69
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"depth model is not on this machine ({name})" in line
    assert f"hf download {name} --local-dir models/Depth-Anything-V2-Small-hf" in line
    assert "--model models/Depth-Anything-V2-Small-hf" in line
    with pytest.raises(InputMissingError, match="no such depth model"):
        find_model("models/none.onnx")
    with pytest.raises(InputMissingError, match="no such depth model"):
        find_model("./none")
    with pytest.raises(UnavailableError, match="not on this machine"):
        find_model("dpt")


def test_damaged_and_unsafe_models(archives: ModuleType, dpt: Path, tmp_path: Path):
    def copy(name: str) -> Path:
        return Path(shutil.copytree(dpt, tmp_path / name))

    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputMissingError, match=r"config\.json is missing"):
        open_model(find_model(str(empty)), CPU)
    pickled = copy("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match="pickle"):
        open_model(find_model(str(pickled)), CPU)
    cut = copy("cut")
    (cut / "model.safetensors").write_bytes((dpt / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot load a depth model"):
        open_model(find_model(str(cut)), CPU)
    incomplete = copy("incomplete")
    from safetensors.torch import load_file, save_file

    tensors = load_file(dpt / "model.safetensors")
    save_file(dict(sorted(tensors.items())[3:]), incomplete / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="3 tensors are missing"):
        open_model(find_model(str(incomplete)), CPU)
    own_code = copy("own-code")
    config = json.loads((own_code / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForDepthEstimation": "mine.M"}}
    (own_code / "config.json").write_text(json.dumps(config))
    (own_code / "mine.py").write_text("raise SystemExit('executed')")
    with pytest.raises(UsageError, match="model type mine"):
        open_model(find_model(str(own_code)), CPU)
    with pytest.raises((UnsafeFileError, DataError)):
        open_model(find_model(str(own_code)), CPU, meaning="depth")
    for text in (b"", b"text", archives.onnx_file(tmp_path / "whole.onnx", ["n", 3, 8, 8]).read_bytes()[:-9]):
        (tmp_path / "bad.onnx").write_bytes(text)
        with pytest.raises(DataError, match=r"bad\.onnx"):
            open_model(find_model(str(tmp_path / "bad.onnx")), CPU)
    with pytest.raises(UsageError, match="takes images of 8 pixels"):
        open_model(find_model(str(tmp_path / "whole.onnx")), CPU, input_px=16)
    np.savez(tmp_path / "x.npz", a=1)
    with pytest.raises(UsageError, match="not a depth model"):
        find_model(str(tmp_path / "x.npz"))


def test_render_takes_the_same_networks(dpt: Path, tiny_weights: Path) -> None:
    weights = load_weights(tiny_weights)
    photo = torch.randint(0, 256, (3, 32, 48), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    scene = reconstruct_scene(weights.model, to_square(photo, 16, fit="squash")[None])
    facts = camera_of(weights, 1.5)
    opened = OpenedScene(scene, photo, "photo", facts, {})
    geometry = geometry_of_network(str(dpt), CPU)
    shown, camera = staged(opened, Shot(view_deg=(0.0, 0.0)), Look(geometry=geometry), detail="photo")
    expected = user_s(geometry.network.predict(photo[None])[0], facts, name="photo")
    resized = torch.nn.functional.interpolate(expected[None, None], size=(32, 48), mode="bilinear", antialias=True)
    assert (shown(camera).s[0] - resized[0, 0]).abs().mean() < 0.01
    assert expected.std() > 0.05


def test_remedies_of_render_are_its_own_options():
    with pytest.raises(UnavailableError) as caught:
        geometry_of_network("nobody/nothing", CPU)
    assert "--download" not in str(caught.value) and "--depth-model models/nothing" in str(caught.value)
