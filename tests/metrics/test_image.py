import math

import pytest
import torch

from vq3dcli.metrics.image import psnr


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
