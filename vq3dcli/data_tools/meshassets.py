"""Looking through a folder of textured models: which are of use, what they are, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vq3dcli.data.images import read_file
from vq3dcli.data.shard_format import RejectEntry
from vq3dcli.data_tools.sources.entry import Entry, FilePlace
from vq3dcli.data_tools.sources.listing import list_folder
from vq3dcli.data_tools.workers import available_cores, run_tasks
from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.files import sha256_bytes
from vq3dcli.meshscenes.library import Asset, Assets, read_picture
from vq3dcli.meshscenes.models import MODEL_SUFFIXES, Model, read_model

GROUNDS = "textures"
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# Starting a worker takes as long as reading some hundred models.
_MODELS_WORTH_A_WORKER = 400
_SIZE_STEPS = 100  # models whose sizes agree to a hundredth have one shape, if they have as many triangles


@dataclass(frozen=True)
class Survey:
    """What was found: the assets of use, and the files that are none."""

    assets: Assets
    rejects: list[RejectEntry]


def survey_assets(
    root: Path,
    *,
    leave_out: Path,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Survey:
    """Read every model below a folder once.

    The top-level folder of a model is its class; models beside such folders have the class of the folder's own name.
    Pictures in the top-level folder `textures` are grounds and walls, but for those that belong to a model. `workers`
    are processes, None for one a core, fewer for few models; `progress` is called with (models done, models).

    Raises `InputMissingError`: there is no such folder, or no model in it; `DataError`: no model is of use, with the
    first reason.
    """
    files = list_folder(root, leave_out=leave_out)
    in_grounds = [file for file in files if file.path.startswith(f"{GROUNDS}/")]
    models = [f for f in files if f not in in_grounds and Path(f.path).suffix.lower() in MODEL_SUFFIXES]
    if not models:
        raise InputMissingError(f"no models in folder ({root})", remedy=f"a folder of {' '.join(MODEL_SUFFIXES)}")
    count = max(1, min(available_cores(), len(models) // _MODELS_WORTH_A_WORKER)) if workers is None else workers
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        progress(done, len(models))

    tasks = [(root, file) for file in models]
    seen = sorted(run_tasks(_examine, tasks, workers=count, advance=advance), key=lambda each: each[0].path)
    good = [each for each, _ in seen if isinstance(each, Asset)]
    rejects = [each for each, _ in seen if isinstance(each, RejectEntry)]
    if not good:
        raise DataError(
            f"no model in it is of use ({root}), the first: {rejects[0].path}: {rejects[0].reason}",
            remedy="models with textures",
        )
    class_of = {each.path: each.path.split("/")[0] if "/" in each.path else root.resolve().name for each in good}
    names = tuple(sorted(set(class_of.values())))
    assets = tuple(each._replace(class_index=names.index(class_of[each.path])) for each in good)
    used = {name for _, files in seen for name in files}
    grounds = []
    for file in in_grounds:
        if file.path in used or Path(file.path).suffix.lower() not in _PICTURES:
            continue
        assert isinstance(file.place, FilePlace)
        try:
            data = read_file(Path(file.place.file))
            read_picture(data, file.path)
            grounds.append((file.path, sha256_bytes(data)))
        except (DataError, InputMissingError) as error:
            reason = error.message.replace(f" ({file.path})", "")
            rejects.append(RejectEntry(path=file.path, reason=reason))
    return Survey(Assets(root, names, assets, tuple(grounds)), rejects)


def _examine(task: tuple[Path, Entry], advance: Callable[[int], None]) -> tuple[Asset | RejectEntry, list[str]]:
    """What a file is, its class left open, and the files below the root that it reads."""
    root, file = task
    advance(1)
    try:
        if file.reject:
            raise DataError(file.reject)
        assert isinstance(file.place, FilePlace)
        read = read_model(Path(file.place.file), root)
    except DataError as error:
        return RejectEntry(path=file.path, reason=error.message), []
    return Asset(file.path, -1, read.sha256, _shape(read.model)), read.files


def _shape(model: Model) -> str:
    """What coats of one shape have in common."""
    sizes = (round(_SIZE_STEPS * float(side)) for side in model.size)
    return "-".join(map(str, (len(model.corners), *sizes)))
