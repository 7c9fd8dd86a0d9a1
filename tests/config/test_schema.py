"""Keys that contradict each other are named, with both values; what is turned off may say anything."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe
from vq3dcli.errors import RecipeError

Make = Callable[..., Stage1Recipe]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["model.encoder_heads=3"], r"model: encoder_heads \(3\) must divide encoder_width \(32\)"),
        (["model.decoder_heads=5"], r"model: decoder_heads \(5\) must divide decoder_width \(32\)"),
        (["loss.novel_l2=-1"], r"novel_l2 .*greater than or equal to 0, not -1"),
        (["loss.novel_perceptual=0.1"], r"loss: novel_perceptual \(0\.1\) needs a perceptual_network: lpips-vgg, "),
        (["loss.perceptual=0.1"], r"loss: perceptual \(0\.1\) needs a perceptual_network: lpips-vgg, "),
        (["loss.perceptual_patch_px=16"], r"perceptual_patch_px .*must be greater than or equal to 32, not 16"),
        (["training.images=abc"], r"training.images .*: must be a whole number, not 'abc'"),
        (["training.learning_rate=fast"], r"training.learning_rate .*: must be a number, not 'fast'"),
        (["training.freeze_codes=3"], r"training.freeze_codes .*: must be true or false, not 3"),
        (["loss.perceptual_network=vgg"], r"perceptual_network .*must be 'none', 'lpips-vgg'"),
        (
            ["loss.perceptual=0.1", "loss.perceptual_network=lpips-alex"],
            r"loss\.perceptual_patch_px \(32\) must be at most model\.image_size \(16\)",
        ),
        (["adversarial.base_channels=16"], r"base_channels \(16\) must be at most max_channels \(8\)"),
        (["adversarial.size_px=44"], r"size_px \(44\) must be 4, 5, 6 or 7 times a power of two; the next below is 40"),
        (["adversarial.adaptive_target=1.0"], r"adaptive_target .*must be less than 1"),
        (
            ["adversarial.novel=1", "adversarial.yaw_deg=0", "adversarial.pitch_deg=0"],
            r"adversarial: novel \(1\.0\) needs views that are novel",
        ),
        (
            ["adversarial.main=1", "adversarial.size_px=32"],
            r"adversarial\.size_px \(32\) must be at most model\.image_size \(16\)",
        ),
        (
            ["adversarial.novel=1", "adversarial.start_images=64"],
            r"adversarial\.start_images \(64\) must be less than training\.images \(64\)",
        ),
        (
            ["adversarial.novel=1", "training.accumulate=4"],
            r"minibatch_group \(4\) must divide training\.batch_size / training\.accumulate \(2\)",
        ),
        (["training.accumulate=3"], r"training: accumulate \(3\) must divide batch_size \(8\)"),
        (["training.average_last=3"], r"average_last"),
        (["training.tracker=excel"], r"tracker .*must be 'none', 'tensorboard' or 'wandb'"),
    ],
)
def test_contradictions_are_named(tiny_recipe: Make, overrides: list[str], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem) as caught:
        tiny_recipe(*overrides)
    assert "1 problem" in str(caught.value)


def test_several_sections_that_disagree_are_all_named(tiny_recipe: Make) -> None:
    with pytest.raises(RecipeError, match=r"size_px.*start_images.*minibatch_group"):
        tiny_recipe(
            "adversarial.main=1",
            "adversarial.size_px=32",
            "adversarial.start_images=99",
            "adversarial.minibatch_group=3",
        )


def test_what_is_turned_off_may_say_anything(tiny_recipe: Make) -> None:
    recipe = tiny_recipe(
        "adversarial.size_px=256", "adversarial.start_images=99", "adversarial.minibatch_group=3", "loss.perceptual=0"
    )
    assert not recipe.adversarial.on
    assert tiny_recipe("adversarial.novel=0.1").adversarial.on


def test_sizes_of_views_are_those_that_a_discriminator_can_halve(tiny_recipe: Make) -> None:
    accepted = set()
    for size in range(16, 257):
        try:
            accepted.add(tiny_recipe(f"adversarial.size_px={size}").adversarial.size_px)
        except RecipeError as error:
            assert "power of two" in str(error)  # noqa: PT017 # either outcome is fine, any other reason is not
    assert accepted == {side << halvings for side in (4, 5, 6, 7) for halvings in range(2, 6)} | {256}


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("model.heads=3", r"model: width \(256\) must be a multiple of 4 x heads \(3\)"),
        ("model.dropout=1", r"model\.dropout .*must be less than 1"),
        ("training.class_dropout=1.5", r"training\.class_dropout .*less than or equal to 1"),
        ("training.held_out=0.6", r"training\.held_out .*less than or equal to 0\.5"),
        ("training.accumulate=5", r"training: accumulate \(5\) must divide batch_size \(16\)"),
        ("training.flip=true", r"training\.flip .*: unknown key"),
        ("sampling.temperature=-1", r"sampling\.temperature .*greater than or equal to 0"),
        ("sampling.top_p=0", r"sampling\.top_p .*must be greater than 0"),
        ("sampling.top_k=-1", r"sampling\.top_k .*greater than or equal to 0"),
        ("sampling.guidance=-1", r"sampling\.guidance .*greater than or equal to 0"),
    ],
)
def test_contradictions_in_a_prior_are_named(override: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem) as caught:
        load_recipe("toy-cpu-prior", Stage2Recipe, [override])
    assert "1 problem" in str(caught.value)
