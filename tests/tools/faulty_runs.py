"""Meets jobs with faults, runs the same again, and compares with what an undisturbed run leaves.

    python tests/tools/faulty_runs.py FOLDER INSTANTS [FAULT ...]

kill, sigterm, sigusr1: a signal before some operation on a file below FOLDER (opening, renaming, deletion, a new
folder). full, read-only: such an operation that writes fails. limit: no file may become longer (RLIMIT_FSIZE). disk: a
real disk in memory (in a user namespace of our own) that is too small, then read-only, then large enough.

Instants are spread evenly over the job. Prints a JSON line for each fault and job: how often each exit code came, and
what was not as promised.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from errno import ENOSPC, EROFS
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import _TINY, _TINY_PRIOR

from vq3dcli import cli, signals
from vq3dcli.checkpoint import read_checkpoint
from vq3dcli.config.load import dump_recipe, load_recipe
from vq3dcli.config.schema import DepthRecipe, Stage1Recipe, Stage2Recipe
from vq3dcli.data.images import encode_png
from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.meshscenes import scene_job
from vq3dcli.data_tools.prepare import Options, image_job, open_source, prepare
from vq3dcli.data_tools.toyscenes import SceneOptions, prepare_toyscenes
from vq3dcli.errors import DataError
from vq3dcli.model.build import build_autoencoder, build_depth_network
from vq3dcli.pipelines.tokenize import tokenize
from vq3dcli.weights_file import LoadedWeights, load_weights, save_weights

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir"}
NUMBERS = {"full": ENOSPC, "read-only": EROFS}
SIGNALS = {"kill": signal.SIGKILL, "sigterm": signal.SIGTERM, "sigusr1": signal.SIGUSR1}
# Exit codes that a fault may end a job with; 0 where it hits what a run can do without, its page.
CODES = {"kill": {-9}, "sigterm": {75}, "sigusr1": {75}, "full": {74}, "read-only": {73}, "limit": {74}, "disk": {74}}
BATCH = 8


class Job(NamedTuple):
    """What is done, into a folder that begins as a copy of `start`."""

    work: Callable[[Path], int | None]
    start: Path | None = None
    trains: bool = False


class Fault(NamedTuple):
    """What happens before the operation number `at`; of `limit`, bytes."""

    name: str
    at: int


class Ended(NamedTuple):
    """How a job ended.

    Attributes:
        code: Its exit code, negative for a signal.
        said: The end of what it wrote to stdout and stderr.
        operations: On files below FOLDER.
        writes: Of these, below its own folder, what changes it.
        logged: Lines of its metrics when the signal came.
    """

    code: int
    said: str
    operations: int = 0
    writes: int = 0
    logged: int = 0


def main(root: Path, instants: int, faults: list[str]) -> None:
    torch.set_num_threads(1)
    jobs = make_jobs(root)
    with contextlib.redirect_stdout(None):  # libraries load and compile here once, not in each child
        for name, job in jobs.items():
            assert not job.trains or job.work(root / "warm" / name) == 0
    gc.freeze()  # a child then copies fewer pages
    for name, job in jobs.items():
        folder = root / "runs" / name
        whole = new_folder(folder / "whole", job)
        undisturbed = run(job, whole)
        assert undisturbed.code == 0, undisturbed.said
        for fault in faults:
            if fault in ("sigterm", "sigusr1", "disk") and not job.trains:
                continue  # Other jobs save whatever ends them: what a kill leaves is what they leave.
            codes: Counter[int] = Counter()
            broken = []
            for chosen in places(fault, whole, undisturbed, instants):
                out = new_folder(folder / f"{fault}-{chosen.at}", job)
                wrong = on_small_disk(job, out, whole, chosen) if fault == "disk" else trial(job, out, whole, chosen)
                codes[wrong[0]] += 1
                broken += [f"{fault} at {chosen.at}: {text}" for text in wrong[1:]]
                shutil.rmtree(out, ignore_errors=True)
            print(json.dumps({"fault": fault, "job": name, "codes": codes, "broken": broken}), flush=True)


def places(fault: str, whole: Path, undisturbed: Ended, instants: int) -> Iterator[Fault]:
    """The operations, or the bytes, at which a fault comes."""
    sizes = [path.stat().st_size for path in whole.rglob("*") if path.is_file()]
    most = {"limit": max(sizes), "disk": sum(sizes)}.get(
        fault, undisturbed.writes if fault in NUMBERS else undisturbed.operations
    )
    for k in range(instants):
        yield Fault(fault, 1 + (2 * k + 1) * most // (2 * instants))


def trial(job: Job, out: Path, whole: Path, fault: Fault) -> tuple[Any, ...]:
    """The exit code of a job that meets a fault, then what is not as promised, in words."""
    ended = run(job, out, fault)
    wrong = []
    if ended.code and (ended.code not in CODES[fault.name] or "Traceback" in ended.said):
        wrong.append(f"ended with {ended.code}: {ended.said}")
    wrong += half_written(job, out, whole)
    if fault.name in ("sigterm", "sigusr1") and ended.code:
        saved = max((int(path.name[7:]) for path in out.glob("checkpoints/images-*")), default=0)
        # The step that the signal came in, or the one after: it may come between the question and the record.
        if "before the first step" not in ended.said and not 0 <= saved - BATCH * ended.logged <= 2 * BATCH:
            wrong.append(f"saved at {saved} images, {ended.logged} steps were recorded at the signal")
    if fault.name == "kill":
        run(job, out, fault._replace(at=fault.at + 3))  # a second kill, while it resumes
    return (ended.code, *wrong, *resumed(job, out, whole))


def on_small_disk(job: Job, out: Path, whole: Path, fault: Fault) -> tuple[Any, ...]:
    """As `trial`, on a disk of so many bytes, which is read-only after that, and then large enough."""
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={max(fault.at, 1 << 14)}", "none", str(out)], check=True)
    try:
        ended, wrong = run(job, out / "run"), []
        if ended.code not in {0, *CODES["disk"]} or "Traceback" in ended.said:
            wrong.append(f"ended with {ended.code}: {ended.said}")
        subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)
        refused = run(job, out / "run")
        if refused.code != 73 or "Traceback" in refused.said:
            wrong.append(f"read-only: ended with {refused.code}: {refused.said}")
        wrong += half_written(job, out / "run", whole)
        subprocess.run(["mount", "-o", "remount,rw,size=256m", str(out)], check=True)
        return (ended.code, *wrong, *resumed(job, out / "run", whole))
    finally:
        subprocess.run(["umount", str(out)], check=True)


def resumed(job: Job, out: Path, whole: Path) -> list[str]:
    """What the same command again does not mend."""
    again = run(job, out)
    if again.code:
        return [f"again: {again.code} {again.said}"]
    expected, found = contents(whole, job), contents(out, job)
    return [f"other bytes: {name}" for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]


def half_written(job: Job, out: Path, whole: Path) -> list[str]:
    """Files under their final names that are neither those of before nor those of the end."""
    wrong = []
    if not job.trains:
        good = [contents(folder, job) for folder in (whole, job.start) if folder is not None]
        for name, data in contents(out, job).items() if out.exists() else ():
            # A token store's blocks are hashed when they are put together.
            passing = name.startswith((".", "block-")) or "/." in name
            if not passing and all(each.get(name) != data for each in good):
                wrong.append(f"half written: {name}")
        return wrong
    for folder in out.glob("checkpoints/images-*"):
        try:
            parts, _ = read_checkpoint(folder)
            assert {"weights", "average", "optimizer"} <= set(parts)
        except DataError as error:
            wrong.append(f"half written: {error}")
    for path in [*out.glob("sheets/images-*"), *out.glob("weights.safetensors")]:
        if path.read_bytes() != (whole / path.relative_to(out)).read_bytes():
            wrong.append(f"half written: {path.name}")
    return wrong


def contents(folder: Path, job: Job) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too; of a run what is a function of recipe and data."""
    if job.trains:
        newest = max(folder.glob("checkpoints/images-*"))
        files = [*newest.iterdir(), *folder.glob("sheets/*"), *folder.glob("*.safetensors"), folder / "run.json"]
    else:
        files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}


