"""Measure a real novel view: scikit-image's stereo pair of a motorcycle with measured disparity.

The model sees the left photo alone. Its disparity is compared with the measured one, and the scene that it makes is
looked at from where the right photo was taken. Neither the size of the scene nor how far it is away can be told from
one photo, hence two numbers, the distance between the cameras and the shift of the right image, are fitted to the
measured disparity, by least squares. It is one pair: an example, not a statistic.

Legend: H height_px, W width_px of the photos, S side in pixels of the square that the model sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.images import read_image, resize
from vq3dcli.errors import DataError, UnavailableError
from vq3dcli.export.colour import colour_map
from vq3dcli.export.sheet import grid
from vq3dcli.files import sha256_file
from vq3dcli.metrics.geometry import mean_weight_variance, non_flatness_score, spearman, ssi_error
from vq3dcli.metrics.image import psnr
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.pipelines.evaluation.geometry import Predictor, look
from vq3dcli.rendering.cameras import Camera
from vq3dcli.weights.third_party import package_file

PROTOCOL = "geometry-stereo-1"
_SHOWN_PX = 192
_FILES = ("motorcycle_left.png", "motorcycle_right.png", "motorcycle_disp.npz")
_REMEDY = "pip install 'scikit-image>=0.24', whose wheel has it; it is never downloaded here"


@dataclass(frozen=True)
class StereoPair:
    """A rectified pair, uint8 `[3, H, W]`, and the SHA-256 of its files.

    `disparity_px` is how far right of its place in the right photo a pixel of the left one lies, float32 `[H, W]`; NaN
    where nobody measured it.
    """

    left: Tensor
    right: Tensor
    disparity_px: Tensor
    sha256: dict[str, str]


def load_stereo_pair() -> StereoPair:
    """The pair in scikit-image's wheel (Middlebury 2014, Scharstein et al., at a quarter of its size, 500 x 741).

    Raises:
        UnavailableError: scikit-image is not installed, or its data are not; nothing is fetched.
        DataError: A file is damaged.
    """
    try:
        paths = [package_file("skimage", f"data/{f}", purpose="the stereo pair", remedy=_REMEDY) for f in _FILES]
    except UnavailableError as error:
        raise UnavailableError("the stereo pair of scikit-image is not here", remedy=_REMEDY) from error
    left, right = (read_image(path) for path in paths[:2])
    return StereoPair(left, right, _read_disparity(paths[2]), {path.name: sha256_file(path) for path in paths})


def _read_disparity(path: Path) -> Tensor:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values = arrays["arr_0"].astype(np.float32)
    except (ValueError, OSError, KeyError) as error:
        raise DataError(f"damaged disparity ({path}): {error}", remedy="install scikit-image again") from error
    return torch.from_numpy(np.where(np.isfinite(values), values, np.float32("nan")))


@torch.inference_mode()
def evaluate_stereo(
    predictor: Predictor, recipe: Stage1Recipe, pair: StereoPair, *, size_px: int
) -> tuple[dict[str, float], Tensor]:
    """What a predictor with the camera of `recipe` makes of the middle square of the left photo, at `size_px`.

    Figures by name, and a contact sheet uint8 `[3, H, W]`.
    """
    height, width = pair.left.shape[1:]
    start = (width - height) // 2
    square = (..., slice(start, start + height))
    left, right = (resize(image[square].contiguous(), size_px, size_px) for image in (pair.left, pair.right))
    scale = size_px / height
    # Nearest neighbour: a mean over an edge would be a disparity that is nowhere.
    rows = ((torch.arange(size_px) + 0.5) / scale).long()
    true_px = pair.disparity_px[square][rows][:, rows] * scale
    known = true_px.isfinite()

    scene = predictor(left[None])
    camera = build_canonical_camera(recipe, size_px)
    main = look(scene, camera)
    s, truth = main.s[0][known][None, None], true_px[known][None, None]
    slope, offset = _fit(s.flatten().double(), truth.flatten().double())
    view = look(scene, right_camera(camera, recipe, slope, offset)).rgb[0]

    # What the right photo shows at its right edge lies outside the left square.
    seen = size_px - math.ceil(float(truth.max()))
    shift = float(truth.mean())
    pictures = {
        "right_psnr": view,
        "copy_psnr": main.rgb[0],
        "flat_psnr": _shifted(main.rgb[0], shift),
        "input_copy_psnr": left,
        "input_flat_psnr": _shifted(left, shift),
        "warp_psnr": resize(right_from_left(pair)[square].contiguous(), size_px, size_px),
    }
    metrics = {
        "psnr": float(psnr(main.rgb, left[None])),
        "spearman": float(spearman(s, truth)),
        "ssi_error": float(ssi_error(s, truth)),
        "nfs": float(non_flatness_score(main.s)),
        "weight_variance": float(mean_weight_variance(main.weight_variance)),
        **{name: float(psnr(image[None, ..., :seen], right[None, ..., :seen])) for name, image in pictures.items()},
        "known_share": float(known.double().mean()),
        "fitted_baseline": right_baseline(camera, recipe, slope),
    }
    span = (float(truth.min()), float(truth.max()))
    disparities = [colour_map(values, *span) for values in (slope * main.s[0].double() + offset, true_px)]
    tiles = [left, main.rgb[0], *disparities, right, view, pictures["warp_psnr"]]
    labels = ["left", "reconstruction", "disparity", "measured", "right", "rendered", "left, warped"]
    times = max(1, _SHOWN_PX // size_px)
    shown = [tile.repeat_interleave(times, -1).repeat_interleave(times, -2) for tile in tiles]
    return metrics, grid(shown, columns=len(shown), labels=labels)


def _fit(s: Tensor, disparity_px: Tensor) -> tuple[float, float]:
    """Slope, at least 0, and offset of disparity over s by least squares: which side is near is not for the fit."""
    centred = s - s.mean()
    slope = float((centred * disparity_px).sum() / centred.square().sum().clamp(min=1e-12))
    slope = max(0.0, slope)
    return slope, float(disparity_px.mean() - slope * s.mean())


def right_baseline(camera: Camera, recipe: Stage1Recipe, slope: float) -> float:
    """Distance between the cameras at which s has `slope` pixels of disparity, in the scene's units."""
    spread = 1.0 / recipe.camera.near - 1.0 / recipe.camera.far
    return slope / (float(camera.intrinsics[0, 0, 0]) * spread)


