"""Reconstructions whose figures are known: perfect ones, noisy ones, and one code for all."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vq3dcli.errors import DataError, InputMissingError, UsageError
from vq3dcli.metrics.features import FeatureNetwork
from vq3dcli.pipelines.evaluation.image_sets import ImageSet, open_images, toy_set
from vq3dcli.pipelines.evaluation.reconstruction import (
    _joined,
    code_usage,
    evaluate_reconstruction,
    model_reconstructor,
    pair_sheet,
    table,
)
from vq3dcli.weights_file import load_weights

SIDE = 16
CODES = 8


TINY = FeatureNetwork("tiny-test", "none", 3, "none", lambda images: images.float().mean((-2, -1)) / 255.0)


def image_set(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=random)
    facts = {"kind": "test images", "seed": seed, "count": count, "size_px": SIDE}
    return ImageSet(
        "images", torch.arange(count) % 3 - 1, ("ant", "bee"), facts, lambda a, b: iter(pixels[a:b].split(7)), 7
    ), pixels


def perfect(images):
    """Every code as often as any other."""
    codes = torch.arange(len(images) * CODES).reshape(len(images), CODES) % CODES
    return images.clone(), codes


def darker(images):
    """Brighter images lose more; one code for all."""
    return images // 2, torch.zeros(len(images), CODES, dtype=torch.int64)


def test_a_perfect_model_scores_perfectly():
    images, _ = image_set(20)
    figures = evaluate_reconstruction(perfect, images, codebook_size=CODES, network=TINY).figures
    assert (figures["psnr"], figures["ssim"], figures["images"]) == (100.0, 1.0, 20)
    assert figures["frechet_tiny_test"] == pytest.approx(0.0, abs=1e-9)
    # The estimator has no bias: of equal sets it is the diagonal that it leaves out, which is at most 0.
    assert figures["kernel_tiny_test"] < 1e-6
    usage = figures["codes"]
    assert (usage["used"], usage["used_share"], usage["codes_seen"]) == (CODES, 1.0, 20 * CODES)
    assert usage["perplexity"] == pytest.approx(CODES)
    assert usage["bits_per_image"] == pytest.approx(CODES * 3)


def test_figures_are_those_of_another_library():
    images, pixels = image_set(9)
    result = evaluate_reconstruction(darker, images, codebook_size=CODES)
    pairs = [(a.permute(1, 2, 0).numpy(), (a // 2).permute(1, 2, 0).numpy()) for a in pixels]
    expected = [peak_signal_noise_ratio(a, b) for a, b in pairs]
    assert result.psnr.tolist() == pytest.approx(expected)
    assert result.figures["psnr"] == pytest.approx(np.mean(expected))
    assert result.figures["psnr_std"] == pytest.approx(np.std(expected))
    assert result.figures["psnr_median"] == pytest.approx(np.median(expected))
    options = {"channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    similar = [structural_similarity(a, b, **options) for a, b in pairs]
    assert result.figures["ssim"] == pytest.approx(np.mean(similar), abs=1e-6)
    # Images 1, 4, 7 are ants, 2, 5, 8 bees, and the others are of no class.
    assert result.figures["classes"]["ant"]["psnr"] == pytest.approx(np.mean(expected[1::3]))
    assert result.figures["classes"]["bee"]["images"] == 3
    order = np.argsort(expected)
    assert [pair.number for pair in result.worst] == order[:8].tolist()
    assert [pair.number for pair in result.best] == order[::-1][:8].tolist()
    assert result.figures["codes"]["used"] == 1
    assert result.figures["codes"]["perplexity"] == pytest.approx(1.0)
    sheet = pair_sheet(result)
    assert sheet.shape[2] == 2 + 8 * (SIDE + 2)
    assert (sheet.shape[1] - 2 - 4 * (SIDE + 2)) % 14 == 0  # labels take several lines
    rows = table(result)
    assert rows[0] == ["", "images", "psnr", "ssim"]
    assert rows[1][1] == 9


def test_code_usage_of_uneven_use():
    usage = code_usage(torch.tensor([3, 1, 0, 0]), 2)
    assert usage["used_share"] == 0.5
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert usage["perplexity"] == pytest.approx(math.exp(entropy))


def test_too_few_images_are_one_line():
    with pytest.raises(UsageError, match="too few images"):
        evaluate_reconstruction(perfect, image_set(1)[0], network=TINY)
    assert evaluate_reconstruction(perfect, image_set(1)[0]).figures["images"] == 1


def test_a_model_is_measured_through_its_codes(tiny_weights):
    weights = load_weights(tiny_weights)
    images = toy_set("toys", 3, seed=0, purpose="eval", size_px=16)
    result = evaluate_reconstruction(model_reconstructor(weights), images, codebook_size=32)
    assert result.figures["codes"]["codes_seen"] == 3 * 16
    assert 0 < result.figures["psnr"] < 100


def test_what_data_names(tmp_path):
    from vq3dcli.data.images import encode_png

    _, pixels = image_set(6)
    for number, picture in enumerate(pixels):
        folder = tmp_path / "photos" / ("ant" if number < 4 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encode_png(picture))
    images = open_images(str(tmp_path / "photos"), count=None, seed=0, size_px=8)
    assert (len(images), images.class_names) == (6, ("ant", "bee"))
    assert images.class_index.tolist() == [0, 0, 0, 0, 1, 1]
    assert torch.cat(list(images.batches())).shape == (6, 3, 8, 8)
    assert len(open_images(str(tmp_path / "photos"), count=2, seed=0, size_px=8)) == 2
    assert open_images("toyscenes", count=2, seed=1, size_px=8).description["purpose"] == "eval"
    with pytest.raises(InputMissingError, match="no such data"):
        open_images(str(tmp_path / "none"), count=None, seed=0, size_px=8)
    np.savez(tmp_path / "a.npz", pixels.permute(0, 2, 3, 1).numpy())
    assert len(open_images(str(tmp_path / "a.npz"), count=None, seed=0, size_px=SIDE)) == 6
    two, again, other = (open_images(str(tmp_path / "a.npz"), count=2, seed=seed, size_px=SIDE) for seed in (0, 0, 5))
    shown = torch.cat(list(two.batches()))
    assert [any(torch.equal(picture, one) for one in shown) for picture in pixels].count(True) == len(two) == 2
    assert two.description == again.description != other.description
    with pytest.raises(DataError, match="16 pixels"):
        open_images(str(tmp_path / "a.npz"), count=None, seed=0, size_px=8)


def test_pairs_of_a_later_block_are_chosen_by_their_own_figures():
    psnr = torch.cat([torch.full((20,), 30.0), torch.tensor([10.0, 50.0])])
    seen = {"psnr": psnr, "rows": torch.arange(100, 122), "pairs": torch.arange(22), "counts": torch.zeros(1, 4)}
    joined = _joined([seen], 100)
    assert {120, 121} <= set(joined["rows"].tolist()) and len(joined["rows"]) < 22
    assert joined["pairs"].tolist() == [row - 100 for row in joined["rows"].tolist()]
