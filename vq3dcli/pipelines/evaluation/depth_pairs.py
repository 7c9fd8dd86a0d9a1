"""Measure disparity on photos whose depth is known: `NAME.jpg` beside `NAME.disparity.png`, 16 bits, 0 for unknown.

`index.jsonl` beside them may say of each its `set`, its `kind` (`sensor`: amounts are to be trusted; anything else:
the order alone) and `lo` and `hi`, the disparities that levels 1 and 65535 stand for.

Legend: N pairs, S side of the maps that are compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vq3dcli.config.defaults import EVALUATION_SAMPLES
from vq3dcli.data.images import centre_square, decode_image, resize
from vq3dcli.data.shard_reader import resize_label
from vq3dcli.data_tools.depth.models import find_model, open_model
from vq3dcli.errors import DataError, InputMissingError, UsageError
from vq3dcli.export.charts import bar_chart
from vq3dcli.export.colour import colour_map
from vq3dcli.export.sheet import grid
from vq3dcli.files import read_error
from vq3dcli.metrics.geometry import RELATIVE_FIGURES, relative_figures
from vq3dcli.model.build import build_canonical_camera
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.pipelines.evaluation.page import Evaluation, evaluation_folder
from vq3dcli.pipelines.targets import Counting, adding
from vq3dcli.rendering.render import exact_rendering
from vq3dcli.seeding import generator
from vq3dcli.weights_file import LoadedWeights, load_weights

PROTOCOL = "depth-pairs-1"
MAP_PX = 64
_SUFFIX = ".disparity.png"
_FEWEST_KNOWN = 200
_POOR = 0.3  # rank correlation of a map that is of no use
_RESAMPLES = 2000
_SHOWN, _TILE_PX = 12, 128
_SHEET_TEXT = (
    "The pairs on which the first network is worst: photo, truth, each network's map with its rank correlation. Near "
    "is bright, from the 2nd to the 98th percentile of a map; what is unknown is dark."
)

Predict = Callable[[Tensor], Tensor]
"""uint8 `[N, 3, H, W]` to disparity up to an increasing affine map `[N, h, w]`."""


@dataclass(frozen=True)
class Pair:
    """A photo uint8 `[3, H, W]`, a centre square, with its disparity float32 `[S, S]`, 0 where it is unknown.

    `amounts` says whether more than the order is to be trusted.
    """

    name: str
    group: str
    amounts: bool
    image: Tensor = field(repr=False)
    disparity: Tensor = field(repr=False)


@exact_rendering()
def measure_depth(
    data: Path,
    *,
    models: Sequence[str],
    weights: Sequence[str],
    flip: bool,
    device: torch.device,
    or_cpu: bool,
    out: Path | None,
    counting: Counting,
) -> Evaluation:
    """What `vq3d evaluate depth` does; its options say what the arguments are, and raise its errors.

    `or_cpu` says whether a network may fall back to the CPU.
    """
    pairs = open_pairs(data)
    predictors: dict[str, Predict] = {}
    hashes: dict[str, object] = {}

    def add(name: str, predict: Predict, sha256: object) -> None:
        if name in predictors:
            raise UsageError(f"two networks of the same name ({name})", remedy="each once, in folders of other names")
        predictors[name], hashes[name] = predict, sha256

    for each in models or ([] if weights else ["embedded"]):
        files = find_model(each)
        network = open_model(files, device, or_cpu=or_cpu, flip=flip)
        add(files.name, network.disparity, network.facts["sha256"])
    for each in weights:
        loaded = load_weights(each, device)
        add(f"Stage 1 {Path(each).name}", rendered(loaded), loaded.sha256)
    evaluation_folder(out, "depth", "depth.png")
    with counting("measuring", "maps") as count:
        figures, seen = measure_pairs(pairs, predictors, on_maps=adding(count, len(pairs) * len(predictors)))
    conditions = {"protocol": PROTOCOL, "data": str(data), "pairs": len(pairs), "flip": flip, "sha256": hashes}
    return Evaluation(
        PROTOCOL,
        len(pairs),
        {**figures, "conditions": conditions},
        table(figures),
        title="Depth of photos",
        subtitle=f"{PROTOCOL}, {len(pairs)} pairs",
        charts=[
            bar_chart(f"rank correlation, {group}", [(name, row["spearman"]) for name, row in maps.items()])
            for group, maps in figures.items()
        ],
        sheet=sheet(seen) if seen else None,
        sheet_text=_SHEET_TEXT,
    )


def open_pairs(folder: Path) -> list[Pair]:
    """All pairs of a folder, sorted by name. Raises `InputMissingError` without any, `DataError` for a damaged file."""
    paths = sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else []
    if not paths:
        raise InputMissingError(
            f"no pairs of photos and disparity ({folder})", remedy=f"a folder of NAME.jpg beside NAME{_SUFFIX}"
        )
    facts = _read_facts(folder / "index.jsonl")
    return [_open(path, facts.get(path.name.removesuffix(_SUFFIX), {})) for path in paths]


def _open(path: Path, facts: Mapping[str, Any]) -> Pair:
    name = path.name.removesuffix(_SUFFIX)
    photo = path.with_name(f"{name}.jpg")
    try:
        image = decode_image(photo.read_bytes(), name=str(photo))
        with Image.open(path) as opened:
            levels = torch.from_numpy(np.asarray(opened).astype(np.int32))
        lo, hi = float(facts.get("lo", 1.0 / 65535.0)), float(facts.get("hi", 1.0))
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, TypeError) as error:
        raise DataError(f"damaged pair ({path}): {error}", remedy="another copy of it") from error
    if levels.ndim != 2 or levels.shape != image.shape[1:]:
        raise DataError(
            f"disparity of another size than the photo ({path}): {tuple(levels.shape)}", remedy="maps of 16-bit grey"
        )
    disparity = torch.where(levels > 0, lo + (hi - lo) * (levels - 1) / 65534.0, 0.0).float()
    top, left, side = centre_square(*disparity.shape)
    square = (..., slice(top, top + side), slice(left, left + side))
    amounts = facts.get("kind") == "sensor"
    return Pair(name, str(facts.get("set", "all")), amounts, image[square], resize_label(disparity[square], MAP_PX))


def _read_facts(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        return {str(line["name"]): dict(line) for line in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"damaged index ({path}): {error}", remedy="mend it, or leave it out") from error


class Seen(NamedTuple):
    """A pair, what each predictor says of it, `[S, S]`, and the rank correlations of these."""

    pair: Pair
    maps: dict[str, Tensor]
    spearman: dict[str, float]


def measure_pairs(
    pairs: Sequence[Pair], predictors: Mapping[str, Predict], *, on_maps: Callable[[int], object] = lambda count: None
) -> tuple[dict[str, dict[str, dict[str, float]]], list[Seen]]:
    """Figures of each predictor on each set, beside the vertical gradient and the mean of the set's other maps.

    Set, predictor and figure to its value: means over images of `metrics.geometry.relative_figures`, `delta1` only
    where amounts are to be trusted; `spearman_low` and `spearman_high`, the bounds of a 95 % bootstrap interval;
    `poor`, the share of images whose rank correlation is below 0.3; `images`. And each pair with its maps.
    """
    result: dict[str, dict[str, dict[str, float]]] = {}
    seen: list[Seen] = []
    for group in dict.fromkeys(pair.group for pair in pairs):
        members = [p for p in pairs if p.group == group and int((p.disparity > 0).sum()) >= _FEWEST_KNOWN]
        if not members:
            continue
        down = torch.arange(MAP_PX, dtype=torch.float32)[None, :, None].expand(len(members), MAP_PX, MAP_PX)
        maps = {"vertical gradient": down, "mean of the others": _mean_of_others(members)}
        for name, predict in predictors.items():
            maps[name] = _predicted(members, predict, on_maps)
        rows = {name: _rows(members, values) for name, values in maps.items()}
        result[group] = {name: _summary(members, each) for name, each in rows.items()}
        seen += [
            Seen(pair, {n: maps[n][i] for n in predictors}, {n: rows[n][i]["spearman"] for n in predictors})
            for i, pair in enumerate(members)
        ]
    return result, seen


def _predicted(members: Sequence[Pair], predict: Predict, on_maps: Callable[[int], object]) -> Tensor:
    maps = []
    for pair in members:  # photos may differ in size
        values = predict(pair.image[None]).float().cpu()
        maps.append(functional.interpolate(values[None], (MAP_PX, MAP_PX), mode="bilinear", antialias=True)[0, 0])
        on_maps(1)
    return torch.stack(maps)


def _mean_of_others(members: Sequence[Pair]) -> Tensor:
    known = torch.stack([pair.disparity > 0 for pair in members])
    values = torch.stack([pair.disparity for pair in members])
    count = known.sum((1, 2), keepdim=True)
    mean = values.sum((1, 2), keepdim=True) / count
    deviation = ((values - mean).square() * known).sum((1, 2), keepdim=True).div(count).sqrt().clamp(min=1e-6)
    standard = torch.where(known, (values - mean) / deviation, 0.0)
    return (standard.sum(0) - standard) / max(len(members) - 1, 1)


def _rows(members: Sequence[Pair], maps: Tensor) -> list[dict[str, float]]:
    known = [pair.disparity > 0 for pair in members]
    return [relative_figures(m[k], p.disparity[k]) for m, k, p in zip(maps, known, members, strict=True)]


def _summary(members: Sequence[Pair], rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    figures = {name: float(np.mean([row[name] for row in rows])) for name in RELATIVE_FIGURES}
    if not all(pair.amounts for pair in members):
        del figures["delta1"]
    spearman = torch.tensor([row["spearman"] for row in rows], dtype=torch.float64)
    drawn = torch.randint(len(rows), (_RESAMPLES, len(rows)), generator=generator(0, "bootstrap"))
    low, high = torch.quantile(spearman[drawn].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    poor = float((spearman < _POOR).double().mean())
    return {**figures, "spearman_low": low, "spearman_high": high, "poor": poor, "images": float(len(rows))}


def rendered(loaded: LoadedWeights) -> Predict:
    """What Stage 1 sees in a photo: the NeRF's disparity in the photo's own camera."""
    size = loaded.recipe.model.image_size
    camera = build_canonical_camera(loaded.recipe, size)
    device = loaded.device

    def predict(images: Tensor) -> Tensor:
        photo = torch.stack([resize(image, size, size) for image in images]).to(device)
        return reconstruct_scene(loaded.model, photo).render(camera, samples=EVALUATION_SAMPLES).s

    return predict


def sheet(seen: Sequence[Seen]) -> Tensor:
    """Photo, truth and what each predictor says, the worst of the first one above; uint8 `[3, H, W]`."""
    first = next(iter(seen[0].maps))
    tiles: list[Tensor] = []
    labels: list[str] = []
    for pair, maps, spearman in sorted(seen, key=lambda each: each.spearman[first])[:_SHOWN]:
        known = pair.disparity > 0
        tiles.append(resize(pair.image, _TILE_PX, _TILE_PX))
        for values in (torch.where(known, pair.disparity, torch.nan), *maps.values()):
            low, high = torch.quantile(values[known], torch.tensor([0.02, 0.98])).tolist()
            large = functional.interpolate(values[None, None], (_TILE_PX, _TILE_PX))[0, 0]
            tiles.append(colour_map(large, low, max(high, low + 1e-6)))
        labels += [pair.name, "truth", *(f"{name} {value:.2f}" for name, value in spearman.items())]
    return grid(tiles, columns=2 + len(seen[0].maps), labels=labels)


def table(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list[object]]:
    """Rows for people, a set after the other."""
    rows: list[list[object]] = [["set", "map", "spearman", "95 % interval", "ordinal", "ssi error", "delta1", "poor"]]
    for group, maps in figures.items():
        for name, row in maps.items():
            interval = f"{row['spearman_low']:.3f} to {row['spearman_high']:.3f}"
            cells = [f"{row[key]:.3f}" if key in row else "-" for key in ("ordinal", "ssi_error", "delta1", "poor")]
            rows.append([f"{group} ({row['images']:.0f})", name, f"{row['spearman']:.3f}", interval, *cells])
    return rows
