"""Depth networks as ONNX files, through onnxruntime: one image input, one map as output."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vq3dcli.data_tools.depth.models import DepthModel, Meaning
from vq3dcli.errors import DataError, UnavailableError, UsageError
from vq3dcli.files import sha256_file
from vq3dcli.weights.third_party import import_package
from vq3dcli.weights.transformers_folder import image_statistics

# Of ImageNet's training images in [0, 1]: what networks are given where nothing else is said.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The size of Depth Anything; a multiple of its patches of 14.
DEFAULT_INPUT_PX = 518
_PREPROCESSOR = "preprocessor_config.json"


def open_onnx(
    path: Path, device: torch.device, *, meaning: Meaning | None, input_px: int | None, or_cpu: bool
) -> DepthModel:
    """Open a file; see `open_model`. CUDA is used if onnxruntime was built for it.

    Images are resized to a square by antialiased bicubic interpolation and normalised by the mean and the standard
    deviation that a `preprocessor_config.json` beside the file or one folder above it names, else by ImageNet's.
    """
    session, provider = _session(path, device, or_cpu)
    image, channels_last = _image_input(session, path)
    output = session.get_outputs()[0]
    if output.type not in ("tensor(float)", "tensor(float16)", "tensor(double)"):  # classes of a segmentation
        raise DataError(
            f"not a depth model ({path}): its first output {output.name} is {output.type}",
            remedy="a file whose first output is a map of floating-point numbers",
        )
    fixed_batch = image.shape[0] if isinstance(image.shape[0], int) else None
    side = _side(list(image.shape[1:3] if channels_last else image.shape[2:4]), input_px, path)
    beside = next((f / _PREPROCESSOR for f in path.parents[:2] if (f / _PREPROCESSOR).is_file()), None)
    said = {} if beside is None else image_statistics(beside)
    mean, std = said.get("image_mean", list(IMAGENET_MEAN)), said.get("image_std", list(IMAGENET_STD))

    def predict(images: Tensor) -> Tensor:
        small = functional.interpolate(images, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
        inputs = (small.float() / 255.0 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        return torch.cat([run(part) for part in inputs.split(fixed_batch or len(inputs))])

    def run(inputs: Tensor) -> Tensor:
        count = len(inputs)
        if fixed_batch is not None and count < fixed_batch:  # it gets its last row again
            inputs = torch.cat([inputs, inputs[-1:].expand(fixed_batch - count, -1, -1, -1)])
        array = (inputs.permute(0, 2, 3, 1) if channels_last else inputs).contiguous().numpy()
        if image.type == "tensor(float16)":
            array = array.astype(np.float16)
        try:
            outputs = session.run(None, {image.name: array})
        except Exception as error:  # the runtime has its own exceptions for every provider
            raise DataError(
                f"depth model fails ({path}): {' '.join(str(error).split())[:200]}",
                remedy="--input-size with a size that the network takes, or another file",
            ) from error
        maps = torch.from_numpy(np.asarray(outputs[0], dtype=np.float32))
        if maps.ndim == 4 and 1 in (maps.shape[1], maps.shape[3]):
            maps = maps.squeeze(1 if maps.shape[1] == 1 else 3)
        if maps.ndim != 3 or len(maps) != len(array):
            raise DataError(
                f"depth model gives no map an image ({path}): shape {list(outputs[0].shape)}",
                remedy="a file whose first output is [batch, height, width]",
            )
        return maps[:count]

    facts = {
        "backend": "onnx",
        "provider": provider,
        "meaning": meaning or "disparity",
        "input_px": side,
        "mean": mean,
        "std": std,
        "sha256": _sha256(path),
    }
    return DepthModel(predict, meaning or "disparity", facts)


def _session(path: Path, device: torch.device, or_cpu: bool) -> tuple[Any, str]:
    """The session and the name of the provider that it computes with."""
    # Without it, importing onnxruntime gives the machine a lasting number and reports to Microsoft.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    onnxruntime = import_package("onnxruntime", "an ONNX file", "pip install 'vq3d[onnx]'")
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        if not or_cpu:
            raise UnavailableError(
                "onnxruntime has no CUDA here", remedy="pip install onnxruntime-gpu, or --device cpu"
            )
        provider = "CPUExecutionProvider"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    try:
        # Each rank has a GPU of its own; left out, all would share the first.
        settings = {"device_id": device.index or 0} if provider == "CUDAExecutionProvider" else {}
        session = onnxruntime.InferenceSession(str(path), options, providers=[(provider, settings)])
    except Exception as error:  # the runtime has its own exceptions for every kind of damage
        raise DataError(
            f"cannot load depth model ({path}): {' '.join(str(error).split())[:200]}", remedy="fetch the file again"
        ) from error
    used = str(session.get_providers()[0])
    if used != provider and not or_cpu:  # CUDA's own libraries may be missing, which is only logged
        raise UnavailableError("onnxruntime cannot use CUDA here", remedy="its CUDA libraries, or --device cpu")
    return session, used


def _image_input(session: Any, path: Path) -> tuple[Any, bool]:
    """The one image input, and whether channels are its last axis."""
    inputs = session.get_inputs()
    if len(inputs) == 1 and len(inputs[0].shape) == 4 and inputs[0].type in ("tensor(float)", "tensor(float16)"):
        return inputs[0], inputs[0].shape[3] == 3 and inputs[0].shape[1] != 3
    described = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
    raise DataError(
        f"not a network of one image ({path}): it takes {described}",
        remedy="a file with one input float [batch, 3, height, width]",
    )


def _side(sides: list[Any], wanted: int | None, path: Path) -> int:
    fixed = {side for side in sides if isinstance(side, int)}
    if not fixed:
        return wanted or DEFAULT_INPUT_PX
    if len(fixed) > 1:
        raise DataError(
            f"depth model takes no square images ({path}): {sides}", remedy="a file of a square or free size"
        )
    side = int(fixed.pop())
    if wanted not in (None, side):
        raise UsageError(f"depth model takes images of {side} pixels ({path})", remedy="no --input-size")
    return side


def _sha256(path: Path) -> str:
    """Of the file, and of the files beside it that hold its large tensors."""
    digest = hashlib.sha256()
    beside = [p for p in path.parent.iterdir() if p.name.startswith((f"{path.name}_data", f"{path.name}.data"))]
    for file in [path, *sorted(beside)]:
        digest.update(f"{sha256_file(file)}\n".encode())
    return digest.hexdigest()
