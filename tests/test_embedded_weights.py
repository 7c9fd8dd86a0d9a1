"""The weights that come with the package."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch

from vq3dcli.commands.train import Run
from vq3dcli.config.defaults import EVALUATION_SAMPLES
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.images import to_square
from vq3dcli.losses.tokens import BITS_PER_NAT, token_nats
from vq3dcli.metrics.geometry import mean_weight_variance, spearman, ssi_error
from vq3dcli.metrics.image import psnr
from vq3dcli.model.build import build_autoencoder, build_canonical_camera
from vq3dcli.model.scene import reconstruct_scene, to_model_range
from vq3dcli.pipelines.evaluation.geometry import Template, evaluate_geometry, model_predictor
from vq3dcli.toyscenes import CLASS_NAMES, render_scenes, sample_scenes
from vq3dcli.training.finetune import initialise
from vq3dcli.weights_file import embedded_path, load_prior, load_weights


def test_they_are_small_and_say_what_they_are() -> None:
    assert embedded_path("stage1").stat().st_size + embedded_path("stage2").stat().st_size < 25_000_000
    for card in (load_weights().card, load_prior().card):
        assert card["images_seen"] > 0
        assert {"data", "command", "figures", "limits", "licence"} <= card.keys()


@torch.inference_mode()
def test_they_reach_the_figures_that_their_card_gives() -> None:
    """On the same 64 scenes; what needs novel views, which take six times as long, on the first four of them."""
    loaded = load_weights()
    documented = loaded.card["figures"]
    found: dict[str, list[torch.Tensor]] = defaultdict(list)
    camera = build_canonical_camera(loaded.recipe, 64, 8)
    for first in range(0, 64, 8):
        views = render_scenes(sample_scenes(torch.arange(first, first + 8), seed=0, purpose="eval"), camera)
        seen = reconstruct_scene(loaded.model, views.rgb).render(camera, samples=EVALUATION_SAMPLES)
        found["psnr"].append(psnr(seen.rgb, views.rgb))
        found["spearman"].append(spearman(seen.s, views.s))
        found["ssi_error"].append(ssi_error(seen.s, views.s))
        found["weight_variance"].append(mean_weight_variance(seen.weight_variance))
    figures = {name: float(torch.cat(values).mean()) for name, values in found.items()}
    assert figures["psnr"] == pytest.approx(documented["psnr"], abs=0.3)
    assert figures["spearman"] == pytest.approx(documented["spearman"], abs=0.01)
    assert figures["ssi_error"] == pytest.approx(documented["ssi_error"], abs=0.01)
    assert figures["weight_variance"] == pytest.approx(documented["weight_variance"], rel=0.1)

    template = Template(
        torch.zeros(3, 64, 64), torch.linspace(0, 1, 64).expand(64, 64)
    )  # its figures are not looked at
    four = evaluate_geometry(model_predictor(loaded), count=4, seed=0, size_px=64, template=template).metrics
    # Of these four, by `vq3d evaluate geometry --count 4`; all 64 have 25.06, 21.27 and 21.65.
    assert four["novel_psnr"] == pytest.approx(25.07, abs=0.3)
    assert four["copy_psnr"] == pytest.approx(21.76, abs=0.3)
    assert four["pivot_psnr"] == pytest.approx(22.02, abs=0.3)


@torch.inference_mode()
def test_real_photos_come_back_with_a_plausible_depth() -> None:
    """Photos that nobody trained on; the 780 of the docs have 22.9 dB on average."""
    data = pytest.importorskip("skimage.data")
    loaded = load_weights()
    camera = build_canonical_camera(loaded.recipe, 64)
    s = {}
    for name, decibels in (("camera", 24.26), ("coffee", 21.51), ("chelsea", 24.70)):  # measured, of each
        pixels = torch.from_numpy(getattr(data, name)())
        photo = to_square(
            (pixels if pixels.ndim == 3 else pixels[..., None].expand(-1, -1, 3)).permute(2, 0, 1), 64, fit="crop"
        )
        view = reconstruct_scene(loaded.model, photo[None]).render(camera, samples=EVALUATION_SAMPLES)
        assert float(psnr(view.rgb, photo[None])) == pytest.approx(decibels, abs=0.3), name
        s[name] = view.s[0]
    # A man with a camera on a lawn: he stands before it, it comes nearer from the horizon down, the sky is far behind.
    man, lawn = s["camera"][32:56, 2:14], s["camera"][24:, 44:].mean(1)
    assert man.mean() > 0.45
    assert s["camera"][:12, 44:].max() < 0.1
    steps = lawn.reshape(5, 8).mean(1).diff()
    assert (steps > 0).all()
    assert man.mean() > lawn[-8:].mean() + 0.05
    # A cup on a table, seen from above: the table comes nearer downwards, too.
    assert (s["coffee"].mean(1).reshape(4, 16).mean(1).diff() > 0.02).all()
    # The face of a cat: its nose is nearer than what is around it.
    assert s["chelsea"][28:40, 24:44].mean() > s["chelsea"][:, 56:].mean() + 0.1


def test_the_prior_knows_the_codes_and_the_classes_of_scenes_that_it_never_saw() -> None:
    """Measured of these 24 scenes; its card has the bits a code of many; counting takes about 9.7."""
    stage1, prior = load_weights(), load_prior()
    prior.check_stage1(stage1)
    names = prior.tokens.class_names
    toys = torch.tensor([names.index(name) for name in CLASS_NAMES])
    scenes = sample_scenes(torch.arange(24), seed=1, purpose="eval")
    views = render_scenes(scenes, build_canonical_camera(stage1.recipe, stage1.recipe.model.image_size, 24))
    with torch.inference_mode():
        codes = stage1.model.codes(to_model_range(views.rgb))
        right, wrong = (
            token_nats(prior.model(codes, given), codes).sum(1).mean() * BITS_PER_NAT
            for given in (toys[scenes.class_index], toys[(scenes.class_index + 5) % len(CLASS_NAMES)])
        )
    assert float(right / codes.shape[1]) == pytest.approx(2.07, abs=0.05)
    assert float(wrong / codes.shape[1]) == pytest.approx(2.27, abs=0.05)


def test_training_starts_from_them_by_their_name() -> None:
    recipe = Run(init=Path("embedded")).recipe("demo64", Stage1Recipe)
    start = initialise(build_autoencoder(recipe), recipe, Path(recipe.training.init))
    assert not start.adapted
    assert start.source.path == str(embedded_path("stage1"))
