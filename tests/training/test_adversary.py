"""Discriminators in training: they separate, resume to the bit, and leave alone what is not their own."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.errors import DivergedError, RecipeError
from vq3dcli.training.adversary import Adversary
from vq3dcli.training.distributed import Ranks
from vq3dcli.training.views import AdversarialViews, Compared, View

_OVERRIDES = {
    "adversarial.main": 0.1,
    "adversarial.novel": 0.2,
    "adversarial.start_images": 32,
    "adversarial.ramp_images": 32,
    "adversarial.learning_rate": 2e-3,
    "adversarial.r1": 1.0,
    "adversarial.r1_every_steps": 4,
    "adversarial.base_channels": 8,
    "adversarial.max_channels": 16,
    "adversarial.minibatch_group": 4,
    "adversarial.augmentation": "none",
    "adversarial.novel_sees_disparity": "true",
    "adversarial.size_px": 16,
    "model.image_size": 16,
    "model.patch": 4,
    "training.images": 1032,
    "training.batch_size": 8,
    "training.precision": "float32",
}


def _adversary(*overrides: str, classes: int = 0, ranks: Ranks | None = None) -> Adversary:
    given = [f"{key}={value}" for key, value in _OVERRIDES.items()]
    return Adversary(load_recipe("toy-cpu", Stage1Recipe, [*given, *overrides]), classes=classes, ranks=ranks)


def _views(step: int, *, rows: slice = slice(None), requires_grad: bool = False) -> AdversarialViews:
    """Eight reals with vertical stripes and eight fakes with horizontal ones, in noise."""
    generator = torch.Generator().manual_seed(step)
    stripes = ((torch.arange(16) // 4) % 2 * 2.0 - 1.0).expand(16, 16)

    def view(pattern: Tensor) -> View:
        noise = torch.rand(8, 4, 16, 16, generator=generator) - 0.5
        rgb = (0.5 * pattern + noise[:, :3])[rows]
        return View(rgb.clone().requires_grad_(requires_grad), (noise[:, 3] + 0.5)[rows])

    return AdversarialViews(
        main=Compared(view(stripes), view(stripes.T)),
        novel=Compared(view(stripes), view(stripes.T)),
        index=torch.arange(step * 8, step * 8 + 8)[rows],
        class_index=(torch.arange(8) % 3)[rows],
        labelled=torch.ones(8, dtype=torch.bool)[rows],
    )


def test_it_separates_two_sets() -> None:
    adversary = _adversary()
    for step in range(40):
        figures = adversary.update([_views(step)], step * 8)
    for name in ("main", "novel"):
        assert figures[f"adversarial_{name}_accuracy"] == 1.0
        assert figures[f"adversarial_{name}_real_score"] > 0.5 > -0.5 > figures[f"adversarial_{name}_fake_score"]


@pytest.mark.parametrize("augmentation", ["none", "differentiable", "adaptive"])
def test_n_plus_n_steps_equal_2n_to_the_bit(augmentation: str) -> None:
    overrides = (f"adversarial.augmentation={augmentation}", "adversarial.class_conditional=true")
    whole, first, second = (_adversary(*overrides, classes=3) for _ in range(3))
    for step in range(6):
        expected = whole.update([_views(step)], step * 8)
    for step in range(3):
        first.update([_views(step)], step * 8)
    second.restore({name: value.clone() for name, value in first.tensors().items()})
    for step in range(3, 6):
        figures = second.update([_views(step)], step * 8)
    assert figures == expected
    assert (expected["adversarial_main_probability"] > 0) == (augmentation == "adaptive")
    left, right = whole.tensors(), second.tensors()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_tensors_of_other_discriminators_are_refused() -> None:
    other = _adversary("adversarial.base_channels=4").tensors()
    with pytest.raises(ValueError, match="another shape"):
        _adversary().restore(other)
    without = {name: value for name, value in _adversary().tensors().items() if name != "main/scalars"}
    with pytest.raises(KeyError):
        _adversary().restore(without)


def test_the_generators_loss_reaches_the_views_and_nothing_else() -> None:
    adversary = _adversary()
    before = {name: value.clone() for name, value in adversary.tensors().items()}
    views = _views(0, requires_grad=True)
    total, terms = adversary.generator_loss(views, 48)
    total.backward()
    assert total.item() == pytest.approx(
        0.5 * (0.1 * terms["adversarial_main"].item() + 0.2 * terms["adversarial_novel"].item())
    )
    for pair in (views.main, views.novel):
        assert pair is not None
        assert pair.fake.rgb.grad is not None
        assert pair.fake.rgb.grad.abs().max() > 0
        assert pair.real.rgb.grad is None
    for each in adversary.discriminators:
        assert all(p.grad is None and p.requires_grad for p in each.discriminator.parameters())
    assert all(torch.equal(value, before[name]) for name, value in adversary.tensors().items())


def test_following_the_generators_loss_fools_the_discriminator() -> None:
    adversary = _adversary("adversarial.novel=0")
    for step in range(30):
        adversary.update([_views(step)], step * 8)
    views = _views(31)
    assert views.main is not None
    fake = views.main.fake.rgb.clone().requires_grad_()
    losses = []
    for _ in range(20):
        shown = replace(views, main=Compared(views.main.real, View(fake, views.main.fake.s)))
        _, terms = adversary.generator_loss(shown, 1000)
        total, _ = adversary.generator_loss(shown, 1000)
        (gradient,) = torch.autograd.grad(total, fake)
        fake = (fake - 0.1 * gradient / gradient.abs().mean()).detach().requires_grad_()
        losses.append(terms["adversarial_main"].item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_schedule_counts_images() -> None:
    adversary = _adversary()
    assert [adversary.started(seen) for seen in (0, 24, 32, 64)] == [False, False, True, True]
    assert [adversary.ramp(seen) for seen in (0, 32, 48, 64, 640)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert _adversary("adversarial.ramp_images=0").ramp(32) == 1.0
    nobody = _adversary("adversarial.main=0", "adversarial.novel=0")
    assert not nobody.started(1000)
    assert nobody.tensors() == {}
    assert nobody.update([_views(0)], 0) == {}


def test_r1_is_lazy_and_its_last_value_is_kept() -> None:
    adversary = _adversary()
    seen = [adversary.update([_views(step)], step * 8)["adversarial_main_r1"] for step in range(6)]
    assert len(set(seen[:4])) == 1
    assert seen[4] == seen[5] != seen[0]


def test_unlabelled_disparity_is_hidden_on_both_sides() -> None:
    adversary = _adversary("adversarial.main=0")
    views = _views(0)
    assert views.novel is not None
    hidden = replace(views, labelled=torch.zeros(8, dtype=torch.bool))
    changed = replace(
        hidden,
        novel=Compared(*(View(view.rgb, torch.rand_like(view.s)) for view in views.novel)),
    )
    losses = [float(adversary.generator_loss(each, 1000)[0]) for each in (views, hidden, changed)]
    assert losses[1] == losses[2] != losses[0]


def test_micro_batches_are_one_batch() -> None:
    augmented = "adversarial.augmentation=differentiable"
    whole, halves = _adversary(augmented), _adversary(augmented, "training.accumulate=2")
    expected = whole.update([_views(0)], 0)
    figures = halves.update([_views(0, rows=slice(0, 4)), _views(0, rows=slice(4, 8))], 0)
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_groups_that_ranks_would_cut_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"minibatch_group=2"):
        _adversary(ranks=Ranks(0, 4))
    _adversary("adversarial.main=0", "adversarial.novel=0", ranks=Ranks(0, 4))


def test_class_conditional_discriminators_need_classes() -> None:
    with pytest.raises(RecipeError, match="data have none"):
        _adversary("adversarial.class_conditional=true")


def test_a_non_finite_view_changes_nothing() -> None:
    adversary = _adversary()
    adversary.update([_views(0)], 0)
    before = {name: value.clone() for name, value in adversary.tensors().items()}
    views = _views(1)
    assert views.novel is not None
    views.novel.fake.rgb[0, 0, 0, 0] = math.nan
    with pytest.raises(DivergedError, match="novel views"):
        adversary.update([views], 8)
    assert all(torch.equal(value, before[name]) for name, value in adversary.tensors().items())


def test_autocast_stays_close_to_float32() -> None:
    exact, fast = _adversary(), _adversary("training.precision=bfloat16")
    for step in range(2):
        left, right = exact.update([_views(step)], step * 8), fast.update([_views(step)], step * 8)
    for name in ("discriminator_loss", "real_score", "r1"):
        assert right[f"adversarial_main_{name}"] == pytest.approx(left[f"adversarial_main_{name}"], rel=0.1, abs=0.05)


def _be_a_rank(rank: int, port: int, folder: Path) -> None:
    """One of two processes; writes what it has after three steps."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    adversary = _adversary("adversarial.class_conditional=true", ranks=Ranks(rank, 2), classes=3)
    for step in range(3):
        figures = adversary.update([_views(step, rows=slice(4 * rank, 4 * rank + 4))], step * 8)
    save_file(adversary.tensors(), folder / f"{rank}.safetensors")
    (folder / f"{rank}.json").write_text(json.dumps(figures))
    torch.distributed.destroy_process_group()


def test_two_ranks_train_the_discriminators_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # This very file, as a program; forking a process whose threads PyTorch has started would hang.
    commands = [[sys.executable, __file__, str(rank), str(port), str(tmp_path)] for rank in range(2)]
    processes = [subprocess.Popen(command) for command in commands]
    try:
        assert [process.wait(550) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    one = _adversary("adversarial.class_conditional=true", classes=3)
    for step in range(3):
        expected = one.update([_views(step)], step * 8)
    left, right = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(left[name], right[name]) for name in left)
    figures = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert figures[0] == figures[1]
    for name, value in expected.items():
        assert figures[0][name] == pytest.approx(value, rel=2e-2, abs=1e-3), name


if __name__ == "__main__":
    _be_a_rank(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
