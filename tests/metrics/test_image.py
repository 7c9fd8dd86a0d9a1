import math

import pytest
import torch

from vq3dcli.metrics.image import psnr, ssim


def test_constant_offset_has_its_closed_form():
    target = torch.rand(3, 3, 8, 8) * 0.5
    offset = torch.tensor([0.1, 0.01, 0.5])
    expected = [-20 * math.log10(value) for value in offset]
    assert psnr(target + offset[:, None, None, None], target).tolist() == pytest.approx(expected, abs=1e-3)


def test_bytes_and_floats_agree():
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    target = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.allclose(psnr(image, target), psnr(image.double() / 255, target), atol=1e-9)


def test_equal_images_score_a_finite_hundred():
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert psnr(image, image).tolist() == [100.0, 100.0]


def test_bytes_do_not_wrap_around():
    black, white = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    assert psnr(black, white).item() == pytest.approx(0.0)
    assert psnr(white, black).item() == pytest.approx(0.0)


def test_ssim_agrees_with_scikit_image():
    skimage_metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    random = torch.Generator().manual_seed(0)
    target = torch.rand(3, 3, 20, 31, generator=random).double()
    noise = torch.randn(3, 3, 20, 31, generator=random) * torch.tensor([0.02, 0.1, 0.3])[:, None, None, None]
    image = (target + noise).clamp(0, 1)
    expected = [
        skimage_metrics.structural_similarity(
            a.numpy(),
            b.numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(image, target, strict=True)
    ]
    assert ssim(image, target).tolist() == pytest.approx(expected, abs=1e-9)
    assert expected[0] > expected[1] > expected[2]


def test_ssim_of_constant_images_is_the_luminance_term():
    """Without any structure the second factor is C2 / C2, and the first has a closed form."""
    x, y = 0.3, 0.7
    expected = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    found = ssim(*(torch.full((1, 3, 16, 16), value, dtype=torch.float64) for value in (x, y)))
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_ssim_of_equal_images_is_one_and_of_a_negative_below_zero():
    image = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    assert ssim(image, image).tolist() == pytest.approx([1.0, 1.0])
    assert (ssim(image, 255 - image) < 0).all()


def test_ssim_of_one_window_has_one_value():
    image = torch.rand(2, 3, 11, 11)
    assert ssim(image, 1 - image).shape == (2,)
