"""A prior's weights file: written once, read as written, refused where it does not belong."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vq3dcli.config.load import load_recipe, recipe_names, recipes_folder
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.errors import DataError, InputMissingError, UnsafeFileError
from vq3dcli.model.build import build_prior
from vq3dcli.tensor_file import read_tensors, write_tensors
from vq3dcli.weights_file import TokenFacts, load_prior, load_weights, prior_as_loaded, save_weights

Make = Callable[..., Stage2Recipe]

FACTS = TokenFacts(stage1_sha256="ab" * 32, codebook_size=32, length=16, class_names=("a", "b", "c"))
CLASSES = {
    "toy-cpu-prior": 12,
    "demo64-prior": 216,
    "demo128-prior": 1000,
    "compcars256-prior": 163,
    "imagenet256-prior": 1000,
}
UNITS = {"M": 1e6, "B": 1e9}


@pytest.fixture
def prior_file(tiny_prior_recipe: Make, tmp_path: Path) -> Path:
    recipe = tiny_prior_recipe("training.init=/home/someone/prior.safetensors")
    model = build_prior(recipe, codebook_size=32, length=16, classes=3)
    save_weights(tmp_path / "prior.safetensors", model, recipe, {"images_seen": 0}, FACTS)
    return tmp_path / "prior.safetensors"


def test_weights_are_rounded_once_and_load_as_written(prior_file: Path) -> None:
    loaded = load_prior(prior_file)
    stored = load_file(prior_file)
    assert loaded.model.state_dict().keys() == stored.keys()
    for name, value in loaded.model.state_dict().items():
        assert stored[name].dtype == torch.float16
        assert torch.equal(value, stored[name].float())
    assert loaded.tokens == FACTS
    assert loaded.recipe.training.init == ""
    assert not loaded.model.training
    assert b"someone" not in prior_file.read_bytes()


def test_the_same_weights_give_the_same_file(tiny_prior_recipe: Make, tmp_path: Path) -> None:
    recipe = tiny_prior_recipe()
    model = build_prior(recipe, codebook_size=32, length=16, classes=3)
    assert len({save_weights(tmp_path / f"{n}.safetensors", model, recipe, {"a": 1}, FACTS) for n in range(8)}) == 1


def test_the_two_stages_are_told_apart(prior_file: Path, tiny_weights: Path) -> None:
    with pytest.raises(DataError, match=r"not a prior's weights file.*: a Stage 1 weights"):
        load_prior(tiny_weights)
    with pytest.raises(DataError, match="not a Stage 1 weights file"):
        load_weights(prior_file)


def test_another_stage_1_is_refused_in_one_line(prior_file: Path, tiny_weights: Path) -> None:
    prior, stage1 = load_prior(prior_file), load_weights(tiny_weights)
    prior.check_stage1(replace(stage1, sha256="ab" * 32))
    kept = replace(stage1, sha256="cd" * 32, card={"codes_of": ["ef" * 32, "ab" * 32]})
    prior.check_stage1(kept)  # fine-tuned without changing what the codes mean
    changed = replace(kept, card={"init_sha256": "ab" * 32}, path="wrong.safetensors")
    with pytest.raises(DataError, match=r"codes of another Stage 1.*abababababab, not cdcdcdcdcdcd \(wrong") as caught:
        prior.check_stage1(changed)
    assert "\n" not in str(caught.value)


def test_what_is_no_prior_is_refused(prior_file: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.safetensors"
    odd.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UnsafeFileError):
        load_prior(odd)
    with pytest.raises(InputMissingError):
        load_prior(tmp_path / "none.safetensors")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputMissingError, match=r"has saved nothing yet.*train-stage2"):
        load_prior(tmp_path / "run")
    content = prior_file.read_bytes()
    for keep in (0, 100, len(content) // 2, len(content) - 1):
        odd.write_bytes(content[:keep])
        with pytest.raises(DataError):
            load_prior(odd)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"format_version": 99}, "newer than"),
        ({"recipe": {}}, "without a sound header"),
        ({"tokens": {}}, "without a sound header"),
        ({"card": 3}, "without a sound header"),
        ({"tokens": {**FACTS.model_dump(mode="json"), "length": 15}}, "impossible shape"),
        ({"tokens": {**FACTS.model_dump(mode="json"), "codebook_size": 33}}, "do not fit their recipe"),
        ({"tokens": {**FACTS.model_dump(mode="json"), "length": 2**62}}, "without a sound header"),
    ],
)
def test_an_odd_header_is_named(prior_file: Path, tmp_path: Path, changed: dict[str, object], problem: str) -> None:
    header, tensors, _ = read_tensors(prior_file, what="weights")
    write_tensors(tmp_path / "odd.safetensors", tensors, {**header, **changed})
    with pytest.raises(DataError, match=problem):
        load_prior(tmp_path / "odd.safetensors")


def test_a_prior_loads_in_the_dtype_to_sample_in(prior_file: Path) -> None:
    assert {value.dtype for value in load_prior(prior_file).model.state_dict().values()} == {torch.float32}
    half = load_prior(prior_file, dtype=torch.bfloat16).model
    assert {value.dtype for value in half.state_dict().values()} == {torch.bfloat16}


def test_a_prior_in_training_gives_the_copy_that_its_file_would_give(tiny_prior_recipe: Make, tmp_path: Path) -> None:
    recipe = tiny_prior_recipe()
    model = build_prior(recipe, codebook_size=32, length=16, classes=3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copied = prior_as_loaded(model)
    save_weights(tmp_path / "prior.safetensors", model, recipe, {}, FACTS)
    loaded = load_prior(tmp_path / "prior.safetensors").model
    assert not copied.training
    assert model.training
    for name, value in loaded.state_dict().items():
        assert torch.equal(copied.state_dict()[name], value)
        assert torch.equal(model.state_dict()[name], before[name])
    assert not torch.equal(copied.positions, model.positions)


def parameters(recipe: Stage2Recipe, codebook_size: int, length: int, classes: int) -> int:
    with torch.device("meta"):
        model = build_prior(recipe, codebook_size=codebook_size, length=length, classes=classes)
    assert all(parameter.is_meta for parameter in model.parameters())
    return sum(parameter.numel() for parameter in model.parameters())


def millions(text: str) -> list[float]:
    return [float(n) * UNITS[unit] for n, unit in re.findall(r"\b(\d+(?:\.\d+)?) ([MB])\b", text)]


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.endswith("-prior")])
def test_every_recipe_builds_with_the_size_it_says(name: str) -> None:
    stage1 = load_recipe(name.removesuffix("-prior"), Stage1Recipe).model
    length = (stage1.image_size // stage1.patch) ** 2
    found = parameters(load_recipe(name, Stage2Recipe), stage1.codebook_size, length, CLASSES[name])
    text = (recipes_folder() / f"{name}.toml").read_text()
    first, width = text.splitlines()[0], next(line for line in text.splitlines() if line.startswith("width"))
    for line in (first, width):
        assert millions(line) == [pytest.approx(found, rel=0.04)], line


def test_the_sizes_that_a_recipe_names_are_those_of_such_priors() -> None:
    text = (recipes_folder() / "imagenet256-prior.toml").read_text()
    sizes = re.findall(r"(\d+(?:\.\d+)? [MB]): width (\d+), layers (\d+), heads (\d+)(, tied_head)?", text)
    assert len(sizes) == 6
    for size, width, layers, heads, tied in sizes:
        shape = [f"model.width={width}", f"model.layers={layers}", f"model.heads={heads}"]
        recipe = load_recipe("imagenet256-prior", Stage2Recipe, [*shape, f"model.tied_head={str(bool(tied)).lower()}"])
        assert millions(size) == [pytest.approx(parameters(recipe, 8192, 1024, 1000), rel=0.04)], size


def test_imagenet_s_prior_trains_on_the_gpus_that_its_recipe_names() -> None:
    recipe = load_recipe("imagenet256-prior", Stage2Recipe)
    found = re.search(r"for (\d+) GPUs of (\d+) GB", (recipes_folder() / "imagenet256-prior.toml").read_text())
    assert found is not None
    gpus, memory = int(found[1]), int(found[2]) * 1e9
    images, rest = divmod(recipe.training.batch_size, gpus * recipe.training.accumulate)
    assert rest == 0
    # Float32 weights, two moments, average, gradients and their copy in DistributedDataParallel's buckets.
    state = 6 * 4 * parameters(recipe, 8192, 1024, 1000)
    # A layer keeps 34 bytes a channel and slot in mixed precision (Korthikanti et al., 2022, eq. 1, without scores).
    activations = 34 * recipe.model.width * recipe.model.layers * 1024 * images
    logits = 3 * 4 * 8192 * 1024 * images
    assert state + activations + logits < 0.8 * memory
