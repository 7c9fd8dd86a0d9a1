"""What studies at toy scale share: their data, a training that is begun, continued or finished already, its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from vq3dcli.data.images import encode_png
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.errors import StoppedError
from vq3dcli.files import write_bytes
from vq3dcli.pipelines.evaluation.exact_scenes import Template, toy_template
from vq3dcli.pipelines.evaluation.geometry import PROTOCOL, evaluate_geometry, kept_metrics, model_predictor
from vq3dcli.sealed import write_sealed_json
from vq3dcli.training.run import Progress
from vq3dcli.weights_file import LoadedWeights

Count = Callable[[int, int], None]
Counting = Callable[[str, str], AbstractContextManager[Count]]
"""Opens progress for (description, unit); what it yields is called with (done, total)."""


def adding(count: Count, total: int) -> Callable[[int], None]:
    """What is to be called with how much is new."""
    done = 0

    def add(new: int) -> None:
        nonlocal done
        done += new
        count(done, total)

    return add


def stop_between(should_stop: Callable[[], bool], folder: Path) -> None:
    """Raise `StoppedError` between two parts where that is asked for."""
    if should_stop():
        raise StoppedError(f"stopped as asked ({folder})", remedy="the same command again continues")


def make_toy_data(folder: Path, *, scenes: int, size_px: int, seed: int, counting: Counting) -> None:
    """Shards of toy scenes with exact labels, as far as they are not there."""
    with counting("making toy scenes", "scenes") as count:
        prepare_toyscenes(folder, count=scenes, size=size_px, seed=seed, progress=count)
    with counting("labelling", "scenes") as count:
        label_exact(folder, progress=count)


def train_once(
    run: Path, description: str, counting: Counting, train: Callable[[Callable[[Progress], None]], object]
) -> None:
    """Call `train` with a report of its steps, unless the run's folder has weights."""
    if not (run / "weights.safetensors").exists():
        with counting(description, "images") as count:
            train(lambda progress: count(progress.images_seen, progress.total_images))


def measure_once(
    path: Path,
    weights: LoadedWeights,
    *,
    count: int,
    seed: int,
    identity: Mapping[str, object],
    description: str,
    counting: Counting,
    template: Template | None = None,
    sheet: Path | None = None,
) -> dict[str, float]:
    """Figures of weights on evaluation scenes, measured once and kept."""
    identity = {"protocol": PROTOCOL, "weights": weights.sha256, "count": count, **identity}
    known = kept_metrics(path, identity)
    if known is not None:
        return known
    size_px = weights.recipe.model.image_size
    with counting(description, "scenes") as progress:
        result = evaluate_geometry(
            model_predictor(weights),
            count=count,
            seed=seed,
            size_px=size_px,
            template=template or toy_template(size_px),
            on_progress=adding(progress, count),
        )
    if sheet is not None:
        assert result.sheet is not None
        write_bytes(sheet, encode_png(result.sheet))
    write_sealed_json(path, {**identity, "metrics": result.metrics, "views": result.views})
    return result.metrics
