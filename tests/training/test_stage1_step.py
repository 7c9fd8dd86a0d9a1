"""Training against the same steps written out in plain PyTorch: rendering, losses, gradient, updates, average."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from vq3dcli.checkpoint import read_checkpoint
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.loader import Batch
from vq3dcli.data.views import Views
from vq3dcli.losses.depth import align_canonical, order_loss
from vq3dcli.model.build import build_autoencoder
from vq3dcli.model.discriminator import Discriminator
from vq3dcli.rendering.cameras import pivot_pose
from vq3dcli.seeding import uniform
from vq3dcli.training.adversary import Adversary
from vq3dcli.training.objective import NovelViews, Stage1Objective
from vq3dcli.training.optim import orthogonalised
from vq3dcli.training.stage1 import train
from vq3dcli.training.views import Compared, front_view, patch_corners, render_view, render_views
from vq3dcli.weights_file import load_weights, save_weights

Make = Callable[..., Stage1Recipe]

BATCH, IMAGES, SIDE = 4, 64, 16
# Every weight is there, and no two alike.
WEIGHTS = {"l2": 0.9, "l1": 0.35, "auxiliary": 0.4, "codebook": 0.6, "commitment": 0.25}
WEIGHTS |= {"depth": 2.0, "depth_order": 0.3, "novel_l2": 0.8, "novel_l1": 0.45, "novel_depth": 1.5}
OVERRIDES = (
    f"training.images={IMAGES}",
    f"training.batch_size={BATCH}",
    "training.precision=float32",
    "training.learning_rate=3e-4",
    "training.warmup_images=8",
    "training.final_learning_rate_factor=0.1",
    "training.weight_decay=0.5",
    "training.gradient_clip=2.2",  # some gradients are longer, some are not
    "training.ema_half_life_images=2",  # less than a twentieth of the images since the tenth step
    "training.log_every_images=4",
    "training.sheet_every_images=64",
    "training.checkpoint_every_images=64",
    *(f"loss.{name}={weight}" for name, weight in WEIGHTS.items()),
)
GAME = (
    "training.accumulate=2",
    "adversarial.main=0.3",
    "adversarial.novel=0.2",
    "adversarial.start_images=16",
    "adversarial.ramp_images=24",
    "adversarial.learning_rate=4e-3",
    "adversarial.r1=0.7",
    "adversarial.r1_every_steps=3",
    "adversarial.minibatch_group=2",
    "adversarial.augmentation=none",
    "adversarial.novel_sees_disparity=true",
    "adversarial.main_patch=false",
)


class _Noise:
    """Images, labels and views of noise: of each four images one has no label, one a relative one, one no view."""

    class_names, metric_labels = (), True
    bad: ClassVar[dict[str, str]] = {}

    def batches(self, images_seen: int) -> Iterator[Batch]:
        while True:
            index = torch.arange(images_seen, images_seen + BATCH)
            yield Batch(
                image=(uniform(7, "image", index, 3 * SIDE**2) * 256).to(torch.uint8).reshape(BATCH, 3, SIDE, SIDE),
                s=uniform(7, "s", index, SIDE**2).reshape(BATCH, SIDE, SIDE),
                label_kind=torch.tensor([1, 2, 0, 1], dtype=torch.int8),
                class_index=torch.full((BATCH,), -1),
                index=index,
                keys=[str(i) for i in index.tolist()],
                views=_views(index),
            )
            images_seen += BATCH


def _views(index: Tensor, side: int = SIDE) -> Views:
    """Of all images but the first."""
    yaw, pitch = (0.6 * uniform(7, "pose", index[1:], 2) - 0.3).T
    return Views(
        image=(uniform(7, "view", index[1:], 3 * side**2) * 256).to(torch.uint8).reshape(-1, 3, side, side),
        s=uniform(7, "view s", index[1:], side**2).reshape(-1, side, side),
        cam_to_world=pivot_pose(yaw, pitch),
        row=torch.arange(1, len(index)),
    )


class _ByHand:
    """A run of Stage 1, written out."""

    def __init__(self, recipe: Stage1Recipe, weights: Path) -> None:
        self.recipe, self.seen = recipe, 0
        self.model = build_autoencoder(recipe)
        self.model.load_state_dict(load_weights(weights).model.state_dict(), strict=False)
        self.trained = dict(self.model.named_parameters())
        self.average = {name: parameter.detach().clone() for name, parameter in self.trained.items()}
        self.moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.trained.items()}
        self.discriminators = {each.name: each.discriminator for each in Adversary(recipe).discriminators}
        self.squares = {key: [torch.zeros_like(p) for p in d.parameters()] for key, d in self.discriminators.items()}

    def learning_rate(self) -> float:
        schedule = self.recipe.training
        if self.seen < 8:
            return schedule.learning_rate * (self.seen + 1) / 9
        part = 0.5 + 0.5 * math.cos(math.pi * (self.seen - 8) / (IMAGES - 8))
        return schedule.learning_rate * (0.1 + 0.9 * part)

    def step(self, batch: Batch) -> tuple[float, float]:
        """One step; the loss and the gradient's norm."""
        schedule, rate = self.recipe.training, self.learning_rate()
        loss, raw, shown = self._loss(batch)
        gradients = dict(zip(self.trained, torch.autograd.grad(loss, list(self.trained.values())), strict=True))
        norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
        shorter = min(1.0, schedule.gradient_clip / float(norm))
        for key, pair in shown.items():
            self._teach(key, pair, rate)
        with torch.no_grad():
            count = self.seen // BATCH + 1
            for name, parameter in self.trained.items():
                # Matrices shrink; codes, positions and the planes' base, which are none, do not.
                decay = 1 - rate * schedule.weight_decay * (parameter.ndim > 1 and name.endswith(".weight"))
                if schedule.optimizer == "muon" and ".blocks." in name and parameter.ndim == 2:
                    self._muon(name, parameter.mul_(decay), shorter * gradients[name], rate)
                else:
                    self._adam(name, parameter.mul_(decay), shorter * gradients[name], rate, count)
            self.seen += BATCH
            quantizer, flat = self.model.quantizer, raw.flatten(0, 1)
            if self.seen <= IMAGES // 2:
                mean = flat.mean(0)
                quantizer.mean += 0.01 * (mean - quantizer.mean)
                quantizer.variance += 0.01 * (flat.square().mean(0) - mean.square() - quantizer.variance)
            keep = 0.5 ** (BATCH / min(schedule.ema_half_life_images, self.seen / 20))
            for name, parameter in self.trained.items():
                self.average[name] = keep * self.average[name] + (1 - keep) * parameter
        return float(loss.detach()), float(norm)

    def _adam(self, name: str, parameter: Tensor, gradient: Tensor, rate: float, count: int) -> None:
        first, second = self.moments[name]
        first.copy_(0.9 * first + 0.1 * gradient)
        second.copy_(0.99 * second + 0.01 * gradient**2)
        parameter -= rate * first / (1 - 0.9**count) / ((second / (1 - 0.99**count)).sqrt() + 1e-8)

    def _muon(self, name: str, parameter: Tensor, gradient: Tensor, rate: float) -> None:
        momentum, _ = self.moments[name]
        momentum.copy_(0.95 * momentum + 0.05 * gradient)
        direction = orthogonalised(0.95 * momentum + 0.05 * gradient)
        parameter -= 0.2 * math.sqrt(max(parameter.shape)) * rate * direction

    def _teach(self, key: str, pair: Compared, rate: float) -> None:
        """A step of a discriminator: Adam without momentum, R1 in each third step."""
        settings, discriminator = self.recipe.adversarial, self.discriminators[key]
        real, fake = (self._seen_by(key, pair, which).detach() for which in ("real", "fake"))
        real.requires_grad_()
        score = self._score(discriminator, real)
        loss = softplus(-score).mean() + softplus(self._score(discriminator, fake)).mean()
        if self.seen // BATCH % 3 == 0:
            (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
            loss = loss + settings.r1 / 2 * 3 * slope.square().sum((1, 2, 3)).mean()
        parameters = list(discriminator.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        count = (self.seen - settings.start_images) // BATCH + 1
        scale = settings.learning_rate * rate / self.recipe.training.learning_rate
        with torch.no_grad():
            for parameter, gradient, square in zip(parameters, gradients, self.squares[key], strict=True):
                square.copy_(0.99 * square + 0.01 * gradient**2)
                parameter -= scale * gradient / ((square / (1 - 0.99**count)).sqrt() + 1e-8)

    def _seen_by(self, key: str, pair: Compared, which: str) -> Tensor:
        view = getattr(pair, which)
        if key == "main":
            return view.rgb
        hidden = torch.tensor([1.0, 1.0, 0.0, 1.0])[:, None, None]
        return torch.cat([view.rgb, ((2 * view.s - 1) * hidden)[:, None]], 1)

    def _score(self, discriminator: Discriminator, images: Tensor) -> Tensor:
        return discriminator(images, torch.arange(self.seen, self.seen + BATCH), torch.full((BATCH,), -1))

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor, Mapping[str, Compared]]:
        """The loss, the encoder's outputs, and what the discriminators are shown."""
        weight, model = self.recipe.loss, self.model
        photo = batch.image / 127.5 - 1
        encoded = model(photo)
        field = model.field(encoded.planes)
        pixel, rgb, weights, s_of = self._render(field, batch.index)
        target = photo.flatten(2).transpose(1, 2)[torch.arange(BATCH)[:, None], pixel]
        canonical = align_canonical(batch.s, mean=weight.alignment_mean, std=weight.alignment_std)
        labels = torch.where((batch.label_kind == 2)[:, None, None], canonical, batch.s)
        label = labels.flatten(1).gather(1, pixel)
        has = batch.label_kind > 0
        s = (weights * s_of).sum(-1)
        depth = self._depth(weights, s_of, label)
        views = batch.views
        assert views is not None
        beside = self._render(model.field(encoded.planes[1:]), batch.index[1:], "view ", views.cam_to_world)
        rows = torch.arange(BATCH - 1)[:, None]
        seen = (views.image / 127.5 - 1).flatten(2).transpose(1, 2)[rows, beside[0]]
        seen_depth = self._depth(*beside[2:], views.s.flatten(1)[rows, beside[0]])
        raw = model.encode(photo)
        quantizer = model.quantizer
        outputs = normalize((raw - quantizer.mean) / (quantizer.variance + 1e-5).sqrt(), dim=-1)
        codes = normalize(quantizer.codebook, dim=-1)[encoded.quantized.codes]
        loss = (
            weight.l2 * (rgb - target).square().mean()
            + weight.l1 * (rgb - target).abs().mean()
            + weight.depth * depth[has].mean()
            + weight.depth_order * order_loss(s, label)[has].mean()
            + weight.novel_l2 * (beside[1] - seen).square().mean()
            + weight.novel_l1 * (beside[1] - seen).abs().mean()
            + weight.novel_depth * seen_depth.mean()
            + weight.auxiliary * (encoded.auxiliary - photo).square().mean()
            + weight.commitment * (outputs - codes.detach()).square().sum(-1).mean()
            + weight.codebook * (outputs.detach() - codes).square().sum(-1).mean()
        )
        shown: dict[str, Compared] = {}
        game = self.recipe.adversarial
        if game.on and self.seen >= game.start_images:
            views = render_views(field, photo, labels, has, batch.index, batch.class_index, self.recipe)
            shown = {key: pair for key in ("main", "novel") if (pair := getattr(views, key)) is not None}
            ramp = min((self.seen - game.start_images) / game.ramp_images, 1.0)
            for key, pair in shown.items():
                score = self._score(self.discriminators[key], self._seen_by(key, pair, "fake"))
                loss = loss + ramp * getattr(game, key) * softplus(-score).mean()
        return loss, raw.detach(), shown

    def _depth(self, weights: Tensor, s_of: Tensor, label: Tensor) -> Tensor:
        off = s_of - label[..., None]
        return {
            "pointwise": (weights * off**2).sum(-1),
            "pointwise_l1": (weights * off.abs()).sum(-1),
            "accumulated": ((weights * s_of).sum(-1) - label) ** 2,
        }[self.recipe.loss.depth_kind]

    def _render(
        self,
        field: Callable[[Tensor], tuple[Tensor, Tensor]],
        index: Tensor,
        purpose: str = "",
        pose: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Pixels `[B, N]`, colours in [-1, 1], weights `[B, N, S]` and s of the samples."""
        camera, rays, samples, count = self.recipe.camera, 64, 12, len(index)
        pixel = ((torch.arange(rays) + uniform(0, f"{purpose}pixels", index, rays)) * (SIDE**2 / rays)).long()
        jitter = uniform(0, f"{purpose}samples", index, rays * samples).reshape(count, rays, samples)
        s = 1 - (torch.arange(samples) + jitter) / samples
        slope = math.tan(math.radians(camera.fov_deg) / 2)
        x, y = (((place + 0.5) / SIDE * 2 - 1) * slope for place in (pixel % SIDE, pixel // SIDE))

        def z_of(s: Tensor) -> Tensor:
            return 1 / (s / camera.near + (1 - s) / camera.far)

        z = z_of(s)
        points = torch.stack([x[..., None] * z, y[..., None] * z, z], -1).reshape(count, -1, 3)
        if pose is None:
            points = points - torch.tensor([0.0, 0.0, camera.radius])
        else:
            points = points @ pose[:, :3, :3].transpose(1, 2) + pose[:, None, :3, 3]
        density, rgb = field(points)
        one = torch.ones(count, rays, 1)
        edges = z_of(torch.cat([one, (s[..., 1:] + s[..., :-1]) / 2, 0 * one], -1))
        thickness = density.reshape(s.shape) * edges.diff(dim=-1) * (x**2 + y**2 + 1).sqrt()[..., None]
        passes = torch.exp(-thickness)
        opacity = torch.cat([1 - passes[..., :-1], one], -1)
        weights = opacity * torch.cat([one, passes[..., :-1].cumprod(-1)], -1)
        return pixel, 2 * (weights[..., None] * rgb.reshape(*s.shape, 3)).sum(-2) - 1, weights, s


@pytest.fixture(scope="module")
def start(tiny_recipe: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that quantise from the first image on."""
    recipe = tiny_recipe()
    model = build_autoencoder(tiny_recipe("training.seed=3"))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if not parameter.any():  # branches that end in zeros would let little through
            nn.init.normal_(parameter, std=0.1 if name.endswith("weight") else 0.02)
    model.quantizer.update_statistics(torch.zeros(8), torch.ones(8))
    model.quantizer.start(normalize(torch.randn(99, 8), dim=-1), torch.rand(32))
    path = tmp_path_factory.mktemp("start") / "weights.safetensors"
    save_weights(path, model, recipe, {"images_seen": 1})
    return path


def _apart(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: (left[name] - right[name]).detach() for name in right}


def _are_alike(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, value in expected.items():
        off = (found[name] - value).norm()
        # Rounding alone moves the bias of keys, whose gradient is zero.
        assert off <= 0.03 * value.norm() + (1e-6 if "qkv.bias" not in name else 1e-3), (name, off, value.norm())


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (
            "training.accumulate=2",
            "loss.depth_kind=accumulated",
            "training.optimizer=muon",
            "training.ema_half_life_images=100",  # a twentieth of the images is less all along
        ),
        (*GAME, "loss.depth_kind=pointwise_l1"),
    ],
    ids=["plain", "muon, in micro-batches", "adversarial, in micro-batches"],
)
def test_a_run_is_the_steps_that_are_written_out(
    tiny_recipe: Make, start: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    recipe = tiny_recipe(*OVERRIDES, f"training.init={start}", *overrides)
    by_hand = _ByHand(recipe, start)
    before = {name: value.clone() for name, value in by_hand.model.state_dict().items()}
    theirs = {key: {n: p.clone() for n, p in d.named_parameters()} for key, d in by_hand.discriminators.items()}
    train(recipe, _Noise(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    norms = [line["gradient_norm"] for line in lines]
    assert len(lines) == IMAGES // BATCH and min(norms) < recipe.training.gradient_clip < max(norms)
    for line, batch in zip(lines, _Noise().batches(0), strict=False):
        assert line["learning_rate"] == pytest.approx(by_hand.learning_rate(), rel=1e-6)
        loss, norm = by_hand.step(batch)
        assert (line["loss"], line["gradient_norm"]) == pytest.approx((loss, norm), rel=1e-3), line["images_seen"]

    [newest] = (tmp_path / "checkpoints").iterdir()
    parts, _ = read_checkpoint(newest)
    assert {name for name, value in parts["weights"].items() if torch.equal(value, before[name])} <= {
        "quantizer.active",
        "quantizer.statistics_seen",
    }
    start_of = {name: before[name] for name in by_hand.trained}
    _are_alike(_apart(parts["weights"], start_of), _apart(by_hand.trained, start_of))
    _are_alike(
        _apart(parts["average"], {name: parts["weights"][name] for name in start_of}),
        _apart(by_hand.average, by_hand.trained),
    )
    for name, (first, _) in by_hand.moments.items():
        moment = parts["optimizer"].get(f"{name}/momentum", parts["optimizer"].get(f"{name}/exp_avg"))
        torch.testing.assert_close(moment, first, rtol=0.01, atol=0.01 * float(first.abs().max()))
    for part in ("weights", "average"):
        for name in ("quantizer.mean", "quantizer.variance"):
            torch.testing.assert_close(parts[part][name], by_hand.model.state_dict()[name], rtol=1e-4, atol=1e-5)
    for key, discriminator in by_hand.discriminators.items():
        found = {name.removeprefix(f"{key}/weights/"): value for name, value in parts["adversarial"].items()}
        _are_alike(_apart(found, theirs[key]), _apart(dict(discriminator.named_parameters()), theirs[key]))


@pytest.mark.parametrize("novel", [False, True])
def test_the_perceptual_loss_compares_one_square_of_both(tiny_recipe: Make, novel: bool) -> None:
    key, purpose = ("novel_perceptual", "view perceptual") if novel else ("perceptual", "perceptual")
    recipe = tiny_recipe(f"loss.{key}=0.7", "loss.perceptual_network=lpips-vgg", "model.image_size=40")
    model, index = build_autoencoder(recipe), torch.arange(4)
    image = (uniform(7, "image", index, 3 * 1600) * 256).to(torch.uint8).reshape(4, 3, 40, 40)
    shown: list[Tensor] = []

    def distance(view: Tensor, photo: Tensor) -> Tensor:
        shown.extend((view, photo))
        return (view - photo).abs().mean((1, 2, 3))

    views = _views(index, 40)

    def loss(objective: Stage1Objective) -> Tensor:
        beside = NovelViews(views, torch.tensor(0.75))
        return objective(
            image, torch.zeros(4, 40, 40), torch.zeros(4), index, torch.tensor(0.0), novel=beside if novel else None
        ).loss

    gain = loss(Stage1Objective(model, recipe, perceptual=distance)) - loss(
        Stage1Objective(model, tiny_recipe("model.image_size=40"))
    )
    view, photo = shown
    torch.testing.assert_close(gain, 0.7 * (view - photo).abs().mean(), rtol=1e-4, atol=1e-5)
    target = image / 127.5 - 1
    planes, seen = model(target).planes, front_view(index, 40, recipe)
    if novel:
        index, planes, target = index[1:], planes[1:], views.image / 127.5 - 1
        seen = seen.camera.at(views.cam_to_world)
    corner = patch_corners(index, seed=0, image_px=40, patch_px=32, purpose=purpose).tolist()
    assert len(set(map(tuple, corner))) > 2
    whole = render_view(model.field(planes), seen, index, recipe, purpose).rgb
    for i, (x, y) in enumerate(corner):
        torch.testing.assert_close(photo[i], target[i, :, y : y + 32, x : x + 32])
        torch.testing.assert_close(view[i], whole[i, :, y : y + 32, x : x + 32], rtol=0, atol=1e-5)
