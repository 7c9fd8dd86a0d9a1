"""The figure and the pages of the depth-loss ablation: pictures side by side, weights along rays, tables.

Scenes are the first ones of the evaluation and rays lie at fixed pixels: nothing is chosen by what it looks like.

Legend: B scenes, N rays, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vq3dcli.config.defaults import EVALUATION_SAMPLES
from vq3dcli.export.charts import Series, bar_chart, number_text, series_chart, side_by_side
from vq3dcli.export.colour import colour_map
from vq3dcli.export.page import Section, Svg, Text
from vq3dcli.export.sheet import grid
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.pipelines.studies.ablation import FIGURES, KINDS, Ablation, verdict
from vq3dcli.rendering.cameras import Camera, Rays, canonical_camera, pivot_camera, pixel_centres, rays_at_pixels
from vq3dcli.rendering.ray_samples import uniform_samples
from vq3dcli.rendering.render import render_rays
from vq3dcli.toyscenes import ToyScenes, render_scenes, sample_scenes
from vq3dcli.weights_file import LoadedWeights

NAMES = {"accumulated": "loss on accumulated depth", "pointwise": "pointwise depth loss", "none": "no depth loss"}
_SHOWN = ("accumulated", "pointwise")
_YAWS_DEG = (-20.0, 20.0)
# Places in the image, in shares of its sides: the middle, the ground in front, the background.
_RAYS = ((0.5, 0.5, "middle"), (0.5, 0.85, "below"), (0.25, 0.2, "above left"))
_BINS = 96
SHEET_TEXT = (
    "The same inputs, the first scenes of the evaluation. From left to right: input; trained with the loss on "
    "accumulated depth: disparity, then views from 20 degrees to the left and to the right; the same trained with the "
    "pointwise loss; and the exact scene."
)
_PROFILE_TEXT = (
    "Rendering weights along single rays, over normalised disparity s (1 is near, 0 far); the upright line is the true "
    "surface. Then the mean of all rays of these scenes, by distance from the true surface."
)


@dataclass(frozen=True)
class Profiles:
    """Weights along the rays of some scenes."""

    s: Tensor  # of the samples, `[S]`, from near to far
    weights: Mapping[str, Tensor]  # by loss, at the pixels of `_RAYS`: `[B, N, S]`
    s_true: Tensor  # the true surface there, `[B, N]`
    offset: Tensor  # bins of s - s_true, `[M]`
    mean: Mapping[str, Tensor]  # by loss, the mean weight in each bin over all rays, `[M]`, summing to 1


@torch.inference_mode()
def figure_sheet(models: Mapping[str, LoadedWeights], *, scenes: int = 5, seed: int = 0) -> Tensor:
    """The figure of the project page, uint8 `[3, H, W]`; scenes are rendered at twice the side of the input."""
    index = torch.arange(scenes)
    exact = sample_scenes(index, seed=seed, purpose="eval")
    size = models[_SHOWN[0]].recipe.model.image_size
    inputs = render_scenes(exact, canonical_camera(scenes, height_px=size, width_px=size)).rgb
    cameras = [_turned(yaw_deg, scenes, 2 * size) for yaw_deg in (0.0, *_YAWS_DEG)]
    columns: list[tuple[str, Tensor]] = [("input", inputs.repeat_interleave(2, -1).repeat_interleave(2, -2))]
    for kind in _SHOWN:
        model = models[kind].model
        scene = reconstruct_scene(model, inputs.to(next(model.parameters()).device))
        views = [scene.render(camera, samples=EVALUATION_SAMPLES) for camera in cameras]
        columns.append((f"{kind}: disparity", colour_map(views[0].s.cpu())))
        columns += [(f"{kind}, {yaw:+.0f}", view.rgb.cpu()) for yaw, view in zip(_YAWS_DEG, views[1:], strict=True)]
    columns += _exact_columns(exact, cameras)
    tiles = [pictures[row] for row in range(scenes) for _, pictures in columns]
    labels = [name if row == 0 else "" for row in range(scenes) for name, _ in columns]
    return grid(tiles, columns=len(columns), labels=labels)


def _exact_columns(scenes: ToyScenes, cameras: Sequence[Camera]) -> list[tuple[str, Tensor]]:
    views = [render_scenes(scenes, camera) for camera in cameras]
    columns = [("exact: disparity", colour_map(views[0].s))]
    return columns + [(f"exact, {yaw:+.0f}", view.rgb) for yaw, view in zip(_YAWS_DEG, views[1:], strict=True)]


def _turned(yaw_deg: float, count: int, side_px: int) -> Camera:
    yaw = torch.full((count,), math.radians(yaw_deg))
    return pivot_camera(yaw, torch.zeros(count), height_px=side_px, width_px=side_px)


@torch.inference_mode()
def weight_profiles(models: Mapping[str, LoadedWeights], *, scenes: int = 4, seed: int = 0) -> Profiles:
    """Weights along rays of evaluation scenes, 96 samples at the middles of equal bins of s."""
    exact = sample_scenes(torch.arange(scenes), seed=seed, purpose="eval")
    size = next(iter(models.values())).recipe.model.image_size
    camera = canonical_camera(scenes, height_px=size, width_px=size)
    views = render_scenes(exact, camera)
    pixels = torch.tensor([[min(int(x * size), size - 1), min(int(y * size), size - 1)] for x, y, _ in _RAYS])
    s_true = views.s[:, pixels[:, 1], pixels[:, 0]]
    s = uniform_samples(EVALUATION_SAMPLES).s
    weights: dict[str, Tensor] = {}
    mean: dict[str, Tensor] = {}
    for kind, loaded in models.items():
        found = torch.stack([_ray_weights(loaded, views.rgb[b : b + 1], camera, b) for b in range(scenes)])
        by_pixel = found.reshape(scenes, size, size, EVALUATION_SAMPLES)
        weights[kind] = by_pixel[:, pixels[:, 1], pixels[:, 0]]
        place = (s - views.s[..., None] + 1.0) / 2.0 * _BINS
        bins = torch.zeros(_BINS, dtype=torch.float64)
        bins.scatter_add_(0, place.long().clamp(0, _BINS - 1).flatten(), by_pixel.double().flatten())
        mean[kind] = bins / bins.sum()
    offset = (torch.arange(_BINS) + 0.5) / _BINS * 2.0 - 1.0
    return Profiles(s, weights, s_true, offset, mean)


def _ray_weights(loaded: LoadedWeights, image: Tensor, camera: Camera, row: int) -> Tensor:
    """Weights of all pixels of one scene, float32 `[H * W, S]` on the CPU."""
    model = loaded.model
    device = next(model.parameters()).device
    scene = reconstruct_scene(model, image.to(device))
    field = model.exact_field(scene.planes)
    samples, depth_range = uniform_samples(EVALUATION_SAMPLES, device), model.frustum.depth_range
    parts = []
    for pixels in pixel_centres(camera.height_px, camera.width_px).split(512):
        rays = rays_at_pixels(camera[row], pixels)
        rays = Rays(rays.origin.to(device), rays.direction.to(device))
        parts.append(render_rays(field, rays, samples, depth_range).weights[0].cpu())
    return torch.cat(parts)


def profile_charts(profiles: Profiles, scenes: int = 2) -> list[str]:
    """A chart a ray of the first scenes, then the mean of all rays."""
    charts = []
    for scene in range(min(scenes, len(profiles.s_true))):
        for ray, (_, _, place) in enumerate(_RAYS):
            series = [
                Series(kind, profiles.s.flip(0).tolist(), weights[scene, ray].flip(0).tolist(), dashed=kind == "none")
                for kind, weights in profiles.weights.items()
            ]
            mark = [(float(profiles.s_true[scene, ray]), "true")]
            title = f"scene {scene}, {place}: weight"
            charts.append(series_chart(title, series, x_label="s", marks=mark, from_zero=True))
    series = [
        Series(kind, profiles.offset.tolist(), mean.tolist(), dashed=kind == "none")
        for kind, mean in profiles.mean.items()
    ]
    title = "mean weight by distance from the true surface"
    return [*charts, series_chart(title, series, x_label="s - true s", marks=[(0.0, "true")], from_zero=True)]


def table(result: Ablation) -> list[list[object]]:
    """Rows for a reader: figure, then the mean of each loss with its least and greatest."""
    summary = result.summary()
    rows: list[list[object]] = [["figure", *(NAMES[kind] for kind in KINDS), "image-blind"]]
    for figure in FIGURES:
        cells = []
        for kind in KINDS:
            found = summary[kind][figure]
            low, high = number_text(found["min"]), number_text(found["max"])
            spread = f" ({low} to {high})" if len(result.seeds) > 1 else ""
            cells.append(number_text(found["mean"]) + spread)
        blind = result.template.get(f"template_{figure}")
        rows.append([figure, *cells, "-" if blind is None else number_text(blind)])
    return rows


def bars(result: Ablation) -> list[str]:
    """Charts of what tells the losses apart."""
    summary = result.summary()
    shown = (("weight variance", "weight_variance"), ("novel gain, dB", "novel_gain"))
    return [bar_chart(title, [(kind, summary[kind][name]["mean"]) for kind in KINDS]) for title, name in shown]


def profile_sections(charts: Sequence[str]) -> list[Section]:
    """The weights along rays as a section of the page."""
    return [Section("Weights along rays", [Text(_PROFILE_TEXT), Svg(side_by_side(charts, 3))])]


def markdown(result: Ablation, command: str) -> str:
    """The page for `docs/`, beside `ablation.png` and `profiles.svg`."""
    plan = result.plan
    head, *rows = [[str(cell) for cell in row] for row in table(result)]
    seeds = ", ".join(map(str, result.seeds))
    made = (
        f"Made by `{command}`: one recipe with three values of `loss.depth_kind`, each with the seeds {seeds} and "
        f"{plan.images} images of {plan.scenes} toy scenes, measured on {plan.count} others. Mean of the seeds "
        "(least to greatest). docs/evaluation.md defines the figures; `novel_gain` is `novel_psnr` - "
        "`copy_psnr`."
    )
    picture = "Disparity and novel views, loss on accumulated depth on the left, pointwise on the right"
    blocks = [
        "# The pointwise depth loss",
        made,
        "\n".join(f"- {text}" for text in verdict(result)),
        "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]),
        SHEET_TEXT,
        f"![{picture}](ablation.png)",
        _PROFILE_TEXT,
        "![Weights along rays](profiles.svg)",
    ]
    return "\n\n".join(blocks) + "\n"
