"""Which pixels of a photo are a thing, by where it stands out and by the photo's own edges.

What stands out of the relief says what the thing's colours are and what those around it are; these say for each pixel
how likely it is the thing; and a random walker (Grady, PAMI 2006) makes neighbours agree unless an edge lies between
them. This is done several times over, as GrabCut does (Rother, Kolmogorov and Blake, SIGGRAPH 2004).

Legend: G side of the view in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.editing.relief import box_mean, local_range, resized

_ROUNDS = 4
_BINS = 24
# How a pixel's own colour, and the relief, count against agreeing with a neighbour.
_COLOUR_WEIGHT, _RELIEF_WEIGHT = 0.012, 0.02
_RELIEF_SHARE = 0.65
# No colour says more than this for or against the thing.
_MOST_LOG = 3.0
# Nor all of them against what stands out, by the pixels around the box for each one in it.
_AGAINST = 4.0
_LEAST_LINK = 1e-3
# Features are blurred, so they are compared at a coarser grid; this part of their mean variance is noise.
_COARSER, _FLOOR = 4, 0.3
_SOLVER_STEPS = 200
# Pieces of less than this part of the largest one are no part of the thing.
_LEAST_PIECE = 0.1
# What is the thing with no more than this certainty goes with it when it is taken away.
_PERHAPS = 0.25


def matte(rgb: Tensor, stands_out: Tensor, inside: Tensor, texture: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How much of each pixel is the thing, and how much of each may be, `[G, G]`, near 0 or 1 but for their edges.

    Args:
        rgb: `[3, G, G]` in [0, 1].
        stands_out: How surely each pixel is nearer than what is around the thing, `[G, G]` in [0, 1].
        inside: Where it may be, `[G, G]`, bool; outside of it are the surroundings.
        texture: Features of each place `[C, h, w]`, if there are any; what is one thing has much the same ones.
    """
    side = rgb.shape[1]
    features = None if texture is None else resized(texture.to(rgb), (side // _COARSER, side // _COARSER))
    links = _links(rgb)
    # Only what lies about the box tells what surrounds the thing.
    around = local_range(inside.float(), max(2, side // 6))[1] > 0.0
    # Where a box leaves little of them, much of what they are compared with is the thing's own.
    seen = (int(around.sum()) - int(inside.sum())) / max(1, int(inside.sum()))
    least = torch.where(stands_out > 0.5, -_AGAINST * min(1.0, seen), -torch.inf)
    # Boxes are drawn around things: the middle of one is rather the thing than its corners are.
    share = _RELIEF_SHARE * stands_out * inside + (1.0 - _RELIEF_SHARE) * _bump(inside)
    relief = box_mean(share[None], max(1, side // 16))[0]
    for number in range(_ROUNDS):
        theirs = (1.0 - share) * around
        evidence = _log_ratio(rgb, share, theirs)
        if features is not None:
            evidence = evidence + _told_apart(features, share, theirs)
        likely = torch.sigmoid(torch.maximum(evidence, least))
        trust = _RELIEF_WEIGHT / (1.0 + 0.5 * number)
        weight = _COLOUR_WEIGHT + trust
        wanted = (_COLOUR_WEIGHT * likely + trust * relief) / weight
        share = _walked(links, wanted, torch.where(inside, weight, 1e3), inside)
    share = _without_holes(share, stands_out)
    return _largest(share), torch.maximum(_sharp(share, _PERHAPS), stands_out * inside)


def _bump(inside: Tensor) -> Tensor:
    """1 in the middle of a box of pixels `[G, G]`, 0 at its edges."""
    rows, columns = (inside.any(axis).float() for axis in (1, 0))
    return _hill(rows)[:, None] * _hill(columns)[None]


def _hill(line: Tensor) -> Tensor:
    at = (line.cumsum(0) - 0.5) / line.sum()
    return line * (1.0 - (2.0 * at - 1.0).square().square())


def _links(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """How alike each pixel is to the one below it `[G - 1, G]` and to the one beside it `[G, G - 1]`."""
    below, beside = (rgb.diff(dim=axis).square().sum(0) for axis in (1, 2))
    typical = 0.5 * torch.cat([below.flatten(), beside.flatten()]).mean().clamp(min=1e-6)
    return torch.exp(-below / typical) + _LEAST_LINK, torch.exp(-beside / typical) + _LEAST_LINK


def _log_ratio(rgb: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """Logarithm of how much more often the thing has a pixel's colour than its surroundings have it, `[G, G]`."""
    red, green, blue = rgb
    # Hues are told apart more finely than shades, which change over one thing.
    opponent = torch.stack([rgb.mean(0), 0.5 + red - green, 0.5 + blue - 0.5 * (red + green)])
    index = (opponent.clamp(0.0, 1.0) * (_BINS - 1)).round().long()
    flat = (index[0] * _BINS + index[1]) * _BINS + index[2]
    counts = []
    for weight in (ours, theirs):
        bins = torch.zeros(_BINS**3).index_add_(0, flat.flatten().cpu(), weight.flatten().float().cpu())
        cube = bins.reshape(1, 1, _BINS, _BINS, _BINS)
        for _ in range(2):  # near a Gaussian
            cube = functional.avg_pool3d(cube, 3, 1, 1)
        counts.append(cube.flatten() / weight.sum().clamp(min=1.0).cpu())
    ratio = ((counts[0] + 1e-5) / (counts[1] + 1e-5)).log().clamp(-_MOST_LOG, _MOST_LOG)
    return ratio[flat.cpu()].to(rgb)


def _told_apart(features: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """The same of features `[C, h, w]`, along the line that parts the two best (Fisher, 1936): `[G, G]`."""
    places = features.flatten(1)
    weights = [resized(weight, features.shape[1:]).flatten() for weight in (ours, theirs)]
    weights = [weight / weight.sum().clamp(min=1e-6) for weight in weights]
    means = [places @ weight for weight in weights]
    spread = torch.zeros(len(places), len(places)).to(places)
    for weight, mean in zip(weights, means, strict=True):
        away = places - mean[:, None]
        spread += 0.5 * (weight * away) @ away.T
    # Some features hardly change in one photo: without a floor they would count most.
    floor = _FLOOR * spread.diagonal().mean().clamp(min=1e-12)
    line = torch.linalg.solve(spread + floor * torch.eye(len(places)).to(places), means[0] - means[1])
    between = line @ (means[0] - means[1]) / (line @ spread @ line).clamp(min=1e-12)
    ratio = (between * (line @ (places - 0.5 * (means[0] + means[1])[:, None]))).clamp(-_MOST_LOG, _MOST_LOG)
    return resized(ratio.reshape(features.shape[1:]), ours.shape)


def _walked(links: tuple[Tensor, Tensor], wanted: Tensor, weight: Tensor, inside: Tensor) -> Tensor:
    """Values `[G, G]` close to what is wanted, and to alike neighbours; by conjugate gradients."""
    down, right = links

    def applied(x: Tensor) -> Tensor:
        result = weight * x
        flow = down * x.diff(dim=0)
        result[:-1] -= flow
        result[1:] += flow
        flow = right * x.diff(dim=1)
        result[:, :-1] -= flow
        result[:, 1:] += flow
        return result

    target = weight * wanted * inside
    diagonal = weight + sum(
        functional.pad(links, edge)
        for links, edge in ((down, (0, 0, 0, 1)), (down, (0, 0, 1, 0)), (right, (0, 1)), (right, (1, 0)))
    )
    x = wanted * inside
    residual = target - applied(x)
    direction = residual / diagonal
    power = (residual * direction).sum()
    for _ in range(_SOLVER_STEPS):
        image = applied(direction)
        step = power / (direction * image).sum().clamp(min=1e-20)
        x, residual = x + step * direction, residual - step * image
        scaled = residual / diagonal
        before, power = power, (residual * scaled).sum()
        if float(power) < 1e-8:
            break
        direction = scaled + power / before * direction
    return x.clamp(0.0, 1.0)


def _without_holes(share: Tensor, stands_out: Tensor) -> Tensor:
    """`share` with the holes closed that the thing surrounds and that stand out as it does."""
    pieces = _pieces(share <= 0.5)
    for number in pieces[pieces > 0].unique().tolist():
        hole = pieces == number
        rim = hole[0].any() or hole[-1].any() or hole[:, 0].any() or hole[:, -1].any()
        if not bool(rim) and float(stands_out[hole].mean()) > 0.5:
            share = torch.where(hole, 1.0, share)
    return share


def _sharp(share: Tensor, least: float) -> Tensor:
    return (4.0 * (share - least) + 0.5).clamp(0.0, 1.0)


def _largest(share: Tensor) -> Tensor:
    """A share `[G, G]`, sharpened, without pieces that are small beside the largest one."""
    sharp, pieces = _sharp(share, 0.5), _pieces(share > 0.5)
    numbers, counts = pieces[pieces > 0].unique(return_counts=True)
    if not len(numbers):
        return sharp
    kept = torch.isin(pieces, numbers[counts >= _LEAST_PIECE * counts.max()])
    return sharp * functional.max_pool2d(kept.float()[None], 3, 1, 1)[0]


def _pieces(solid: Tensor) -> Tensor:
    """A number of its own for each piece of what is solid `[G, G]`, 0 for the rest."""
    numbers = torch.arange(1.0, solid.numel() + 1, device=solid.device).reshape(solid.shape) * solid
    while True:  # each piece gets the largest number in it
        grown = functional.max_pool2d(numbers[None], 3, 1, 1)[0] * solid
        if torch.equal(grown, numbers):
            return numbers
        numbers = grown
