"""Depth networks of transformers, from a folder: DPT and MiDaS, Depth Anything, ZoeDepth, Depth Pro and their like.

Only safetensors are loaded, and no code that a folder brings is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vq3dcli.data_tools.depth.models import PACKAGES, DepthModel, Meaning
from vq3dcli.errors import DataError, InputMissingError, UnsafeFileError, UsageError
from vq3dcli.files import sha256_file
from vq3dcli.sealed import json_value
from vq3dcli.weights.third_party import import_package

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
    config = _read_config(folder)
    family = str(config.get("model_type"))
    meaning = meaning or known_meaning(config)
    if meaning is None:
        raise UsageError(
            f"what this network predicts is not known (model type {family}, {folder})",
            remedy="--predicts disparity, or --predicts depth, as DPT on DINOv2 does; its page says which",
        )
    processor, model = _load(folder, device)
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


def _read_config(folder: Path) -> dict[str, Any]:
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise InputMissingError(
                f"not a depth model in the layout of transformers ({folder}): {name} is missing",
                remedy="the folder that `hf download` made, or an .onnx file",
            )
    try:
        config = dict(json_value((folder / "config.json").read_bytes()))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"damaged depth model ({folder / 'config.json'}): no JSON object", remedy="fetch it again"
        ) from error
    if not any(folder.glob("*.safetensors")):
        pickles = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        if pickles:
            raise UnsafeFileError(
                f"refused weights that are a pickle ({folder / sorted(pickles)[0]}): loading one can run any code",
                remedy="the same model as .safetensors or .onnx",
            )
        raise InputMissingError(f"no weights in the folder of the depth model ({folder})", remedy="fetch it again")
    return config


def _load(folder: Path, device: torch.device) -> tuple[Any, Any]:
    package = import_package("transformers", "a depth model of this layout", PACKAGES)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _silence():
            processor = package.AutoImageProcessor.from_pretrained(folder, **options)
            model, info = package.AutoModelForDepthEstimation.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **options
            )
    except Exception as error:  # damaged files raise almost any type here
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise UnsafeFileError(
                f"refused a depth model that brings its own code ({folder})", remedy="a model of transformers itself"
            ) from error
        raise _unloadable(folder, f"{type(error).__name__}: {text[:200]}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise _unloadable(folder, f"{len(missing)} tensors are missing, first {missing[0]}")
    return processor, model.eval().requires_grad_(False).to(device)


def _unloadable(folder: Path, reason: str) -> DataError:
    return DataError(
        f"cannot load depth model ({folder}): {reason}", remedy="fetch it again, or pip install --upgrade 'vq3d[depth]'"
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep transformers from drawing bars and logging: what matters is raised as an error."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
