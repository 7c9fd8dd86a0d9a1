"""Everything that a Stage 1 recipe can turn on, together: it trains, resumes to the bit, and means what it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import Batch
from vq3dcli.errors import RecipeError, StoppedError
from vq3dcli.losses.perceptual import PerceptualDistance
from vq3dcli.model.build import build_autoencoder
from vq3dcli.model.vit import as_on_gpus
from vq3dcli.rendering.cameras import canonical_camera
from vq3dcli.toyscenes import render_scenes, sample_scenes
from vq3dcli.training.adversary import Adversary
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.objective import Objective, Stage1Objective
from vq3dcli.training.stage1 import compute_gradients, train
from vq3dcli.weights_file import load_weights

Make = Callable[..., Stage1Recipe]

ADVERSARIAL = ("adversarial.main=0.1", "adversarial.novel=0.1", "adversarial.class_conditional=true")


class _ToyBatches:
    """Toy scenes as a stream, without shards."""

    class_names = ("even", "odd")
    metric_labels = True
    bad: ClassVar[dict[str, str]] = {}

    def __init__(self, batch_size: int = 8, size: int = 16) -> None:
        self.batch_size = batch_size
        camera = canonical_camera(24, height_px=size, width_px=size)
        self.views = render_scenes(sample_scenes(torch.arange(24), seed=0), camera)

    def batches(self, images_seen: int) -> Iterator[Batch]:
        while True:
            index = torch.arange(images_seen, images_seen + self.batch_size)
            rows = index % 24
            yield Batch(
                image=self.views.rgb[rows],
                s=self.views.s[rows],
                label_kind=(rows % 3 > 0).to(torch.int8),
                class_index=rows % 2,
                index=index,
                keys=[f"{row:08d}" for row in rows.tolist()],
            )
            images_seen += self.batch_size


@pytest.fixture(scope="module")
def data() -> _ToyBatches:
    return _ToyBatches()


def _bits(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").iterdir())[-1]
    return {f"{p.stem}/{k}": v.clone() for p in newest.glob("*.safetensors") for k, v in load_file(p).items()}


def _records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _gradients(recipe: Stage1Recipe, data: _ToyBatches, images_seen: int = 0) -> tuple[Objective, list[torch.Tensor]]:
    unclipped = recipe.training.model_copy(update={"gradient_clip": 1e9, "precision": "float32"})
    recipe = recipe.model_copy(update={"training": unclipped})
    model = build_autoencoder(recipe)
    if recipe.training.checkpoint_activations:
        model.checkpoint_activations()
    parameters = list(model.parameters())
    step, _ = compute_gradients(
        recipe,
        Stage1Objective(model, recipe, Adversary(recipe, classes=2)),
        next(data.batches(images_seen)),
        parameters,
        images_seen,
        device=torch.device("cpu"),
        ranks=Ranks(),
    )
    return step, [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def test_an_adversarial_run_resumes_to_the_bit(tiny_recipe: Make, data: _ToyBatches, tmp_path: Path) -> None:
    recipe = tiny_recipe(*ADVERSARIAL, "training.accumulate=2")
    train(recipe, data, tmp_path / "whole")
    with pytest.raises(StoppedError, match="48 of 64"):
        train(recipe, data, tmp_path / "halves", stop_after_images=48)
    train(recipe, data, tmp_path / "halves")
    whole, halves = _bits(tmp_path / "whole"), _bits(tmp_path / "halves")
    assert whole.keys() == halves.keys()
    assert any(name.startswith("adversarial/novel/") for name in whole)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    before, after = _records(tmp_path / "whole")[3], _records(tmp_path / "whole")[4]
    assert before["images_seen"] == 32
    assert "adversarial_main" not in before
    assert {"adversarial_main", "adversarial_novel_accuracy", "adversarial_novel_real_score"} <= after.keys()


def test_micro_batches_add_up_to_the_batch(tiny_recipe: Make, data: _ToyBatches) -> None:
    """Also with labels that are missing unevenly, discriminators, and minibatch groups within a micro-batch."""
    whole, of_whole = _gradients(tiny_recipe(*ADVERSARIAL), data, 40)
    parts, of_parts = _gradients(tiny_recipe(*ADVERSARIAL, "training.accumulate=2"), data, 40)
    torch.testing.assert_close(parts.loss, whole.loss)
    ratio, whole_ratio = parts.terms.pop("chroma_ratio"), whole.terms.pop("chroma_ratio")
    torch.testing.assert_close(parts.terms, whole.terms)
    torch.testing.assert_close(ratio, whole_ratio, rtol=1e-2, atol=0)  # of two sums, so not a mean of parts
    assert len(parts.views) == 2
    for a, b in zip(of_parts, of_whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("importance", [0, 4])
def test_activations_made_again_give_the_same_gradient(tiny_recipe: Make, data: _ToyBatches, importance: int) -> None:
    passes = f"rendering.importance_samples={importance}"
    kept, of_kept = _gradients(tiny_recipe(*ADVERSARIAL, passes), data, 40)
    made, of_made = _gradients(tiny_recipe(*ADVERSARIAL, passes, "training.checkpoint_activations=true"), data, 40)
    assert torch.equal(kept.loss, made.loss)
    assert all(torch.equal(a, b) for a, b in zip(of_kept, of_made, strict=True))


@pytest.mark.parametrize(("alignment", "judged"), [("canonical", 5), ("least_squares", 3)])
def test_relief_counts_images_with_labels(tiny_recipe: Make, data: _ToyBatches, alignment: str, judged: int) -> None:
    """A label that is fitted to the rendering has the rendering's own spread, and says nothing."""
    batch = next(data.batches(0))
    recipe = tiny_recipe(f"loss.alignment={alignment}")
    objective = Stage1Objective(build_autoencoder(recipe), recipe)
    kinds = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1], dtype=torch.int8)
    result = objective(batch.image, batch.s, kinds, batch.index, torch.tensor(0.625))
    assert result.relief[1] == judged
    nothing = objective(batch.image, batch.s, torch.zeros(8, dtype=torch.int8), batch.index, torch.tensor(0.0))
    assert nothing.relief.tolist() == [0.0, 0.0]


