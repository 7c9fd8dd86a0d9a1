"""Cuts and flips bits in every kind of file that vq3d writes, and counts what reading them does.

    python tests/tools/damage.py [--cuts 200] [--flips 200] [--seed 0] [KIND ...]

found: an error of code 65 that names the file. verify: read as before, since these bytes are not used there, but named
by `vq3d inspect --verify`. harmless: read as before, and nothing looks at these bytes. silent: read as something else.
crash: any other error. slow: over two seconds. Silent, crash and slow must be 0.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vq3dcli.checkpoint import read_checkpoint, write_checkpoint
from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import DepthRecipe, Stage1Recipe, Stage2Recipe
from vq3dcli.data.shard_reader import LabelFolder, ShardFolder
from vq3dcli.data.token_store import TokenStore
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.data_tools.verify import verify_folder
from vq3dcli.errors import DataError
from vq3dcli.files import sha256_bytes
from vq3dcli.model.build import build_autoencoder, build_depth_network, build_prior
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.pipelines.camera_file import read_cameras, write_cameras
from vq3dcli.pipelines.composition import Composition, Cut, Insert, Stand, read_composition, write_composition
from vq3dcli.pipelines.evaluation.geometry import kept_metrics
from vq3dcli.pipelines.sampling.record import read_record
from vq3dcli.pipelines.studies.toy_runs import recorded_budget
from vq3dcli.pipelines.tokenize import tokenize
from vq3dcli.rendering.cameras import pivot_camera
from vq3dcli.scene_file import camera_of, load_scene, save_scene
from vq3dcli.sealed import write_sealed_json
from vq3dcli.weights_file import TokenFacts, load_depth, load_prior, load_weights, save_weights, weights_header

OUTCOMES = ("found", "verify", "harmless", "silent", "crash", "slow")
SLOW_SECONDS = 2.0
_TINY = [
    *("model.image_size=16", "model.patch=4", "model.encoder_width=32", "model.encoder_heads=2"),
    *("model.decoder_width=32", "model.decoder_heads=2", "model.encoder_layers=1", "model.decoder_layers=1"),
    *("model.codebook_size=32", "model.code_dim=8", "model.plane_channels=8", "model.field_hidden=16"),
    *("adversarial.main=0", "adversarial.novel=0", "adversarial.size_px=16", "loss.perceptual=0"),
]


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        name: What it is.
        file: One of it.
        read: Reads all that is used of it; equal results are equal in `==`.
        shards: The shard folder that it belongs to, for `inspect --verify`.
    """

    name: str
    file: Path
    read: Callable[[], object]
    shards: Path | None = None