def right_camera(camera: Camera, recipe: Stage1Recipe, slope: float, offset: float) -> Camera:
    """The camera that sees a point with disparity s `slope * s + offset` pixels further left than `camera` does.

    A camera moved by b along x sees a point at z_depth z f b / z pixels further left, which is f b (s (1/near - 1/far)
    + 1/far); what is left of the offset is a shift of the image.
    """
    baseline = right_baseline(camera, recipe, slope)
    pose, matrix = camera.cam_to_world.clone(), camera.intrinsics.clone()
    pose[:, :3, 3] += baseline * pose[:, :3, 0]
    matrix[:, 0, 2] += float(matrix[0, 0, 0]) * baseline / recipe.camera.far - offset
    return Camera(pose, matrix, camera.height_px, camera.width_px)


def right_from_left(pair: StereoPair) -> Tensor:
    """The left photo moved by the measured disparity, uint8 `[3, H, W]`: what only moves pixels reaches about this.

    Nearer pixels cover farther ones. Where nothing lands, the photo moved by the mean disparity shows.
    """
    height, width = pair.disparity_px.shape
    picture = _shifted(pair.left, float(pair.disparity_px.nanmean()))
    order = pair.disparity_px.flatten().nan_to_num(nan=-1.0).argsort()
    order = order[pair.disparity_px.flatten()[order].isfinite()]
    y, x = order // width, order % width
    to = (x - pair.disparity_px.flatten()[order]).round().long()
    inside = (to >= 0) & (to < width)
    y, x, to = y[inside], x[inside], to[inside]
    # Of several that land on a pixel the last, nearest one has to win, which assignment does not promise.
    place = y * width + to
    winner = torch.full((height * width,), -1).scatter_reduce(0, place, torch.arange(len(place)), "amax")
    landed = winner >= 0
    chosen = winner[landed]
    flat = picture.flatten(1)
    flat[:, landed] = pair.left[:, y[chosen], x[chosen]]
    return flat.reshape(picture.shape)


def _shifted(image: Tensor, shift_px: float) -> Tensor:
    """`image` `[3, H, W]` moved left by whole pixels, its right edge repeated."""
    columns = (torch.arange(image.shape[-1]) + round(shift_px)).clamp(0, image.shape[-1] - 1)
    return image[..., columns].clone()