def test_the_perceptual_loss_sees_a_square_of_the_photo(tiny_recipe: Make) -> None:
    """With a trunk that passes colours on, the distance of a render from its own colours is 0 and else above."""
    recipe = tiny_recipe("loss.perceptual=1", "loss.perceptual_network=efficientnet-lite0", "model.image_size=32")
    network = PerceptualDistance(_Colours(), [torch.ones(3)], least_px=16)
    data = _ToyBatches(4, size=32)
    batch = next(data.batches(0))
    objective = Stage1Objective(build_autoencoder(recipe), recipe, perceptual=network)
    result = objective(batch.image, batch.s, batch.label_kind, batch.index, torch.tensor(1.0))
    assert float(result.terms["perceptual"]) > 0
    result.loss.backward()
    assert not list(network.parameters())
    assert all(p.grad is not None for p in objective.autoencoder.field_mlp.parameters())
    assert "trunk" not in "".join(name for name, _ in objective.named_modules())


class _Colours(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images]


def test_a_run_starts_from_weights_of_another(tiny_recipe: Make, data: _ToyBatches, tmp_path: Path) -> None:
    first = train(tiny_recipe(), data, tmp_path / "first")
    recipe = tiny_recipe(f"training.init={first.weights}", "training.warmup_images=0")
    with pytest.raises(StoppedError):
        train(recipe, data, tmp_path / "second", stop_after_images=8)
    second = train(recipe, data, tmp_path / "second")
    assert load_weights(first.weights).ancestors == ()
    assert load_weights(second.weights).ancestors == (first.sha256,)
    again = tiny_recipe(f"training.init={second.weights}", "training.warmup_images=0")
    with pytest.raises(StoppedError):
        train(again, data, tmp_path / "third", stop_after_images=8)
    third = train(again, data, tmp_path / "third")
    assert load_weights(third.weights).ancestors == (second.sha256, first.sha256)
    assert _records(tmp_path / "second")[0]["quantizing"]
    assert _records(tmp_path / "second")[0]["loss"] < _records(tmp_path / "first")[0]["loss"]


def test_frozen_codes_stay_and_the_decoder_learns(tiny_recipe: Make, data: _ToyBatches, tmp_path: Path) -> None:
    first = train(tiny_recipe(), data, tmp_path / "first")
    frozen = tiny_recipe(
        f"training.init={first.weights}", "training.freeze_codes=true", "training.warmup_images=0", "loss.codebook=9"
    )
    whole = train(frozen, data, tmp_path / "whole")
    before, after = load_weights(first.weights), load_weights(whole.weights)
    assert after.codes_of == (whole.sha256, first.sha256) and before.codes_of == (first.sha256,)
    parts = ("embed_patches.", "encoder.", "to_code.", "quantizer.")
    tensors = after.model.state_dict()
    for name, value in before.model.state_dict().items():
        assert torch.equal(value, tensors[name]) == name.startswith(parts), name

    with pytest.raises(StoppedError):
        train(frozen, data, tmp_path / "resumed", stop_after_images=8)
    assert train(frozen, data, tmp_path / "resumed").sha256 == whole.sha256
    free = tiny_recipe(f"training.init={whole.weights}", "training.warmup_images=0")
    assert load_weights(train(free, data, tmp_path / "free").weights).codes_of[1:] == ()
    again = tiny_recipe(f"training.init={whole.weights}", "training.freeze_codes=true")
    assert load_weights(train(again, data, tmp_path / "again").weights).codes_of[1:] == (whole.sha256, first.sha256)


