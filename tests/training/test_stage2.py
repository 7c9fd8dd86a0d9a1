"""Training of Stage 2: it learns, it resumes to the bit, what is held out never trains, foreign tokens are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vq3dcli.config.load import recipes_folder
from vq3dcli.config.schema import Stage2Recipe
from vq3dcli.data.images import read_image
from vq3dcli.data.token_store import TokenLoader, TokenStore
from vq3dcli.errors import DataError, RecipeError, StoppedError
from vq3dcli.losses.tokens import BITS_PER_NAT, token_nats
from vq3dcli.model.build import build_prior
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.finetune import initialise_prior
from vq3dcli.training.held_out import HeldOut, held_out_bits, unigram_bits
from vq3dcli.training.run import Progress
from vq3dcli.training.stage2 import PriorObjective, drop_classes, train_prior
from vq3dcli.weights_file import load_prior, load_weights

Make = Callable[..., Stage2Recipe]
WriteStore = Callable[..., TokenStore]

CLASSES, LENGTH, CODES = 3, 16, 32
SHA = "ab" * 32


@pytest.fixture
def store(write_store: WriteStore, tmp_path: Path) -> TokenStore:
    return write_store(tmp_path / "store")


def bits_of(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").iterdir())[-1]
    return {f"{p.stem}/{k}": v.clone() for p in newest.glob("*.safetensors") for k, v in load_file(p).items()}


@pytest.mark.parametrize(("dropout", "optimizer"), [(0.0, "adamw"), (0.2, "adamw"), (0.0, "muon")])
def test_n_plus_n_steps_equal_2n_to_the_bit(
    tiny_prior_recipe: Make, store: TokenStore, tmp_path: Path, dropout: float, optimizer: str
) -> None:
    recipe = tiny_prior_recipe(f"model.dropout={dropout}", "training.accumulate=2", f"training.optimizer={optimizer}")
    train_prior(recipe, store, tmp_path / "whole")
    torch.manual_seed(1)  # whatever the process did before
    with pytest.raises(StoppedError, match="24 of 64"):
        train_prior(recipe, store, tmp_path / "parts", stop_after_images=24)
    result = train_prior(recipe, store, tmp_path / "parts")
    whole, parts = bits_of(tmp_path / "whole"), bits_of(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert result.sha256 == train_prior(recipe, store, tmp_path / "whole").sha256
    seen = [json.loads(line)["images_seen"] for line in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()]
    assert seen == list(range(8, 65, 8))


def test_a_run_writes_what_it_promises(tiny_prior_recipe: Make, store: TokenStore, tmp_path: Path) -> None:
    recipe = tiny_prior_recipe()
    reports: list[Progress] = []
    train_prior(recipe, store, tmp_path / "run", report=reports.append)
    assert reports[-1].images_seen == 64
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"bits", "gradient_norm", "learning_rate", "images_per_second"} <= lines[0].keys()
    judged = [line["images_seen"] for line in lines if "held_out_bits" in line]
    assert judged == [32, 64]
    table = json.loads((tmp_path / "run/held_out.json").read_text())
    assert table["images_seen"] == 64
    assert set(table["classes"]) == {"ant", "bee", "cow"}
    assert lines[-1]["held_out_share"] == pytest.approx(table["bits"] / table["unigram_bits"])
    loaded = load_prior(tmp_path / "run")
    assert loaded.recipe == recipe
    assert loaded.tokens.class_names == ("ant", "bee", "cow")
    assert loaded.tokens.stage1_sha256 == SHA
    assert loaded.card["training"]["held_out_bits"] == table["bits"]
    assert not list((tmp_path / "run/sheets").iterdir())  # without Stage 1


def test_it_learns_below_the_unigram_entropy_and_knows_the_class(
    tiny_prior_recipe: Make, store: TokenStore, tmp_path: Path
) -> None:
    recipe = tiny_prior_recipe("training.images=1600", "training.learning_rate=5e-3", "training.log_every_images=800")
    last = train_prior(recipe, store, tmp_path / "run").metrics
    assert last["held_out_share"] < 0.75
    prior = load_prior(tmp_path / "run").model
    tokens = store.read(torch.arange(30))
    first = [
        float(token_nats(prior(tokens, given), tokens)[:, 0].mean())
        for given in (store.class_index[:30], torch.full((30,), -1))
    ]
    assert first[0] < first[1] - 0.5  # the first code depends on the class alone


def test_overfitting_a_tiny_store(tiny_prior_recipe: Make, write_store: WriteStore, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tiny = write_store(tmp_path / "tiny", random.integers(0, CODES, (4, 1, LENGTH)), np.array([0, 1, 2, 0]))
    recipe = tiny_prior_recipe(
        "training.images=2400",
        "training.batch_size=4",
        "training.learning_rate=1e-2",
        "training.held_out=0",
        "training.class_dropout=0",
        "training.ema_half_life_images=40",
        "training.log_every_images=2400",
        "training.sheet_every_images=2400",
        "training.checkpoint_every_images=2400",
    )
    last = train_prior(recipe, tiny, tmp_path / "run").metrics
    assert "held_out_bits" not in last
    # Two of the four share a class: their first code is a guess between two.
    assert last["bits"] < 0.15


def test_a_uniform_prior_costs_log2_k_bits(tiny_prior_recipe: Make, store: TokenStore) -> None:
    prior = build_prior(tiny_prior_recipe(), codebook_size=CODES, length=LENGTH, classes=CLASSES).eval()
    torch.nn.init.zeros_(prior.norm.weight)
    loader = TokenLoader(store, batch_size=8, seed=0, held_out=0.3)
    found = held_out_bits(
        prior, loader, batch_size=5, autocast_dtype=torch.float32, device=torch.device("cpu"), ranks=Ranks()
    )
    assert found.mean == pytest.approx(math.log2(CODES), abs=1e-6)
    assert found.images.sum() == len(loader.held_out_images)
    objective = PriorObjective(prior, class_dropout=0.1, seed=0)
    batch = loader.batch_at(0)
    nats = objective(batch.tokens, batch.class_index, batch.index).detach()
    assert float(nats) * BITS_PER_NAT == pytest.approx(math.log2(CODES), abs=1e-5)


def test_unigram_entropy_is_that_of_counting(write_store: WriteStore, tmp_path: Path) -> None:
    # Class 0: one code only; class 1: four codes evenly; class 2: none; and images without a class.
    tokens = np.zeros((6, 2, LENGTH), int)
    tokens[2:4] = np.arange(LENGTH) % 4
    tokens[4:] = np.arange(LENGTH) % 2
    store = write_store(tmp_path / "store", tokens, np.array([0, 0, 1, 1, -1, -1]))
    found = unigram_bits(TokenLoader(store, batch_size=2, seed=0), Ranks(), torch.device("cpu"))
    assert found.images.tolist() == [2, 2, 0, 2]
    assert found.bits[[0, 1, 3]].tolist() == pytest.approx([0.0, 2.0, 1.0])
    assert found.mean == pytest.approx(1.0)


def test_a_share_compares_the_same_images() -> None:
    """Classes weigh by their held-out images on both sides, and those that counting knows nothing of do not count."""
    held_out = HeldOut(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([2.0, 4.0, 9.0]))
    unigram = HeldOut(torch.tensor([90.0, 10.0, 0.0]), torch.tensor([8.0, 4.0, math.nan]))
    assert held_out.mean == pytest.approx((2 + 12 + 45) / 9)
    assert unigram.mean_over(held_out.images) == pytest.approx((8 + 12) / 4)


def test_codes_that_say_nothing_have_no_share(tiny_prior_recipe: Make, write_store: WriteStore, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", np.zeros((40, 2, LENGTH), int), np.zeros(40, int))
    metrics = train_prior(tiny_prior_recipe(), store, tmp_path / "run").metrics
    assert "held_out_bits" in metrics
    assert "held_out_share" not in metrics


def test_a_run_of_stage_1_is_named_as_such(tiny_prior_recipe: Make, store: TokenStore, tmp_path: Path) -> None:
    train_prior(tiny_prior_recipe(), store, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text((recipes_folder() / "toy-cpu.toml").read_text())
    with pytest.raises(RecipeError, match="a run of train-stage1"):
        train_prior(tiny_prior_recipe(), store, tmp_path / "run")


def test_recomputed_activations_give_the_same_weights_to_the_bit(
    tiny_prior_recipe: Make, store: TokenStore, tmp_path: Path
) -> None:
    for name, again in (("kept", "false"), ("again", "true")):
        recipe = tiny_prior_recipe("model.dropout=0.2", f"training.checkpoint_activations={again}")
        train_prior(recipe, store, tmp_path / name)
    kept, again_bits = bits_of(tmp_path / "kept"), bits_of(tmp_path / "again")
    assert all(torch.equal(kept[name], again_bits[name]) for name in kept)


def test_what_is_held_out_never_trains(tiny_prior_recipe: Make, write_store: WriteStore, tmp_path: Path) -> None:
    """Other held-out codes: the same weights, to the bit, and other figures."""
    original = write_store(tmp_path / "a")
    tokens, classes = np.array(original.tokens), original.class_index.numpy()
    hidden = TokenLoader(original, batch_size=8, seed=0, held_out=0.2).held_out_images
    assert 3 < len(hidden) < 25
    changed = tokens.copy()
    changed[hidden.numpy()] = 31 - changed[hidden.numpy()]
    other = write_store(tmp_path / "b", changed, classes)
    results = [train_prior(tiny_prior_recipe(), s, tmp_path / f"run-{s.path.name}") for s in (original, other)]
    one, two = (bits_of(tmp_path / f"run-{name}") for name in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert results[0].metrics["held_out_bits"] != results[1].metrics["held_out_bits"]
    assert results[0].metrics["unigram_bits"] == results[1].metrics["unigram_bits"]


def test_the_share_of_dropped_classes_and_that_it_depends_on_the_position_alone() -> None:
    index = torch.arange(20_000)
    given = torch.full_like(index, 7)
    dropped = drop_classes(given, index, seed=3, probability=0.1)
    assert set(dropped.unique().tolist()) == {-1, 7}
    assert float((dropped == -1).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(drop_classes(given[500:600], index[500:600], seed=3, probability=0.1), dropped[500:600])
    assert not torch.equal(drop_classes(given, index, seed=4, probability=0.1), dropped)
    assert torch.equal(drop_classes(given, index, seed=3, probability=0.0), given)
    assert (drop_classes(given, index, seed=3, probability=1.0) == -1).all()


def test_other_tokens_and_another_stage_1_are_refused_in_one_line(
    tiny_prior_recipe: Make, store: TokenStore, write_store: WriteStore, tiny_weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="tokens of another Stage 1") as caught:
        train_prior(tiny_prior_recipe(), store, tmp_path / "run", stage1=load_weights(tiny_weights))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(StoppedError):
        train_prior(tiny_prior_recipe(), store, tmp_path / "run", stop_after_images=8)
    other = write_store(tmp_path / "other", stage1_sha256="cd" * 32)
    with pytest.raises(RecipeError, match=r"stage1_sha256: abab.* -> cdcd"):
        train_prior(tiny_prior_recipe(), other, tmp_path / "run")
    with pytest.raises(RecipeError, match=r"model\.width: 32 -> 48"):
        train_prior(tiny_prior_recipe("model.width=48"), store, tmp_path / "run")


def test_a_prior_starts_from_another(
    tiny_prior_recipe: Make, store: TokenStore, write_store: WriteStore, tmp_path: Path
) -> None:
    first = train_prior(tiny_prior_recipe("training.seed=1"), store, tmp_path / "first")
    init = f"training.init={tmp_path / 'first'}"
    with pytest.raises(StoppedError):
        train_prior(
            tiny_prior_recipe(init, "training.learning_rate=1e-9"), store, tmp_path / "second", stop_after_images=8
        )
    start, source = bits_of(tmp_path / "second"), load_prior(tmp_path / "first").model.state_dict()
    for name, value in source.items():
        torch.testing.assert_close(start[f"weights/{name}"], value, rtol=1e-4, atol=1e-6)
    finished = train_prior(tiny_prior_recipe(init, "training.learning_rate=1e-9"), store, tmp_path / "second")
    assert load_prior(finished.weights).card["init_sha256"] == first.sha256
    with pytest.raises(RecipeError, match=r"do not fit the recipe.*--set model\.width=32"):
        train_prior(tiny_prior_recipe(init, "model.width=48"), store, tmp_path / "third")
    with pytest.raises(RecipeError, match="first heads"):
        train_prior(tiny_prior_recipe(init, "model.heads=4"), store, tmp_path / "fourth")
    other = write_store(tmp_path / "other", stage1_sha256="cd" * 32)
    with pytest.raises(RecipeError, match="start from are of another Stage 1"):
        train_prior(tiny_prior_recipe(init), other, tmp_path / "fifth")
    tuned = write_store(tmp_path / "tuned", stage1_sha256="cd" * 32, stage1_ancestors=["ef" * 32, "ab" * 32])
    descended = train_prior(tiny_prior_recipe(init), tuned, tmp_path / "sixth")
    assert load_prior(descended.weights).tokens.stage1_ancestors == ("ef" * 32, "ab" * 32)
    short = (np.zeros((60, 1, 4), np.uint16), np.zeros(60))
    resized = write_store(tmp_path / "resized", *short, stage1_sha256="cd" * 32, stage1_ancestors=["ab" * 32])
    with pytest.raises(RecipeError, match=r"of other codes .*: 16 of 32 an image, the tokens are 4 of 32"):
        train_prior(tiny_prior_recipe(init), resized, tmp_path / "seventh")


@pytest.mark.parametrize("layers", [3, 5])
def test_a_deeper_prior_starts_from_what_the_other_computes(
    tiny_prior_recipe: Make, store: TokenStore, tmp_path: Path, layers: int
) -> None:
    first = load_prior(train_prior(tiny_prior_recipe(), store, tmp_path / "first").weights)
    recipe = tiny_prior_recipe(f"model.layers={layers}", "training.seed=5")
    shape = {"codebook_size": first.tokens.codebook_size, "length": first.tokens.length}
    deeper = build_prior(recipe, **shape, classes=len(first.tokens.class_names))
    initialise_prior(deeper, first.tokens, tmp_path / "first")
    assert len(first.model.blocks) == 2 and len(deeper.blocks) == layers
    tokens = torch.randint(first.tokens.codebook_size, (4, first.tokens.length))
    classes = torch.arange(4) % (first.model.classes + 1)
    torch.testing.assert_close(deeper.eval()(tokens, classes), first.model(tokens, classes), rtol=1e-5, atol=1e-5)
    # All blocks learn: the last maps of new ones first, which alone have a gradient where they are zero.
    deeper.train()(tokens, classes).square().mean().backward()
    assert all(block.mlp[-1].weight.grad.abs().sum() > 0 for block in deeper.blocks)
    with pytest.raises(RecipeError, match=r"do not fit the recipe.*--set model\.layers=2"):
        train_prior(
            tiny_prior_recipe(f"training.init={tmp_path / 'first'}", "model.layers=1"), store, tmp_path / "shallower"
        )


def test_micro_batches_that_do_not_divide_are_refused(tiny_prior_recipe: Make) -> None:
    with pytest.raises(RecipeError, match=r"accumulate \(3\) must divide batch_size"):
        tiny_prior_recipe("training.accumulate=3")


def test_sheets_show_samples_of_the_stage_1_that_made_the_tokens(
    tiny_prior_recipe: Make, write_store: WriteStore, tiny_weights: Path, tmp_path: Path
) -> None:
    stage1 = load_weights(tiny_weights)
    store = write_store(tmp_path / "store", stage1_sha256=stage1.sha256)
    pages = []
    recipe = tiny_prior_recipe("training.images=16", "training.sheet_every_images=16")
    train_prior(recipe, store, tmp_path / "run", stage1=stage1, refresh_page=lambda: pages.append(1))
    [sheet] = (tmp_path / "run/sheets").iterdir()
    _, height_px, width_px = read_image(sheet).shape
    assert width_px == 2 + 8 * (16 + 2)  # a row a class, four pairs
    assert (height_px - 2 - 3 * (16 + 2)) % 14 == 0  # labels take several lines
    assert len(pages) == 2
