"""Measure reconstructions against toy scenes, whose images and disparities are exact for every camera.

    exact scenes -> predictor -> rendered views -> figures, beside those of the image-blind template and of warps

The definitions are written down in `docs/evaluation.md`: values per image, mean over views, then over images.

Legend: B scenes of a batch, V evaluation views, H height_px, W width_px.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vq3dcli.config.defaults import EVALUATION_SAMPLES
from vq3dcli.errors import DataError, UsageError
from vq3dcli.export.colour import colour_map
from vq3dcli.export.sheet import grid
from vq3dcli.metrics.geometry import (
    edge_scores,
    mean_weight_variance,
    non_flatness_score,
    relief,
    spearman,
    ssi_error,
)
from vq3dcli.metrics.image import psnr
from vq3dcli.metrics.warp import (
    EVALUATION_VIEWS_DEG,
    evaluation_cameras,
    exact_warp,
    flat_warp,
    plane_z_depth,
    reprojection,
)
from vq3dcli.model.scene import Renderable, reconstruct_scene
from vq3dcli.rendering.cameras import (
    CAMERA_RADIUS,
    DEPTH_RANGE,
    FAR,
    FOV_RAD,
    NEAR,
    Camera,
    DepthRange,
    canonical_camera,
)
from vq3dcli.rendering.render import exact_rendering
from vq3dcli.rendering.scene import SceneView
from vq3dcli.sealed import read_sealed_json
from vq3dcli.toyscenes import render_scenes, sample_scenes
from vq3dcli.weights_file import LoadedWeights

TEMPLATE_SCENES = 500
SCENES_PER_BATCH = 16
_TEMPLATE_BATCH = 125
# 96 samples at the middles of equal bins of s: part of the definition of every figure.
RENDERING = f"{EVALUATION_SAMPLES} samples a ray at the middles of equal bins of s, colours to 8 bits"
_SHOWN = 6
_log = logging.getLogger(__name__)

PROTOCOL = "geometry-toyscenes-2"
VIEW_NAMES = tuple(f"{yaw_deg:g},{pitch_deg:g}" for yaw_deg, pitch_deg in EVALUATION_VIEWS_DEG)
# Figures of single views that a reader compares with `novel_psnr`.
VIEW_FIGURES = ("novel_psnr", "copy_psnr", "flat_psnr", "pivot_psnr", "warp_psnr")


@dataclass(frozen=True)
class ExactScenes:
    """B evaluation scenes, seen from the canonical camera and from the V cameras of `EVALUATION_VIEWS_DEG`.

    Images uint8, `rgb` `[B, 3, H, W]` and `novel_rgb` `[B, V, 3, H, W]`, and normalised disparities float32.
    """

    rgb: Tensor
    s: Tensor
    camera: Camera
    novel_rgb: Tensor
    novel_s: Tensor
    novel_cameras: list[Camera]


def exact_batches(count: int, *, seed: int, size_px: int) -> Iterator[ExactScenes]:
    """Evaluation scenes 0 to `count` - 1 of `seed` in batches, `size_px` x `size_px`, never scenes of training."""
    for start in range(0, count, SCENES_PER_BATCH):
        index = torch.arange(start, min(start + SCENES_PER_BATCH, count))
        scenes = sample_scenes(index, seed=seed, purpose="eval")
        camera = canonical_camera(len(index), height_px=size_px, width_px=size_px)
        novel_cameras = evaluation_cameras(camera)
        # All views in one call: the tracer is fastest on many rays at once.
        cameras = [camera, *novel_cameras]
        repeated = scenes.select(torch.arange(len(index)).repeat(len(cameras)))
        views = render_scenes(repeated, camera[0].at(torch.cat([c.cam_to_world for c in cameras])))
        rgb = views.rgb.reshape(len(cameras), len(index), 3, size_px, size_px).transpose(0, 1)
        s = views.s.reshape(len(cameras), len(index), size_px, size_px).transpose(0, 1)
        yield ExactScenes(rgb[:, 0], s[:, 0], camera, rgb[:, 1:], s[:, 1:], novel_cameras)


@dataclass(frozen=True)
class Template:
    """What a model can know that never looks at its input: means over training scenes from the canonical camera.

    Toy scenes resemble each other (ground below, background above), so that their mean disparity already ranks pixels
    well. A figure says something only as far as it is better than the template's.

    `rgb` is the mean image `[3, H, W]` in [0, 1], `s` the mean normalised disparity `[H, W]`, both float32.
    """

    rgb: Tensor
    s: Tensor


def toy_template(size_px: int, *, scenes: int = TEMPLATE_SCENES) -> Template:
    """Average the first `scenes` training scenes of seed 0 at `size_px` x `size_px`."""
    rgb_sum = torch.zeros(3, size_px, size_px, dtype=torch.float64)
    s_sum = torch.zeros(size_px, size_px, dtype=torch.float64)
    for start in range(0, scenes, _TEMPLATE_BATCH):
        index = torch.arange(start, min(start + _TEMPLATE_BATCH, scenes))
        camera = canonical_camera(len(index), height_px=size_px, width_px=size_px)
        # A mean over many scenes is smooth by itself: supersampling would only cost time.
        views = render_scenes(sample_scenes(index, seed=0, purpose="train"), camera, supersample=1)
        rgb_sum += views.rgb.double().sum(0) / 255.0
        s_sum += views.s.double().sum(0)
    return Template((rgb_sum / scenes).float(), (s_sum / scenes).float())


Predictor = Callable[[Tensor], Renderable]
"""Images uint8 `[B, 3, H, W]` to scenes; called once a batch, in the order of the scenes."""


def model_predictor(weights: LoadedWeights) -> Predictor:
    """The predictor of weights for toy scenes. Raises `UsageError` where they were trained for another camera."""
    camera = weights.recipe.camera
    own = (math.radians(camera.fov_deg), camera.radius, camera.near, camera.far)
    if any(not math.isclose(a, b, rel_tol=1e-6) for a, b in zip(own, (FOV_RAD, CAMERA_RADIUS, NEAR, FAR), strict=True)):
        raise UsageError(
            f"these weights have another camera than the toy scenes ({weights.path})",
            remedy=f"weights with fov_deg {math.degrees(FOV_RAD):g}, radius {CAMERA_RADIUS}, near {NEAR}, far {FAR}",
        )
    return photo_predictor(weights)


def photo_predictor(weights: LoadedWeights) -> Predictor:
    """The predictor of trained weights for images of any camera."""
    device = weights.device
    return lambda images: reconstruct_scene(weights.model, images.to(device))


def look(scene: Renderable, camera: Camera) -> SceneView:
    """What a predicted scene shows to a camera, as it is measured, on the CPU, where the exact views are."""
    return SceneView(*(part.cpu() for part in scene.render(camera, samples=EVALUATION_SAMPLES)))


@dataclass(frozen=True)
class GeometryResult:
    """Figures by name (those that end in `psnr` in dB), `VIEW_FIGURES` of each view by "yaw,pitch" in degrees, a sheet.

    The sheet, uint8 `[3, H, W]`, has the first scenes in two rows each, the exact one above: input, disparity,
    evaluation views.
    """

    metrics: dict[str, float]
    views: dict[str, dict[str, float]]
    sheet: Tensor

    @property
    def view_psnr(self) -> dict[str, float]:
        """The part of each view in `novel_psnr`."""
        return {view: row["novel_psnr"] for view, row in self.views.items()}


def kept_metrics(path: Path, identity: Mapping[str, object]) -> dict[str, float] | None:
    """The figures of an earlier call that `write_sealed_json` kept with what they are of; None if they are to be made.

    A damaged record is passed over with a warning.
    """
    if not path.exists():
        return None
    try:
        known = read_sealed_json(path, what="figures", remedy="")
    except DataError as error:
        _log.warning("%s; they are measured again", error.message)
        return None
    return dict(known["metrics"]) if {name: known.get(name) for name in identity} == identity else None


@exact_rendering()
@torch.inference_mode()
def evaluate_geometry(
    predictor: Predictor,
    *,
    count: int,
    seed: int,
    size_px: int,
    template: Template,
    on_progress: Callable[[int], object] = lambda scenes: None,
) -> GeometryResult:
    """Measure `predictor` on evaluation scenes 0 to `count` - 1 of `seed`; `template` is of the same size."""
    figures = Figures()
    sheets: list[Tensor] = []
    for exact in exact_batches(count, seed=seed, size_px=size_px):
        main, novel = add_rendered(figures, predictor(exact.rgb), exact.rgb, exact.s, exact.camera, exact.novel_cameras)
        novel_rgb = torch.stack([view.rgb for view in novel], 1)
        figures.add_views("novel_psnr", _view_psnr(novel_rgb, exact))
        _add_unmoved(figures, "", main.rgb, exact)
        # A painted wall does best on the plane through the pivot: all cameras look at it.
        pivot = torch.full(exact.s.shape[:1], CAMERA_RADIUS)
        figures.add_views("pivot_psnr", _flat_psnr(main.rgb, exact, pivot))
        _add_consistency(figures, "exact_", exact.camera, exact.s, exact.novel_cameras, exact.novel_s.unbind(1))
        figures.add("exact_nfs", non_flatness_score(exact.s))
        sheets = sheets or [_sheet(exact, main, novel_rgb)]
        _add_baselines(figures, exact, template)
        on_progress(exact.rgb.shape[0])
    return GeometryResult(figures.summary(), figures.view_summary(), sheets[0])


class Figures:
    """Values per image by name, and one number for each at the end; what an image has no value of is NaN there."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = defaultdict(list)
        self._views: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, name: str, values: Tensor) -> None:
        """Append one value an image, `[B]`."""
        self._values[name].append(values.double().cpu())

    def add_views(self, name: str, values: Tensor) -> None:
        """Append one value an image and evaluation view, `[B, V]`; the figure is their mean over views."""
        self._views[name].append(values.double().cpu())
        self.add(name, values.double().mean(1))

    def summary(self) -> dict[str, float]:
        """Means over images; the median for relief, a ratio with outliers."""
        joined = {name: torch.cat(values) for name, values in self._values.items()}
        # quantile, not median: torch's median of an even count is the lower of the two middle values.
        return {
            name: float(values.nanquantile(0.5) if name.endswith("relief") else values.nanmean())
            for name, values in joined.items()
        }

    def view_summary(self) -> dict[str, dict[str, float]]:
        """Means over images of each view, by view and then by name, `VIEW_FIGURES` alone."""
        joined = {name: torch.cat(self._views[name]).mean(0) for name in VIEW_FIGURES if name in self._views}
        return {view: {name: float(values[v]) for name, values in joined.items()} for v, view in enumerate(VIEW_NAMES)}


