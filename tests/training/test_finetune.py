"""Fine-tuning starts from another run's weights, or says exactly why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.errors import DataError, InputMissingError, RecipeError
from vq3dcli.model.autoencoder import Autoencoder
from vq3dcli.model.build import build_autoencoder
from vq3dcli.training.distributed import join_ranks
from vq3dcli.training.finetune import initialise
from vq3dcli.training.stage1 import build_state
from vq3dcli.weights_file import load_depth, load_weights, save_weights

Make = Callable[..., Stage1Recipe]


@pytest.fixture(scope="module")
def trained(tiny_recipe: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights whose quantizer has statistics and is active."""
    recipe = tiny_recipe()
    model = build_autoencoder(tiny_recipe("training.seed=5"))
    torch.manual_seed(0)
    model.quantizer.update_statistics(torch.randn(8), torch.rand(8) + 2.0)
    model.quantizer.start(torch.randn(99, 8), torch.rand(32))
    path = tmp_path_factory.mktemp("init") / "weights.safetensors"
    save_weights(path, model, recipe, {"images_seen": 1})
    return path


def _fresh(recipe: Stage1Recipe) -> Autoencoder:
    return build_autoencoder(recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": 9})}))


def test_the_same_shapes_are_taken_whole(tiny_recipe: Make, trained: Path) -> None:
    recipe = tiny_recipe()
    model, source = _fresh(recipe), load_weights(trained)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = initialise(model, recipe, trained)
    assert result.source.sha256 == source.sha256 and result.adapted == ()
    assert set(result.fresh) == {"auxiliary_head.weight", "auxiliary_head.bias", "quantizer.window_counts"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in result.fresh else source.model.state_dict()[name]), name
    assert bool(model.quantizer.active) and bool(model.quantizer.statistics_seen)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(model.codes(images), source.model.codes(images))
    assert all(p.requires_grad for p in model.parameters())


def test_another_resolution_resamples_positions_and_base(tiny_recipe: Make, trained: Path) -> None:
    recipe = tiny_recipe("model.image_size=32")
    model = _fresh(recipe)
    result = initialise(model, recipe, trained)
    assert result.adapted == ("encoder.positions", "decoder.positions", "plane_head.base")
    source = load_weights(trained).model
    for part in ("encoder", "decoder"):
        old = source.state_dict()[f"{part}.positions"].reshape(4, 4, -1)
        new = model.state_dict()[f"{part}.positions"].reshape(8, 8, -1)
        # A cell's mean over its four new cells stays close to it: rows and columns are not swapped or shifted.
        coarse = new.reshape(4, 2, 4, 2, -1).mean((1, 3))
        similarity = torch.nn.functional.cosine_similarity(coarse.flatten(0, 1), old.flatten(0, 1))
        assert similarity.min() > 0.8
    assert model(torch.zeros(1, 3, 32, 32)).planes.isfinite().all()


def test_disparity_that_the_encoder_sees_anew_says_nothing_yet(tiny_recipe: Make, trained: Path) -> None:
    recipe = tiny_recipe("model.depth_input=depth-lite0")
    model, source = _fresh(recipe), load_weights(trained).model
    network = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("depth_network.")}
    assert initialise(model, recipe, trained).adapted == ("embed_patches.weight",)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(model.encode(images), source.encode(images), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in network.items())


def test_a_new_run_shows_its_encoder_the_embedded_depth_network_and_its_weights_bring_it_along(
    tiny_recipe: Make, tmp_path: Path
) -> None:
    recipe, cpu = tiny_recipe("model.depth_input=depth-lite0"), torch.device("cpu")
    model = build_state(recipe, classes=0, device=cpu, ranks=join_ranks(cpu)).model
    assert model.depth_network is not None
    embedded = load_depth().model.state_dict()
    assert all(torch.equal(value, embedded[name]) for name, value in model.depth_network.state_dict().items())
    save_weights(tmp_path / "w.safetensors", model, recipe, {"images_seen": 1})
    loaded = load_weights(tmp_path / "w.safetensors").model
    assert loaded.depth_network is not None
    assert all(torch.equal(value, embedded[name]) for name, value in loaded.depth_network.state_dict().items())
    with pytest.raises(RecipeError, match="depth_input=depth-lite0"):
        initialise(_fresh(tiny_recipe()), tiny_recipe(), tmp_path / "w.safetensors")


