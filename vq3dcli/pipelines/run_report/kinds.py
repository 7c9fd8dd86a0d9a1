"""What the pages of runs of several kinds do not have in common: facts, guards, curves, held-out images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vq3dcli.config.schema import DepthRecipe, Recipe, Stage2Recipe
from vq3dcli.export.page import Section, paragraph, table
from vq3dcli.sealed import json_value
from vq3dcli.training.health import number

STAGE1_SHEET = (
    "A row an image: input, reconstruction, rendered disparity, its label, views from the left and the right."
)
STAGE2_SHEET = "A row a class: samples of the averaged prior, each beside its disparity; the same seeds on each sheet."

# Figures that a page derives.
PSNR, USAGE, NOVEL_PSNR = "psnr", "code_usage", "novel_psnr"
# A section's title, its figures in their order, and what they say.
CurveSection = tuple[str, tuple[str, ...], str]

TITLES = {
    PSNR: "PSNR of training rays, dB",
    USAGE: "perplexity / codes",
    "depth_order": "depth order",
    NOVEL_PSNR: "PSNR of rays of novel views, dB",
    "novel_l2": "L2 at novel views",
    "novel_l1": "L1 at novel views",
    "novel_depth": "depth at novel views",
    "novel_perceptual": "perceptual at novel views",
    "novel_views": "novel views an image",
    "weight_variance": "weight variance",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "images_per_second": "images a second",
    "data_wait": "share of the time without a batch",
    "peak_memory_gb": "peak memory, GB",
    "mfu": "model FLOPs utilisation",
    "held_out_psnr": "PSNR, held out, dB",
    "held_out_novel_psnr": "PSNR of exact views, held out, dB",
    "held_out_spearman": "rank correlation of disparity, held out",
    "held_out_ssi_error": "error of disparity, held out",
    "bits": "bits a code, training",
    "held_out_bits": "bits a code, held out",
    "unigram_bits": "bits a code by counting",
    "held_out_share": "held out / counting",
}
_STAGE1_CURVES: tuple[CurveSection, ...] = (
    (
        "Losses and reconstruction",
        ("loss", PSNR, "l2", "l1", "perceptual", "auxiliary", "chroma_ratio"),
        "Of the batches, before the average of weights; unweighted but for the total. Colourfulness is 1 when right.",
    ),
    (
        "Geometry",
        ("depth", "depth_order", "relief", "weight_variance"),
        "Order: how far pairs of rays are from their true order, 0 right, 2 worst. Relief: spread of rendered over "
        "true disparity, 0 a wall, 1 right. Weight variance: large with floaters.",
    ),
    (
        "Codes",
        ("perplexity", USAGE, "commitment"),
        "Of each batch; before quantisation begins no code is used, only counted.",
    ),
)
HELD_OUT_CURVES: CurveSection = (
    "Held-out images",
    ("held_out_psnr", "held_out_novel_psnr", "held_out_spearman", "held_out_ssi_error"),
    "Of the average of weights, on images that never train, through their codes; disparity where it is exact.",
)
_NOVEL_CURVES: CurveSection = (
    "Novel views",
    (NOVEL_PSNR, "novel_l2", "novel_l1", "novel_depth", "novel_perceptual", "novel_views"),
    "The same losses at exact pictures from other cameras, in records of a step that had any.",
)
_STAGE2_CURVES: tuple[CurveSection, ...] = (
    (
        "Bits a code",
        ("bits", "held_out_bits", "held_out_share"),
        "Training: of the batches, with dropout, before the average of weights. Held out: of the average, on images "
        "that never train. Counting: the entropy of a code given its class, whatever its place and neighbours.",
    ),
)
_DEPTH_CURVES: tuple[CurveSection, ...] = (
    ("Loss", ("loss",), "Mean over the interval: error of normalised maps and of their slopes, augmented images."),
)
_DEPTH_SHEET = "Two images a row: image, disparity of the averaged network, label, each map in its own range."
_MOST_CLASSES = 60


def model_rows(recipe: Recipe) -> list[list[str]]:
    """What was trained, as rows of a table."""
    schedule = recipe.training
    if isinstance(recipe, DepthRecipe):
        network = recipe.model
        return [
            ["model", f"{network.encoder} at {network.input_px} pixels, {network.frozen_blocks} blocks frozen"],
            ["batch", f"{schedule.batch_size} images, seed {schedule.seed}, adamw"],
            ["loss", f"scale- and shift-invariant, slopes {recipe.loss.gradient:g}"],
        ]
    batch = ["batch", f"{recipe.training.batch_size} images, seed {schedule.seed}, {recipe.training.optimizer}"]
    if isinstance(recipe, Stage2Recipe):
        prior, sampling = recipe.model, recipe.sampling
        return [
            ["model", f"a prior of width {prior.width}, {prior.layers} layers, {prior.heads} heads"],
            batch,
            ["dropout", f"{prior.dropout:g}, of classes {recipe.training.class_dropout:g}"],
            ["sheets", f"temperature {sampling.temperature:g}, guidance {sampling.guidance:g}"],
        ]
    model = recipe.model
    tokens = (model.image_size // model.patch) ** 2
    loss = recipe.loss
    order = f", order {loss.depth_order:g}" if loss.depth_order > 0 else ""
    novel = [f"{key} {value:g}" for key, value in loss if key.startswith("novel_") and value > 0]
    return [
        ["model", f"{model.image_size} pixels, {tokens} tokens, {model.codebook_size} codes, {model.space} planes"],
        batch,
        ["depth loss", f"{loss.depth_kind}, weight {loss.depth:g}{order}"],
        *([["novel views", ", ".join(novel)]] if novel else []),
    ]


def sheet_text(recipe: Recipe | None) -> str:
    """What a contact sheet shows."""
    if isinstance(recipe, DepthRecipe):
        return _DEPTH_SHEET
    if isinstance(recipe, Stage2Recipe):
        return STAGE2_SHEET
    novel = recipe is not None and recipe.loss.novel
    return (
        f"{STAGE1_SHEET} Then the camera of an exact view, where there is one: rendered, true."
        if novel
        else STAGE1_SHEET
    )


def curve_sections(recipe: Recipe | None) -> tuple[CurveSection, ...]:
    """Which figures stand together; without a recipe those of Stage 1."""
    if isinstance(recipe, DepthRecipe):
        return _DEPTH_CURVES
    if isinstance(recipe, Stage2Recipe):
        return _STAGE2_CURVES
    return (*_STAGE1_CURVES, _NOVEL_CURVES) if recipe is not None and recipe.loss.novel else _STAGE1_CURVES


def held_out_section(run: Path) -> list[Section]:
    """Figures on held-out images by class, the worst first; none where there is no sound `held_out.json`."""
    try:
        found = json_value((run / "held_out.json").read_text())
        rows = [_held_out_row(str(name), row) for name, row in found["classes"].items()]
        everything = _held_out_row("all", found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    rows.sort(key=lambda row: -row[2] if math.isfinite(row[2]) else math.inf)
    cells = [["class", "images", "bits a code", "by counting", "share"]]
    for name, images, bits, unigram in [everything, *rows[:_MOST_CLASSES]]:
        share = f"{bits / unigram:.1%}" if unigram > 0 else "-"
        cells.append([name, f"{images:.0f}", f"{bits:.3f}", f"{unigram:.3f}", share])
    seen = number(found, "images_seen") or 0
    text = f"At {seen:.0f} images. The worst classes first; by counting: the entropy of a code given the class."
    return [Section("Held-out images by class", [paragraph(text), table(cells)])]


def _held_out_row(name: str, row: Mapping[str, Any]) -> tuple[str, float, float, float]:
    """Name, images, bits and bits by counting; NaN for what is not there."""
    values = [number(row, key) for key in ("images", "bits", "unigram_bits")]
    images, bits, unigram = (math.nan if value is None else value for value in values)
    return name, images, bits, unigram
