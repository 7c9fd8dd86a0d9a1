"""The classifier learns shapes from few scenes, and the same ones each time."""

import pytest
import torch

from vq3dcli.errors import UsageError
from vq3dcli.metrics.toy_classifier import ToyClassifier, augmented, settings, train_classifier, weights_sha256
from vq3dcli.pipelines.evaluation.image_sets import toy_set
from vq3dcli.toyscenes import CLASS_NAMES

CLASSES = [CLASS_NAMES.index(name) for name in ("sphere", "table", "tower")]


def scenes(count, purpose):
    found = toy_set("scenes", count, seed=0, purpose=purpose, size_px=32, classes=CLASSES)
    return torch.cat(list(found.batches())), torch.tensor([CLASSES.index(c) for c in found.class_index.tolist()])


def test_it_learns_three_classes_from_few_scenes():
    images, class_index = scenes(192, "classifier")
    seen = []
    model = train_classifier(images, class_index, 3, epochs=20, on_images=seen.append)
    assert sum(seen) == 20 * 192
    held_out, wanted = scenes(90, "eval")
    assert (model.classify(held_out) == wanted).double().mean() > 0.8
    # A mirror image is the same class, and a batch changes nothing.
    assert torch.equal(model.classify(held_out.flip(-1)), model.classify(held_out))
    assert torch.equal(model.classify(held_out[5:6]), model.classify(held_out)[5:6])


def test_equal_seeds_give_equal_weights():
    images = torch.randint(0, 256, (70, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    class_index = torch.arange(70) % 3
    before = torch.get_rng_state()
    first, again, other = (train_classifier(images, class_index, 3, epochs=1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert weights_sha256(first) == weights_sha256(again) != weights_sha256(other)
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_augmentation_keeps_the_range_and_moves_the_picture():
    images = torch.rand(64, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    found = augmented(images, torch.arange(64), seed=0)
    assert found.shape == images.shape
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(found[3:5], augmented(images[3:5], torch.tensor([3, 4]), seed=0))
    assert not torch.equal(found, augmented(images, torch.arange(64, 128), seed=0))
    # One grey on every pixel of a channel: neither shift, blur nor mirror image can change it.
    flat = augmented(torch.full((64, 3, 8, 8), 0.5), torch.arange(64), seed=0)
    assert torch.allclose(flat, flat[:, :, :1, :1].expand(flat.shape), atol=1e-6)


def test_settings_and_shape():
    assert settings(100, 2, 7).items() >= {"scenes": 100, "epochs": 2, "seed": 7}.items()
    assert ToyClassifier(16)(torch.rand(2, 3, 64, 64)).shape == (2, 16)
    with pytest.raises(UsageError, match="1 scenes"):
        train_classifier(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), 3)
