"""A small convolutional network that names the object of a toy scene: do samples show the class they were asked for?

It learns from scenes drawn for it alone. Colours, a slight blur, a shift and a mirror image tell nothing of the class,
so each picture that it learns from has others than it was drawn with: what it judges is the shape.

Legend: B images of a batch, N images, C classes, H height_px, W width_px.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq3dcli.errors import UsageError
from vq3dcli.seeding import generator, uniform

# 8,000 tell boxes, cylinders and prisms apart in 61 % of real scenes, 24,000 in 91 %.
SCENES = 24_000
EPOCHS = 6
_BATCH = 32
_LEARNING_RATE = 4e-3
_WEIGHT_DECAY = 1e-2
_WARMUP_SHARE = 0.15
_SHIFT_PX = 4
_WIDTHS = (24, 48, 96)
_PREDICT_BATCH = 256


class ToyClassifier(nn.Module):
    """Convolutions to a half, a quarter and an eighth of the resolution, residual blocks at the last two, means."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        half, quarter, eighth = _WIDTHS
        self.stages = nn.Sequential(
            _convolution(3, half, 5, stride=2),
            nn.ReLU(),
            _convolution(half, quarter, 3, stride=2),
            nn.ReLU(),
            _Residual(quarter),
            _convolution(quarter, eighth, 3, stride=2),
            nn.ReLU(),
            _Residual(eighth),
        )
        self.head = nn.Linear(eighth, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, C]` of images float `[B, 3, H, W]` in [0, 1]; any size of at least 8 pixels."""
        # These convolutions are a quarter faster on a CPU with channels last.
        planes = ((images - 0.5) * 4.0).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.stages(planes)
        # The object covers a part of the picture: its strongest response counts beside the mean.
        logits: Tensor = self.head(features.mean((-2, -1)) + features.amax((-2, -1)))
        return logits

    @torch.inference_mode()
    def classify(self, images: Tensor) -> Tensor:
        """The likeliest class of images uint8 `[B, 3, H, W]`, int64 `[B]`: of the picture and its mirror image."""
        assert not self.training and images.dtype == torch.uint8
        parts = []
        for part in images.split(_PREDICT_BATCH):
            values = part.float() / 255.0
            parts.append((self(values).softmax(1) + self(values.flip(-1)).softmax(1)).argmax(1))
        return torch.cat(parts)


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside an identity (He et al., CVPR 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width, 3)
        self.second = _convolution(width, width, 3)

    def forward(self, planes: Tensor) -> Tensor:
        return functional.relu(planes + self.second(functional.relu(self.first(planes))))


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after))


def settings(scenes: int, epochs: int, seed: int) -> dict[str, Any]:
    """What a classifier's weights depend on, beside its scenes, as JSON values."""
    return {
        "scenes": scenes,
        "epochs": epochs,
        "seed": seed,
        "batch_size": _BATCH,
        "learning_rate": _LEARNING_RATE,
        "widths": list(_WIDTHS),
        "augmentation": f"mirror, shift of {_SHIFT_PX} px, order and gain of channels, 3 x 3 blur",
    }


def train_classifier(
    images: Tensor,
    class_index: Tensor,
    classes: int,
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    on_images: Callable[[int], object] = lambda count: None,
) -> ToyClassifier:
    """Train a classifier of C classes on uint8 `[N, 3, H, W]`, int64 `[N]`; it comes back in evaluation mode.

    Equal arguments give equal weights on the same machine with the same number of threads. `on_images` is called with
    the number of images just learnt from.

    Raises `UsageError`: fewer than two images, which a normalisation by batches cannot learn from.
    """
    if len(images) < 2:
        raise UsageError(f"a classifier cannot learn from {len(images)} scenes", remedy=f"--classifier-scenes {SCENES}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ToyClassifier(classes).to(memory_format=torch.channels_last)
    steps = epochs * math.ceil(len(images) / _BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator(seed, "toy-classifier", epoch))
        for rows in order.split(_BATCH):
            if len(rows) == 1:  # its own mean and variance would normalise it away
                continue
            values = augmented(images[rows].float() / 255.0, rows + epoch * len(images), seed=seed)
            loss = functional.cross_entropy(model(values), class_index[rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            on_images(len(rows))
    return model.eval().requires_grad_(False)


def augmented(images: Tensor, index: Tensor, *, seed: int) -> Tensor:
    """Pictures `[B, 3, H, W]` in [0, 1] of the same objects, changed by `seed` and a number of each, `[B]`."""
    mirrored, order, blurred, right, down, *gains = uniform(seed, "toy-classifier/augment", index, 8).unbind(1)
    batch, _, height, width = images.shape
    permutations = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    channels = permutations[(order * len(permutations)).long()]
    images = images.gather(1, channels[:, :, None, None].expand(-1, -1, height, width))
    images = (images * (0.75 + 0.5 * torch.stack(gains, 1))[:, :, None, None]).clamp(0.0, 1.0)
    smooth = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.where((blurred < 0.5)[:, None, None, None], smooth, images)
    # Mirrors and shifts by looking pixels up, clamped to the edge.
    span = 2 * _SHIFT_PX + 1
    x = torch.arange(width) + ((right * span).long() - _SHIFT_PX)[:, None]
    y = torch.arange(height) + ((down * span).long() - _SHIFT_PX)[:, None]
    x = torch.where((mirrored < 0.5)[:, None], width - 1 - x, x).clamp(0, width - 1)
    rows, columns = y.clamp(0, height - 1)[:, None, :, None], x[:, None, None, :]
    return images[torch.arange(batch)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]


def weights_sha256(model: ToyClassifier) -> str:
    """Hash of a classifier's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _rate(done: float) -> float:
    """Part of the learning rate after a part of the steps: a rise, then half a cosine."""
    if done < _WARMUP_SHARE:
        return max(done / _WARMUP_SHARE, 0.01)
    return 0.5 * (1.0 + math.cos(math.pi * (done - _WARMUP_SHARE) / (1.0 - _WARMUP_SHARE)))