def digest(value: Any) -> object:
    """Something comparable of anything that is read."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), sha256_bytes(value.contiguous().numpy().tobytes())
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, sha256_bytes(np.ascontiguousarray(value).tobytes())
    if isinstance(value, dict):
        return {key: digest(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [digest(item) for item in value]
    return value


def make_kinds(root: Path) -> Iterator[Kind]:
    """One small file of each kind, below `root`."""
    shards = root / "shards"
    prepare_toyscenes(shards, count=22, size=16, seed=3, shard_size=8)
    label_exact(shards)

    def read_shards() -> object:
        folder = ShardFolder(shards)
        labels = LabelFolder(folder, "exact")
        facts = folder.class_names, folder.class_index, folder.keys
        return digest([facts, *([folder.read(i), labels.read(i)] for i in range(folder.num_samples))])

    labels = shards / "disparity" / "exact"
    for name, folder in (("", shards), ("label ", labels)):
        yield Kind(f"{name}shard", folder / "shard-000001.tar", read_shards, shards)
        yield Kind(f"{name}index", folder / "shard-000001.index.json", read_shards, shards)
        for file in ("manifest.json", "SHA256SUMS", "plan.json"):
            yield Kind(f"{name}{file}", folder / file, read_shards, shards)

    recipe = load_recipe("toy-cpu", Stage1Recipe, _TINY)
    model = build_autoencoder(recipe).eval()
    weights_file = root / "weights.safetensors"
    save_weights(weights_file, model, recipe, {"data": "toys", "figures": {"psnr": 12.5}})
    weights = load_weights(weights_file)

    def read_weights() -> object:
        found = load_weights(weights_file)
        return digest([dict(found.model.state_dict()), found.recipe, found.card])

    yield Kind("weights", weights_file, read_weights)

    prior_recipe = load_recipe("toy-cpu-prior", Stage2Recipe, ["model.width=32", "model.layers=2", "model.heads=2"])
    facts = TokenFacts(stage1_sha256=weights.sha256, codebook_size=32, length=16, class_names=("a", "b", "c"))
    prior = build_prior(prior_recipe, codebook_size=32, length=16, classes=3)
    prior_file = root / "prior.safetensors"
    save_weights(prior_file, prior, prior_recipe, {"images_seen": 3}, facts)

    def read_prior() -> object:
        found = load_prior(prior_file)
        return digest([dict(found.model.state_dict()), found.recipe, found.tokens, found.card])

    yield Kind("prior", prior_file, read_prior)

    teacher_recipe = load_recipe("depth-lite0", DepthRecipe, [])
    teacher_file = root / "teacher.safetensors"
    save_weights(teacher_file, build_depth_network(teacher_recipe), teacher_recipe, {"images_seen": 3})

    def read_teacher() -> object:
        found = load_depth(teacher_file)
        return digest([dict(found.model.state_dict()), found.recipe, found.card])

    yield Kind("depth network", teacher_file, read_teacher)

    tokens = root / "tokens"
    tokenize(weights, [shards], tokens)

    def read_tokens() -> object:
        store = TokenStore(tokens)
        return digest([store.tokens, store.class_index, store.manifest])

    for file in ("tokens.u16", "classes.i32", "manifest.json", "plan.json"):
        yield Kind(f"token store {file}", tokens / file, read_tokens)

    checkpoint = root / "checkpoints" / "images-000000000008"
    state = dict(model.state_dict())
    optimizer = {f"{name}/moment": value.float() for name, value in state.items()}
    parts = {"weights": state, "average": state, "optimizer": optimizer}
    facts_of_run = {"images_seen": 8, "recipe": recipe.model_dump(mode="json")}
    write_checkpoint(checkpoint, parts, facts_of_run, weights_header(recipe, {"images_seen": 8}))

    def read_run() -> object:
        found, manifest = read_checkpoint(checkpoint)
        return digest([{name: found[name] for name in found}, manifest])

    for file in ("weights.safetensors", "average.safetensors", "optimizer.safetensors", "manifest.json"):
        yield Kind(f"checkpoint {file}", checkpoint / file, read_run)

    def read_average() -> object:
        return digest(dict(load_weights(checkpoint).model.state_dict()))

    yield Kind("checkpoint as weights", checkpoint / "average.safetensors", read_average)

    image = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    scene = reconstruct_scene(weights.model, image[None])
    file = root / "scene.vq3d.safetensors"
    save_scene(file, scene, camera_of(weights), weights.sha256, provenance={"input": "a.jpg"}, photo=image)

    def read_scene() -> object:
        found = load_scene(file)
        field = dict(found.scene.model.field_mlp.state_dict())
        tensors = [found.scene.planes, found.scene.codes, found.photo, field]
        return digest([*tensors, found.camera, found.weights_sha256, found.provenance])

    yield Kind("scene", file, read_scene)

    record = root / "samples.json"
    codes = " ".join(map(str, scene.codes[0].tolist()))
    rows = [{"file": f"box-{n:04}.png", "class": "box", "class_index": 1, "codes": codes} for n in range(20)]
    write_sealed_json(record, {"stage1_sha256": weights.sha256, "seed": 0, "samples": rows})
    yield Kind("samples.json", record, lambda: read_record(record))

    composition = root / "room.toml"
    inserts = [Insert(object="toyscene:cone", at=[(0.5, 0.75), (0.25, 0.5)], scale=1.5), Insert(object="toyscene:box")]
    moves = [Stand(box=(0.25, 0.25, 0.5, 0.5), at=[(0.125, 0.5)])]
    cuts = [Cut(box=(0.5, 0.5, 0.75, 0.75), z_range=(1.5, 2.5))]
    whole = Composition(scene="toyscene:torus", weights_sha256=weights.sha256, delete=cuts, move=moves, insert=inserts)
    write_composition(composition, whole)
    yield Kind("composition", composition, lambda: read_composition(composition))

    cameras = root / "cameras.json"
    angles = torch.linspace(-0.2, 0.2, 8)
    write_cameras(cameras, pivot_camera(angles, angles / 2, height_px=12, width_px=16), fps=24)
    yield Kind("cameras", cameras, lambda: read_cameras(cameras))

    budget = root / "budget.json"
    write_sealed_json(budget, {"minutes": 2.0, "images_per_second": 50.0, "images": 5504, "seed": 1})
    yield Kind("quickstart's budget", budget, lambda: recorded_budget(budget, minutes=None, seed=1))

    figures = root / "figures.json"
    write_sealed_json(figures, {"protocol": "p", "metrics": {"psnr": 12.5}})

    def read_figures() -> object:
        found = kept_metrics(figures, {"protocol": "p"})
        if found is None:  # they are measured again
            raise DataError(f"damaged ({figures})")
        return found

    yield Kind("kept figures", figures, read_figures)


def trial(kind: Kind, expected: object, data: bytes) -> tuple[str, str]:
    """Read with other bytes in the file: the outcome, and a word about it."""
    whole = kind.file.read_bytes()
    kind.file.write_bytes(data)
    started = time.perf_counter()
    try:
        found, outcome, word = kind.read(), "silent", ""
        if found == expected:
            outcome = "harmless"
            if kind.shards is not None and verify_folder(kind.shards).problems:
                outcome = "verify"
    except DataError as error:
        named = kind.file.name in error.message or kind.file.parent.name in error.message
        outcome, word = ("found" if named and "\n" not in str(error) else "crash"), str(error)
    except Exception as error:
        outcome, word = "crash", f"{type(error).__name__}: {error}"
    finally:
        kind.file.write_bytes(whole)
    if time.perf_counter() - started > SLOW_SECONDS:
        outcome = "slow"
    return outcome, word


def trials(kind: Kind, cuts: int, flips: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """`cut` or `flip`, the outcome, and a word about it and its place, of so many damages."""
    whole, random_ = kind.file.read_bytes(), random.Random(f"{seed} {kind.name}")
    expected = kind.read()
    assert kind.read() == expected, kind.name
    for _ in range(cuts):
        size = random_.randrange(len(whole))
        outcome, word = trial(kind, expected, whole[:size])
        yield "cut", outcome, f"to {size} of {len(whole)}: {word}"
    for _ in range(flips):
        place, bit = random_.randrange(len(whole)), random_.randrange(8)
        outcome, word = trial(kind, expected, whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        yield "flip", outcome, f"bit {bit} of byte {place}: {word}"


def main() -> None:
    """Print the table; exit code 1 if anything is silent, a crash or slow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="Only these.")
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faults = []
    print(f"{'':38}" + "".join(f"{outcome:>9}" for outcome in OUTCOMES))
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as root:
        for kind in list(make_kinds(Path(root))):
            if options.kinds and kind.name not in options.kinds:
                continue
            found: Counter[tuple[str, str]] = Counter()
            for damage, outcome, word in trials(kind, options.cuts, options.flips, options.seed):
                found[damage, outcome] += 1
                if outcome in OUTCOMES[3:]:
                    faults.append(f"{kind.name}, {damage} {word}")
            for damage in ("cut", "flip"):
                row = "".join(f"{found[damage, outcome]:9}" for outcome in OUTCOMES)
                print(f"{kind.name + ', ' + damage:38}{row}", flush=True)
    print(*faults[:50], sep="\n")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
