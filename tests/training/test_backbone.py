"""A backbone of transformers as the encoder of the depth network: its maps, a run from its folder to its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_depth import Scenes, tiny
from vq3dcli.errors import DataError, InputMissingError, RecipeError, StoppedError, UnsafeFileError
from vq3dcli.model.backbone import Backbone, backbone_config
from vq3dcli.training import depth
from vq3dcli.weights_file import load_depth

transformers = pytest.importorskip("transformers")

NETWORKS = {
    "dinov2": {"hidden_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2, "patch_size": 14, "image_size": 28},
    "convnextv2": {"hidden_sizes": [4, 8, 8, 8], "depths": [1, 1, 1, 1]},
}


@pytest.fixture(params=NETWORKS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny network as the Hub has it: a whole model, with its preprocessor."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(request.param, **NETWORKS[request.param])
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "net")
    said = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    (tmp_path / "net/preprocessor_config.json").write_text(json.dumps(said))
    return tmp_path / "net"


def test_maps_are_those_of_transformers(folder: Path) -> None:
    ours = Backbone(backbone_config(folder)).eval()
    ours.load_folder(folder)
    family = json.loads((folder / "config.json").read_text())["model_type"]
    side = 70 if family == "dinov2" else 64  # 64 is shown as five patches of 14
    images = 255.0 * torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    whole = transformers.AutoModel.from_pretrained(folder).eval()
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3]))
    with torch.no_grad():
        found = ours(images)
        last = whole((images / 255.0 - mean) / std).last_hidden_state
    if family == "dinov2":  # without the token of the class
        last = last[:, 1:].unflatten(1, (5, 5)).movedim(-1, 1)
    else:
        last = torch.nn.functional.layer_norm(last.movedim(1, -1), last.shape[1:2], eps=1e-6).movedim(-1, 1)
    assert [f.shape[-1] for f in found] == [side >> level for level in range(1, 6)]
    assert [f.shape[1] for f in found] == ours.channels
    expected = torch.nn.functional.interpolate(last, (side >> 5,) * 2, mode="bilinear", antialias=True)
    torch.testing.assert_close(found[4], expected, atol=1e-4, rtol=1e-4)


def test_a_run_resumes_and_its_weights_need_no_folder(folder: Path, tmp_path: Path) -> None:
    recipe = tiny(Path(), f"model.encoder={folder}", "training.init=", "training.images=16")
    with pytest.raises(StoppedError):
        depth.train_depth(recipe, Scenes(), tmp_path / "run", stop_after_images=8)
    parts = depth.train_depth(recipe, Scenes(), tmp_path / "run")
    whole = depth.train_depth(recipe, Scenes(), tmp_path / "whole")
    assert parts.sha256 == whole.sha256

    pretrained = Backbone(backbone_config(folder))
    pretrained.load_folder(folder)
    for path in sorted(folder.iterdir()):
        path.unlink()
    loaded = load_depth(tmp_path / "run")
    assert str(tmp_path) not in json.dumps(loaded.recipe.model_dump(mode="json"))
    assert loaded.recipe.model.encoder in NETWORKS
    for name, value in loaded.model.encoder.state_dict().items():  # frozen, but for the rounding to fp16
        torch.testing.assert_close(value, pretrained.state_dict()[name], atol=1e-3, rtol=1e-3)
    assert loaded.model.predict(255.0 * torch.rand(1, 3, 40, 60)).isfinite().all()


def test_what_is_no_backbone_is_one_line(folder: Path, tmp_path: Path) -> None:
    def start(encoder: Path | str) -> Any:
        recipe = tiny(Path(), f"model.encoder={encoder}", "training.init=")
        return depth.build_state(depth.with_backbone(recipe), torch.device("cpu"), pretrained=True)

    with pytest.raises(RecipeError, match="no such encoder"):
        start("efficientnet-lite9")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputMissingError, match=r"config\.json"):
        start(tmp_path / "empty")
    config = json.loads((folder / "config.json").read_text())
    for wrong in (
        {"model_type": "bert"},
        {"model_type": "timm_backbone"},
        {"model_type": "none"},
        {"model_type": 3},
        {},
    ):
        (folder / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(DataError, match="cannot build a backbone"):
            start(folder)
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoBackbone": "evil.Net"}}))
    assert start(folder).images_seen == 0  # its own code is not asked for
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot load a backbone"):
        start(folder)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match="pickle"):
        start(folder)
