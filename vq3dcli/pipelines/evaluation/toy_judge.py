"""The classifier of toy scenes that says which class a sample shows: trained on scenes drawn for it, kept in a file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from vq3dcli.errors import DataError, InputMissingError
from vq3dcli.files import make_folder, sha256_bytes
from vq3dcli.metrics.toy_classifier import EPOCHS, SCENES, ToyClassifier, settings, train_classifier, weights_sha256
from vq3dcli.pipelines.evaluation.image_sets import toy_set
from vq3dcli.pipelines.evaluation.measured_set import Judge
from vq3dcli.tensor_file import check_tensors, read_tensors, write_tensors
from vq3dcli.toyscenes import CLASS_NAMES

# Scenes that neither Stage 1 nor a figure sees.
PURPOSE = "classifier"

_log = logging.getLogger(__name__)


def toy_judge(
    size_px: int,
    *,
    scenes: int = SCENES,
    epochs: int = EPOCHS,
    seed: int = 0,
    statistics: Path | None = None,
    progress: Callable[[str, int], AbstractContextManager[Callable[[int], object]]],
) -> Judge:
    """Train a classifier of toy scenes, or take the one that was kept.

    Args:
        size_px: Side of the scenes it learns from.
        scenes: How many.
        epochs: How often it sees each.
        seed: Of the scenes and of the training.
        statistics: Folder where it is kept; None keeps nothing.
        progress: Shows the progress of a part, called with its name and number of images.

    Raises:
        UsageError: Fewer than two scenes.
        OutputError, StorageError: It cannot be written.
    """
    drawn = toy_set("classifier's scenes", scenes, seed=seed, purpose=PURPOSE, size_px=size_px)
    facts = {
        **settings(scenes, epochs, seed),
        "images": dict(drawn.description),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    digest = sha256_bytes(json.dumps(facts, sort_keys=True).encode())
    path = None if statistics is None else statistics / f"classifier-{digest[:16]}.safetensors"
    model = None if path is None else _read(path)
    if model is None:
        images = []
        with progress("drawing scenes for the classifier", scenes) as advance:
            for batch in drawn.batches():
                images.append(batch)
                advance(len(batch))
        with progress("training the classifier", scenes * epochs) as advance:
            model = train_classifier(
                torch.cat(images), drawn.class_index, len(CLASS_NAMES), epochs=epochs, seed=seed, on_images=advance
            )
        if path is not None:
            make_folder(path.parent)
            write_tensors(path, model.state_dict(), {"format": "toy classifier"})
    return Judge(model.classify, CLASS_NAMES, {**facts, "sha256": weights_sha256(model)})


def _read(path: Path) -> ToyClassifier | None:
    """The classifier of a file; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    model = ToyClassifier(len(CLASS_NAMES)).to(memory_format=torch.channels_last)
    try:
        tensors = read_tensors(path, what="classifier").tensors
        check_tensors(f"damaged classifier ({path})", model.state_dict(), tensors)
    except (DataError, InputMissingError) as error:
        _log.warning("%s; it is trained again", error.message)
        return None
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)