def add_rendered(
    figures: Figures,
    scene: Renderable,
    rgb: Tensor,
    s_true: Tensor,
    camera: Camera,
    novel_cameras: Sequence[Camera],
    depth_range: DepthRange = DEPTH_RANGE,
) -> tuple[SceneView, list[SceneView]]:
    """Figures of what `scene` shows to the camera of `rgb` `[B, 3, H, W]` with disparity `s_true`, and its views."""
    main, novel = look(scene, camera), [look(scene, other) for other in novel_cameras]
    figures.add("psnr", psnr(main.rgb, rgb))
    add_disparity(figures, "", main.s, s_true)
    figures.add("weight_variance", mean_weight_variance(main.weight_variance))
    _add_consistency(figures, "", camera, main.s, novel_cameras, [view.s for view in novel], depth_range)
    return main, novel


def add_disparity(figures: Figures, prefix: str, s: Tensor, s_true: Tensor) -> None:
    """Figures of disparity maps `[B, H, W]` against others that they should equal."""
    edges = edge_scores(s, s_true)
    for name, values in {
        "spearman": spearman(s, s_true),
        "ssi_error": ssi_error(s, s_true),
        "relief": relief(s, s_true),
        "edge_f1": edges.f1,
        "edge_precision": edges.precision,
        "edge_recall": edges.recall,
        "nfs": non_flatness_score(s),
    }.items():
        figures.add(f"{prefix}{name}", values)


