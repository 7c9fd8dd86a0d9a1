"""Depth networks of transformers, from a folder: DPT and MiDaS, Depth Anything, ZoeDepth, Depth Pro and their like."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vq3dcli.data_tools.depth.models import DepthModel, Meaning
from vq3dcli.errors import InputMissingError, UsageError
from vq3dcli.files import sha256_file
from vq3dcli.weights.third_party import import_package
from vq3dcli.weights.transformers_folder import PACKAGES, open_network, open_processor, read_config

_WHAT = "a depth model"
# What `predicted_depth` is, by model type. DPT was trained on inverse depth up to scale and shift (Ranftl et al. 2021,
# section 4.1), Depth Pro's network emits inverse depth for a canonical focal length (Bochkovskii et al. 2024, section
# 3.1), which is the scene's up to a factor.
MEANING: dict[str, Meaning] = {"dpt": "disparity", "depth_pro": "disparity", "zoedepth": "depth", "glpn": "depth"}
# These say it in their configuration.
_CONFIGURED: dict[str, Meaning] = {"relative": "disparity", "metric": "depth"}


def open_transformers(folder: Path, device: torch.device, *, meaning: Meaning | None) -> DepthModel:
    """Open a folder with `config.json`, `preprocessor_config.json` and safetensors; see `open_model`.

    Computes in float32 on a CPU, in float16 autocast on CUDA.
    """
    config = read_config(folder, _WHAT)
    if not (folder / "preprocessor_config.json").is_file():
        raise InputMissingError(
            f"{_WHAT} without its preprocessor_config.json ({folder})", remedy="the folder that `hf download` made"
        )
    family = str(config.get("model_type"))
    meaning = meaning or known_meaning(config)
    if meaning is None:
        raise UsageError(
            f"what this network predicts is not known (model type {family}, {folder})",
            remedy="--predicts disparity, or --predicts depth, as DPT on DINOv2 does; its page says which",
        )
    package = import_package("transformers", f"{_WHAT} of this layout", PACKAGES)
    processor = open_processor(folder, _WHAT)
    model = open_network(package.AutoModelForDepthEstimation, folder, _WHAT).requires_grad_(False).to(device)
    is_cuda = device.type == "cuda"

    @torch.inference_mode()
    def predict(images: Tensor) -> Tensor:
        inputs = processor(images=list(images), return_tensors="pt").to(device)
        with torch.autocast("cuda", torch.float16, enabled=is_cuda):
            outputs = model(**inputs)
        prediction: Tensor = outputs.predicted_depth
        if family == "zoedepth":  # its processor pads, and only its own way back knows by how much
            outputs.predicted_depth = prediction.float()
            sizes = [(images.shape[2], images.shape[3])] * len(images)
            maps = processor.post_process_depth_estimation(outputs, source_sizes=sizes)
            prediction = torch.stack([item["predicted_depth"] for item in maps])
        return prediction.float().cpu()

    # Of the names and hashes of all files that the network is read from, in the order of names.
    digest = hashlib.sha256()
    files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".json")]
    for path in sorted(files, key=lambda path: path.name):
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    facts = {
        "backend": "transformers",
        "family": family,
        "meaning": meaning,
        "precision": "float16 autocast" if is_cuda else "float32",
        "sha256": digest.hexdigest(),
    }
    return DepthModel(predict, meaning, facts)


def known_meaning(config: dict[str, Any]) -> Meaning | None:
    """What the numbers of a network are by its `config.json`; None if that does not say it."""
    family = str(config.get("model_type"))
    # Heads on DINOv2 have DPT's model type, but predict metres: facebook/dpt-dinov2-small-nyu and its like.
    backbone = str((config.get("backbone_config") or {}).get("model_type", config.get("backbone", "")))
    if family == "dpt" and (config.get("add_projection") or "dinov2" in backbone):
        return None
    if family in ("depth_anything", "prompt_depth_anything"):
        return _CONFIGURED.get(str(config.get("depth_estimation_type", "relative")))
    return MEANING.get(family) or _CONFIGURED.get(str(config.get("depth_estimation_type", "")))