def test_codes_are_frozen_only_where_there_are_any(tiny_recipe: Make, data: _ToyBatches, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="none that quantise") as caught:
        train(tiny_recipe("training.freeze_codes=true"), data, tmp_path / "random")
    assert "--init" in (caught.value.remedy or "")
    first = train(tiny_recipe(), data, tmp_path / "first")
    larger = tiny_recipe(f"training.init={first.weights}", "training.freeze_codes=true", "model.codebook_size=64")
    with pytest.raises(RecipeError, match=r"keeps codes, and the recipe changes quantizer\.codebook"):
        train(larger, data, tmp_path / "larger")


@pytest.mark.parametrize("space", ["frustum", "contracted"])
def test_compiled_parts_keep_their_names(tiny_recipe: Make, data: _ToyBatches, space: str) -> None:
    """The field as a GPU evaluates it: one graph, with the same numbers and gradients."""
    recipe = tiny_recipe(f"model.space={space}")
    plain, compiled = build_autoencoder(recipe), build_autoencoder(recipe)
    compiled.compile_parts(backend="aot_eager")
    image = next(data.batches(0)).image / 127.5 - 1.0
    points = torch.rand(8, 50, 3, generator=torch.Generator().manual_seed(0)) * 3.0 - 1.5
    found = []
    torch._dynamo.utils.counters.clear()
    for model in (plain, compiled):
        with as_on_gpus(True):
            planes = model(image).planes
            density, rgb = model.field(planes)(points)
        (density.log().mean() + rgb.square().mean()).backward()
        found.append([planes, density, rgb, *(parameter.grad for parameter in model.field_mlp.parameters())])
    assert not torch._dynamo.utils.counters["graph_break"]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_a_page_that_fails_does_not_end_the_run(
    tiny_recipe: Make, data: _ToyBatches, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise OSError("no space")

    assert train(tiny_recipe(), data, tmp_path, refresh_page=fail).images_seen == 64
    assert "the run's page was not written: no space" in caplog.text


def test_a_batch_that_micro_batches_cut_is_refused(tiny_recipe: Make, data: _ToyBatches, tmp_path: Path) -> None:
    recipe = tiny_recipe("training.accumulate=4", "training.batch_size=12")
    assert train(recipe.model_copy(), _ToyBatches(12), tmp_path / "a", stop_after_images=None).images_seen == 72
    cut = recipe.model_copy(update={"training": recipe.training.model_copy(update={"batch_size": 10})})
    with pytest.raises(RecipeError, match=r"batch_size \(10\) does not divide.*batch_size=8"):
        train(cut, _ToyBatches(10), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_metric_labels_of_another_camera_are_refused(tiny_recipe: Make, data: _ToyBatches, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"near 1\.35 and far 60.*camera\.near=1\.35"):
        train(tiny_recipe("camera.near=1.0"), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_keys_that_change_no_result_may_change(
    tiny_recipe: Make, data: _ToyBatches, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StoppedError):
        train(tiny_recipe(), data, tmp_path, stop_after_images=32)
    freed = ("training.checkpoint_activations=true", "training.accumulate=2")
    assert train(tiny_recipe(*freed), data, tmp_path).images_seen == 64
    assert "training.accumulate: 1 -> 2: the run continues, but not to the same bits" in caplog.text


def test_weights_that_do_not_fit_leave_the_folder_free(
    tiny_recipe: Make, tiny_weights: Path, data: _ToyBatches, tmp_path: Path
) -> None:
    init = f"training.init={tiny_weights}"
    with pytest.raises(RecipeError, match="do not fit"):
        train(tiny_recipe(init, "model.field_hidden=24"), data, tmp_path / "run")
    with pytest.raises(StoppedError):
        train(tiny_recipe(init), data, tmp_path / "run", stop_after_images=8)


def test_sheets_are_announced_and_figures_that_leave_their_range_are_told(
    tiny_recipe: Make, data: _ToyBatches, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[int] = []
    count = lambda: told.append(len(list((tmp_path / "sheets").iterdir())))  # noqa: E731
    train(tiny_recipe(), data, tmp_path, refresh_page=count)
    assert told == [1, 2, 2]  # after each sheet, and in the end
    assert "no quantisation" in caplog.text  # the tiny model learns no colour in its 64 images
    assert "try:" in caplog.text