def run(job: Job, out: Path, fault: Fault | None = None) -> Ended:
    """Work in a child process, which meets the fault."""
    said = tempfile.TemporaryFile()  # noqa: SIM115
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(said.fileno(), 2)
        os.dup2(2, 1)
        code = 70
        try:
            signals.interrupt()
            code = _met(job, out, fault, write_end)
        finally:
            os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        counts = map(int, pipe.read().split())
    _, status = os.waitpid(child, 0)
    said.seek(0)
    text = said.read().decode(errors="replace")[-2000:]
    said.close()
    return Ended(os.waitstatus_to_exitcode(status), text, *counts)


def _met(job: Job, out: Path, fault: Fault | None, pipe: int) -> int:
    """The exit code of a job, in its own process."""
    counts, logged, below = [0, 0], 0, str(out.parents[2])

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal logged
        path = str(arguments[0]) if event in EVENTS else ""
        if not path.startswith(below):
            return
        writes = path.startswith(str(out)) and (event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR) != 0)
        counts[0] += 1
        counts[1] += writes
        if fault is None or counts[fault.name in NUMBERS] != fault.at:
            return
        if fault.name in SIGNALS:
            metrics = out / "metrics.jsonl"
            logged = len(metrics.read_bytes().splitlines()) if metrics.exists() else 0
            os.kill(os.getpid(), SIGNALS[fault.name])
        elif writes:
            raise OSError(NUMBERS[fault.name], os.strerror(NUMBERS[fault.name]), path)

    if fault is not None and fault.name == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.at, resource.RLIM_INFINITY))
    elif fault is None or fault.name != "disk":
        sys.addaudithook(watch)
    try:
        code = job.work(out) or 0
    except BaseException as error:
        failure = cli.describe(error)
        code = failure.exit_code
        os.write(2, f"{failure.message}\n".encode())
    os.write(pipe, f"{counts[0]} {counts[1]} {logged}".encode())
    return code