def _add_consistency(
    figures: Figures,
    prefix: str,
    camera: Camera,
    s: Tensor,
    novel_cameras: Sequence[Camera],
    novel_s: Sequence[Tensor],
    depth_range: DepthRange = DEPTH_RANGE,
) -> None:
    """Reprojection between a main view `[B, H, W]` and novel ones, mean over views."""
    pairs = zip(novel_cameras, novel_s, strict=True)
    ways = [reprojection(camera, s, other, other_s, depth_range) for other, other_s in pairs]
    figures.add(f"{prefix}reprojection_error", torch.stack([way.error for way in ways]).nanmean(0))
    figures.add(f"{prefix}reprojection_share", torch.stack([way.share for way in ways]).nanmean(0))


def _add_unmoved(figures: Figures, prefix: str, image: Tensor, exact: ExactScenes) -> None:
    """`image` `[B, 3, H, W]` shown unmoved, and painted on a plane at the mean disparity."""
    copies = image[:, None].expand(exact.novel_rgb.shape)
    figures.add_views(f"{prefix}copy_psnr", _view_psnr(copies, exact))
    figures.add_views(f"{prefix}flat_psnr", _flat_psnr(image, exact, plane_z_depth(exact.s)))


def _add_baselines(figures: Figures, exact: ExactScenes, template: Template) -> None:
    """The ceiling `warp_psnr` and the template's figures."""
    novel = zip(exact.novel_cameras, exact.novel_s.unbind(1), strict=True)
    warped = [exact_warp(exact.rgb, exact.camera, camera, exact.s, novel_s) for camera, novel_s in novel]
    rgb, s = template.rgb.expand(exact.rgb.shape), template.s.expand(exact.s.shape)
    figures.add_views("warp_psnr", _view_psnr(torch.stack(warped, 1), exact))
    figures.add("template_psnr", psnr(rgb, exact.rgb))
    _add_unmoved(figures, "template_", rgb, exact)
    add_disparity(figures, "template_", s, exact.s)


def _flat_psnr(image: Tensor, exact: ExactScenes, z_depth: Tensor) -> Tensor:
    """PSNR `[B, V]` of `image` painted on planes at `z_depth` `[B]`."""
    warped = [flat_warp(image, exact.camera, camera, z_depth) for camera in exact.novel_cameras]
    return _view_psnr(torch.stack(warped, 1), exact)


def _view_psnr(images: Tensor, exact: ExactScenes) -> Tensor:
    """PSNR `[B, V]` of novel views `[B, V, 3, H, W]`."""
    return psnr(images.flatten(0, 1), exact.novel_rgb.flatten(0, 1)).reshape(images.shape[:2])


def _sheet(exact: ExactScenes, main: SceneView, novel_rgb: Tensor) -> Tensor:
    tiles: list[Tensor] = []
    for number in range(min(_SHOWN, len(exact.rgb))):
        tiles += [exact.rgb[number], colour_map(exact.s[number]), *exact.novel_rgb[number]]
        tiles += [main.rgb[number], colour_map(main.s[number]), *novel_rgb[number]]
    return grid(tiles, columns=2 + exact.novel_rgb.shape[1])