def test_a_linear_table_is_resampled_exactly_inside(tiny_recipe: Make, tmp_path: Path) -> None:
    recipe = tiny_recipe("model.image_size=32")
    source = build_autoencoder(recipe)
    ramp = torch.arange(8).float()
    with torch.no_grad():
        source.encoder.positions.copy_((ramp[:, None] + 100 * ramp).reshape(1, 64, 1).expand(1, 64, 32))
    path = tmp_path / "w.safetensors"
    save_weights(path, source, recipe, {})
    larger = tiny_recipe("model.image_size=64")
    model = _fresh(larger)
    initialise(model, larger, path)
    centres = (torch.arange(16) + 0.5) / 2 - 0.5
    expected = centres[:, None] + 100 * centres
    found = model.encoder.positions[0, :, 0].reshape(16, 16)
    torch.testing.assert_close(found[4:-4, 4:-4], expected[4:-4, 4:-4], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("size", [16, 64])
def test_another_codebook_size_keeps_the_common_codes(tiny_recipe: Make, trained: Path, size: int) -> None:
    recipe = tiny_recipe(f"model.codebook_size={size}")
    model = _fresh(recipe)
    start = model.quantizer.codebook.detach().clone()
    assert initialise(model, recipe, trained).adapted == ("quantizer.codebook",)
    source, both = load_weights(trained).model, min(size, 32)
    assert torch.equal(model.quantizer.codebook[:both], source.quantizer.codebook[:both])
    assert torch.equal(model.quantizer.codebook[both:], start[both:])


@pytest.mark.parametrize(
    ("overrides", "named", "remedy"),
    [
        (["model.field_hidden=24"], ["field_mlp", "24"], "--set model.field_hidden=16"),
        (
            ["model.encoder_layers=2"],
            ["encoder.blocks.1.attention.qkv.weight (absent in the weights"],
            "encoder_layers=1",
        ),
        (["model.encoder_heads=4"], ["model.encoder_heads (2, 4)"], "--set model.encoder_heads=2"),
        (["model.space=contracted"], ["model.space (frustum, contracted)"], "--set model.space=frustum"),
        (["model.code_dim=4"], ["quantizer.codebook (32x8 in the weights, 32x4 in", "to_code.weight"], "code_dim=8"),
    ],
)
def test_misfits_are_named_with_the_keys_to_change(
    tiny_recipe: Make, trained: Path, overrides: list[str], named: list[str], remedy: str
) -> None:
    recipe = tiny_recipe(*overrides)
    model = _fresh(recipe)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RecipeError) as caught:
        initialise(model, recipe, trained)
    assert all(text in caught.value.message for text in named), caught.value.message
    assert remedy in str(caught.value.remedy)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_misfit_tensor_is_named(tiny_recipe: Make, trained: Path) -> None:
    recipe = tiny_recipe("model.decoder_width=64")
    model = _fresh(recipe)
    source = load_weights(trained).model.state_dict()
    wrong = [name for name, value in model.state_dict().items() if name in source and source[name].shape != value.shape]
    with pytest.raises(RecipeError) as caught:
        initialise(model, recipe, trained)
    assert wrong and all(f"{name} (" in caught.value.message for name in wrong)


def test_another_camera_is_warned_of(tiny_recipe: Make, trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tiny_recipe("camera.fov_deg=55")
    initialise(_fresh(recipe), recipe, trained)
    assert "another [camera] section" in caplog.text


def test_no_file_and_no_weights(tiny_recipe: Make, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    with pytest.raises(InputMissingError):
        initialise(_fresh(recipe), recipe, tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(DataError):
        initialise(_fresh(recipe), recipe, tmp_path / "text.safetensors")