def make_jobs(root: Path) -> dict[str, Job]:
    pictures, labelled, old, models = (root / name for name in ("pictures", "labelled", "old", "models"))
    make_pictures(pictures)
    models.mkdir(parents=True)
    (models / "tent.mtl").write_text("newmtl m\nKd 0.8 0.3 0.1\n")
    faces = "f 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
    (models / "tent.obj").write_text(f"mtllib tent.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nusemtl m\n{faces}")

    def toy(out: Path) -> None:
        prepare_toyscenes(out, count=5, size=16, seed=1, shard_size=2)

    def folder(out: Path) -> None:
        prepare(out, image_job("folder", open_source("folder", pictures, out), Options(16, shard_size=4), max_bad=0.5))

    def meshes(out: Path) -> None:
        prepare(out, scene_job(models, out, SceneOptions(count=5, size=16, seed=1, shard_size=2), max_bad=0.0))

    def forced(out: Path) -> None:
        options = Options(24, shard_size=3)
        prepare(out, image_job("folder", open_source("folder", pictures, out), options, max_bad=0.5), force=True)

    weights = tiny_weights(root)

    def tokens(out: Path) -> None:
        tokenize(weights, [old], out)

    def labels(out: Path) -> None:
        label_exact(out)

    for made, work in ((labelled, toy), (old, folder)):
        assert run(Job(work), made).code == 0
    trained = root / "trained"
    shutil.copytree(labelled, trained)
    assert run(Job(labels), trained).code == 0
    assert run(Job(tokens), root / "tokens").code == 0
    often = [f"training.{name}=16" for name in ("checkpoint_every_images", "sheet_every_images")]
    often.append("training.images=32")
    codes, stage1_of = f"--data={root / 'tokens'}", f"--weights={root / 'tiny.safetensors'}"
    words = {}
    depth = ["model.input_px=64", "model.widths=[4, 4, 4, 4, 4]", f"training.batch_size={BATCH}"]
    depth += ["training.warmup_images=8", f"training.log_every_images={BATCH}"]
    network = load_recipe("depth-lite0", DepthRecipe, depth)
    save_weights(root / "depth.safetensors", build_depth_network(network), network, {})
    depth.append(f"training.init={root / 'depth.safetensors'}")
    for stage, schema, base, tiny, options in (
        ("stage1", Stage1Recipe, "toy-cpu", _TINY, [f"--data={trained}"]),
        ("stage2", Stage2Recipe, "toy-cpu-prior", _TINY_PRIOR, [codes, stage1_of]),
        ("depth", DepthRecipe, "depth-lite0", depth, [f"--data={trained}"]),
    ):
        recipe = load_recipe(base, schema, [*tiny, *often])
        (root / f"{stage}.toml").write_text(dump_recipe(recipe))
        words[stage] = [f"train-{stage}", str(root / f"{stage}.toml"), *options, "--device=cpu", "--quiet"]

    def train(stage: str, out: Path) -> int:
        return cli.run([*words[stage], f"--out={out}"])

    return {
        "toyscenes": Job(toy),
        "folder": Job(folder),
        "forced": Job(forced, old),
        "labels": Job(labels, labelled),
        "tokens": Job(tokens),
        "meshscenes": Job(meshes),
        **{f"train-{stage}": Job(functools.partial(train, stage), trains=True) for stage in words},
    }


def new_folder(out: Path, job: Job) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    return out if job.start is None else Path(shutil.copytree(job.start, out))


def make_pictures(folder: Path) -> None:
    for i in range(11):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = torch.randint(0, 256, (3, 20, 24 + i), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        path.write_bytes(b"broken" if i % 5 == 3 else encode_png(noise))


def tiny_weights(folder: Path) -> LoadedWeights:
    """An untrained Stage 1 of 16-pixel images."""
    recipe = load_recipe("toy-cpu", Stage1Recipe, list(_TINY))
    save_weights(folder / "tiny.safetensors", build_autoencoder(recipe), recipe, {})
    return load_weights(folder / "tiny.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or list(CODES))
