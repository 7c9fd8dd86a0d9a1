"""The figure and the pages of the depth-loss ablation: pictures side by side, weights along rays, tables.

Scenes are the first ones of the evaluation and rays lie at fixed pixels: nothing is chosen by what it looks like.

Legend: B scenes, N rays, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vq3dcli.config.defaults import EVALUATION_SAMPLES
from vq3dcli.export.charts import Series, bar_chart, series_chart, side_by_side, standalone
from vq3dcli.export.colour import colour_map
from vq3dcli.export.page import Html, Section, cell_text, number_text, paragraph
from vq3dcli.export.sheet import grid
from vq3dcli.files import as_bytes, write_bytes
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.pipelines.evaluation.page import Evaluation, evaluation_folder, versions
from vq3dcli.pipelines.studies import ablation
from vq3dcli.pipelines.studies.ablation import FIGURES, KINDS, Ablation
from vq3dcli.pipelines.targets import Counting
from vq3dcli.rendering.cameras import Camera, Rays, canonical_camera, pivot_camera, pixel_centres, rays_at_pixels
from vq3dcli.rendering.ray_samples import uniform_samples
from vq3dcli.rendering.render import render_rays
from vq3dcli.toyscenes import render_scenes, sample_scenes
from vq3dcli.weights_file import LoadedWeights, load_weights

NAMES = {"accumulated": "loss on accumulated depth", "pointwise": "pointwise depth loss", "none": "no depth loss"}
_SHOWN = ("accumulated", "pointwise")
_YAWS_DEG = (-20.0, 20.0)
# Places in the image, in shares of its sides: the middle, the ground in front, the background.
_RAYS = ((0.5, 0.5, "middle"), (0.5, 0.85, "below"), (0.25, 0.2, "above left"))
_BINS = 96
_SHEET_SCENES, _PROFILE_SCENES, _PROFILES_SHOWN = 5, 4, 2
_SHEET_TEXT = (
    "The same inputs, the first scenes of the evaluation. From left to right: input; trained with the loss on "
    "accumulated depth: disparity, then views from 20 degrees to the left and to the right; the same trained with the "
    "pointwise loss; and the exact scene."
)
_PROFILE_TEXT = (
    "Rendering weights along single rays, over normalised disparity s (1 is near, 0 far); the upright line is the true "
    "surface. Then the mean of all rays of these scenes, by distance from the true surface."
)


@torch.inference_mode()
def figure_sheet(models: Mapping[str, LoadedWeights]) -> Tensor:
    """The figure of the project page, uint8 `[3, H, W]`; scenes are rendered at twice the side of the input."""
    scenes = _SHEET_SCENES
    exact = sample_scenes(torch.arange(scenes), seed=0, purpose="eval")
    size = models[_SHOWN[0]].recipe.model.image_size
    inputs = render_scenes(exact, canonical_camera(scenes, height_px=size, width_px=size)).rgb
    yaws = [torch.full((scenes,), math.radians(yaw_deg)) for yaw_deg in (0.0, *_YAWS_DEG)]
    cameras = [pivot_camera(yaw, torch.zeros(scenes), height_px=2 * size, width_px=2 * size) for yaw in yaws]
    columns: list[tuple[str, Tensor]] = [("input", inputs.repeat_interleave(2, -1).repeat_interleave(2, -2))]
    for kind in _SHOWN:
        model = models[kind].model
        scene = reconstruct_scene(model, inputs.to(next(model.parameters()).device))
        views = [scene.render(camera, samples=EVALUATION_SAMPLES) for camera in cameras]
        columns.append((f"{kind}: disparity", colour_map(views[0].s.cpu())))
        columns += [(f"{kind}, {yaw:+.0f}", view.rgb.cpu()) for yaw, view in zip(_YAWS_DEG, views[1:], strict=True)]
    true = [render_scenes(exact, camera) for camera in cameras]
    columns.append(("exact: disparity", colour_map(true[0].s)))
    columns += [(f"exact, {yaw:+.0f}", view.rgb) for yaw, view in zip(_YAWS_DEG, true[1:], strict=True)]
    tiles = [pictures[row] for row in range(scenes) for _, pictures in columns]
    labels = [name if row == 0 else "" for row in range(scenes) for name, _ in columns]
    return grid(tiles, columns=len(columns), labels=labels)


@torch.inference_mode()
def profile_charts(models: Mapping[str, LoadedWeights]) -> list[Html]:
    """Weights along rays of evaluation scenes, 96 samples at the middles of equal bins of s.

    A chart a ray of the scenes that are shown, then the mean of all rays of all scenes by distance from the surface.
    """
    scenes = _PROFILE_SCENES
    exact = sample_scenes(torch.arange(scenes), seed=0, purpose="eval")
    size = next(iter(models.values())).recipe.model.image_size
    camera = canonical_camera(scenes, height_px=size, width_px=size)
    views = render_scenes(exact, camera)
    pixels = [(min(int(x * size), size - 1), min(int(y * size), size - 1)) for x, y, _ in _RAYS]
    s = uniform_samples(EVALUATION_SAMPLES).s
    place = ((s - views.s[..., None] + 1.0) / 2.0 * _BINS).long().clamp(0, _BINS - 1)
    offset = ((torch.arange(_BINS) + 0.5) / _BINS * 2.0 - 1.0).tolist()
    weights: dict[str, Tensor] = {}
    means = []
    for kind, loaded in models.items():
        of_rays = torch.stack([_ray_weights(loaded, views.rgb[b : b + 1], camera, b) for b in range(scenes)])
        weights[kind] = of_rays.reshape(scenes, size, size, EVALUATION_SAMPLES)
        bins = torch.zeros(_BINS, dtype=torch.float64)
        bins.scatter_add_(0, place.flatten(), weights[kind].double().flatten())
        means.append(Series(kind, offset, (bins / bins.sum()).tolist(), dashed=kind == "none"))
    charts = []
    for scene in range(_PROFILES_SHOWN):
        for (column, row), (_, _, where) in zip(pixels, _RAYS, strict=True):
            series = [
                Series(kind, s.flip(0).tolist(), of[scene, row, column].flip(0).tolist(), dashed=kind == "none")
                for kind, of in weights.items()
            ]
            mark = [(float(views.s[scene, row, column]), "true")]
            title = f"scene {scene}, {where}: weight"
            charts.append(series_chart(title, series, x_label="s", marks=mark, from_zero=True))
    title, mark = "mean weight by distance from the true surface", [(0.0, "true")]
    return [*charts, series_chart(title, means, x_label="s - true s", marks=mark, from_zero=True)]


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


def table(result: Ablation) -> list[list[object]]:
    """Rows for a reader: figure, then the mean of each loss with its least and greatest."""
    summary = result.summary()
    rows: list[list[object]] = [["figure", *(NAMES[kind] for kind in KINDS), "image-blind"]]
    for figure in FIGURES:
        cells = []
        for kind in KINDS:
            of_seeds = summary[kind][figure]
            low, high = number_text(of_seeds["min"]), number_text(of_seeds["max"])
            spread = f" ({low} to {high})" if len(result.seeds) > 1 else ""
            cells.append(number_text(of_seeds["mean"]) + spread)
        rows.append([figure, *cells, result.template.get(f"template_{figure}")])
    return rows


def markdown(result: Ablation, command: str) -> str:
    """The page for `docs/`, beside `ablation.png` and `profiles.svg`."""
    plan = result.plan
    head, *rows = [[cell_text(cell) for cell in row] for row in table(result)]
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
        "\n".join(f"- {text}" for text in ablation.verdict(result)),
        "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]),
        _SHEET_TEXT,
        f"![{picture}](ablation.png)",
        _PROFILE_TEXT,
        "![Weights along rays](profiles.svg)",
    ]
    return "\n\n".join(blocks) + "\n"


def measure_ablation(
    out: Path,
    runs: Path,
    plan: ablation.Plan,
    seeds: Sequence[int],
    *,
    device: torch.device,
    counting: Counting,
    should_stop: Callable[[], bool],
    command: str,
) -> tuple[Evaluation, list[Path]]:
    """What `vq3d evaluate ablation` does, and the files beside the page; `command` makes them again."""
    plan.check(seeds)
    evaluation_folder(out, "ablation", "ablation.png", "profiles.svg", "ablation.md")
    result = ablation.run_ablation(runs, plan, seeds, device=device, counting=counting, should_stop=should_stop)
    models = {kind: load_weights(runs / f"{kind}-{seeds[0]}", device) for kind in KINDS}
    profiles = side_by_side(profile_charts(models), 3)
    files = {"profiles.svg": standalone(profiles), "ablation.md": markdown(result, command)}
    for name, text in files.items():
        write_bytes(out / name, as_bytes(text))
    summary = result.summary()
    shown = (("weight variance", "weight_variance"), ("novel gain, dB", "novel_gain"))
    evaluation = Evaluation(
        ablation.PROTOCOL,
        plan.count,
        ablation.record(result, versions(), device),
        table(result),
        title="The pointwise depth loss",
        subtitle=f"{len(seeds)} seeds of three losses, {plan.images} images each, measured on {plan.count} scenes",
        texts=ablation.verdict(result),
        charts=[bar_chart(title, [(kind, summary[kind][name]["mean"]) for kind in KINDS]) for title, name in shown],
        sections=[Section("Weights along rays", [paragraph(_PROFILE_TEXT), profiles])],
        sheet=figure_sheet(models),
        sheet_text=_SHEET_TEXT,
    )
    return evaluation, [out / name for name in files]
