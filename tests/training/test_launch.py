"""`--nproc`: ranks that start, stop and fail together, and an exit code that reaches the shell."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vq3dcli import cli
from vq3dcli.config.load import dump_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.data.shard_reader import ShardFolder
from vq3dcli.data.stream import Stream
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.training import launch
from vq3dcli.training.run_folder import RunFolder
from vq3dcli.weights_file import load_weights

PATIENCE_S = 300.0  # starting PyTorch twice on a busy machine
# How long all may take to end is what is promised where the machine has time for them, else a little more.
within = pytest.mark.parametrize("within_s", [60, pytest.param(30, marks=pytest.mark.faults)])

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds its ranks in /proc")


class Run:
    """A run of two ranks that does not end by itself."""

    def __init__(self, recipe: Path, toys: Path, out: Path, *options: str) -> None:
        words = [sys.executable, "-m", "vq3dcli", "train-stage1", str(recipe), "--data", str(toys), "--out", str(out)]
        self.out = out
        self.launcher = subprocess.Popen(
            [*words, "--labels", "none", "--device", "cpu", "--quiet", "--nproc", "2", *options],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A test run in the background ignores SIGINT, and its children would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.ranks: dict[int, int] = {}
        self.wait_for(lambda: len(self._find_ranks()) == 2)

    def _find_ranks(self) -> dict[int, int]:
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                environment = (path / "environ").read_bytes() if parent == self.launcher.pid else b""
            except OSError:
                continue
            self.ranks |= {r: int(path.name) for r in range(2) if f"\0RANK={r}\0".encode() in environment}
        return self.ranks

    def wait_for(self, event: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not event() and self.launcher.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def train(self) -> None:
        """Wait for the first step."""
        self.wait_for((self.out / "metrics.jsonl").exists)

    def end(self) -> tuple[int, str]:
        """The exit code and what was said, when all of it is gone."""
        _, said = self.launcher.communicate(timeout=PATIENCE_S)
        deadline = time.monotonic() + 30
        while any(map(runs, self.ranks.values())):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return self.launcher.returncode, said

    def clear(self) -> None:
        self.launcher.kill()
        for pid in self.ranks.values():
            if runs(pid):
                os.kill(pid, signal.SIGKILL)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def has_open(pid: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(link.readlink() == path for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    prepare_toyscenes(folder, count=24, size=16, seed=0)
    return folder


@pytest.fixture
def start(tiny_recipe: Callable[..., Stage1Recipe], toys: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    endless = [f"training.{name}=100000000" for name in ("images", "sheet_every_images", "checkpoint_every_images")]
    (tmp_path / "recipe.toml").write_text(dump_recipe(tiny_recipe(*endless)))
    started: list[Run] = []

    def begin(*options: str, out: str = "run", data: Path = toys) -> Run:
        started.append(Run(tmp_path / "recipe.toml", data, tmp_path / out, *options))
        return started[-1]

    yield begin
    for run in started:
        run.clear()


def test_a_signal_to_the_launcher_saves_and_ends_all(start: Callable[..., Run]) -> None:
    run = start()
    run.train()
    run.launcher.terminate()
    code, said = run.end()
    assert code == 75, said
    assert said.startswith("error: stopped at ")
    assert said.count("\n") == 1
    assert list((run.out / "checkpoints").iterdir())


@pytest.mark.faults
@pytest.mark.parametrize("instant", range(10))
def test_a_signal_at_any_time_saves_what_was_done(start: Callable[..., Run], instant: int) -> None:
    run = start()
    run.train()
    time.sleep(0.17 * instant)
    os.kill(run.launcher.pid, (signal.SIGTERM, signal.SIGUSR1)[instant % 2])
    code, said = run.end()
    assert (code, said.count("\n")) == (75, 1), said
    last = json.loads((run.out / "metrics.jsonl").read_text().splitlines()[-1])
    assert [p.name for p in (run.out / "checkpoints").iterdir()] == [f"images-{last['images_seen']:012d}"]


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, "interrupted\n"),
        (signal.SIGHUP, 75, "error: stopped before the first step; try: the same command again\n"),
    ],
)
def test_ranks_that_start_end_at_once(start: Callable[..., Run], number: int, code: int, line: str) -> None:
    run = start()
    os.kill(run.launcher.pid, number)
    assert run.end() == (code, line)


@within
def test_a_rank_that_is_gone_ends_the_run(start: Callable[..., Run], within_s: float) -> None:
    # The second run is over while the ranks of the first find out; both at once save its time.
    both = [start(out="stopped"), start(out="killed")]
    for run in both:
        run.train()
    begin = time.monotonic()
    os.kill(both[0].ranks[1], signal.SIGSTOP)
    os.kill(both[1].ranks[0], signal.SIGKILL)
    for run, how in zip(both, ("rank 1 no longer answered", "rank 0 was killed by signal 9"), strict=True):
        assert run.end() == (
            79,
            f"error: {how} (of 2); try: the same command again, which continues at the newest checkpoint\n",
        )
        assert time.monotonic() - begin < within_s  # 22 s where the machine has nothing else to do


@pytest.mark.faults
@pytest.mark.parametrize("instant", range(4))
@pytest.mark.parametrize(
    ("victim", "number", "code"),
    [(0, "KILL", 79), (1, "KILL", 79), (0, "STOP", 79), (1, "STOP", 79), ("launcher", "KILL", -9)],
)
def test_whatever_is_lost_at_any_time_all_end_and_the_run_goes_on(
    start: Callable[..., Run], victim: int | str, number: str, code: int, instant: int
) -> None:
    often = ("--set", "training.checkpoint_every_images=16")
    run = start(*often)
    if instant or number == "STOP":  # one that is stopped while it starts is a slow one to the others
        run.train()
    time.sleep(0.37 * instant)
    begin = time.monotonic()
    os.kill(run.launcher.pid if victim == "launcher" else run.ranks[int(victim)], getattr(signal, f"SIG{number}"))
    found, said = run.end()
    assert found == code, said
    assert said.count("error: ") == (code > 0)  # the first rank may warn that nothing is saved yet
    print(f"{victim} {number} {instant}: {time.monotonic() - begin:.0f} s")
    assert time.monotonic() - begin < 30
    images = RunFolder(run.out).saved_images() + 32
    assert start(*often, "--set", f"training.images={images}").end()[0] == 0
    assert load_weights(run.out).card["images_seen"] == images


def test_a_rank_that_waits_for_one_killed_while_it_started_hears_signals(start: Callable[..., Run]) -> None:
    run = start()
    os.kill(run.ranks[0], signal.SIGKILL)
    run.launcher.terminate()
    assert run.end() == (75, "error: stopped before the first step; try: the same command again\n")


def test_ranks_end_with_their_launcher(start: Callable[..., Run]) -> None:
    run = start()
    run.train()
    run.launcher.kill()
    assert run.end()[0] == -signal.SIGKILL


@within
def test_what_only_the_first_rank_meets_ends_all_with_its_code(
    start: Callable[..., Run], tmp_path: Path, within_s: float
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "sheet/sheets/images-000000000008.png").mkdir(parents=True)  # as the second of two steps has
    with (tmp_path / "run/.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        both = [start(), start("--set", "training.sheet_every_images=8", out="sheet")]

        def end(run: Run, event: Callable[[], bool]) -> tuple[int, str]:
            run.wait_for(event)  # a moment before it fails
            begin = time.monotonic()
            ended = run.end()
            assert time.monotonic() - begin < within_s
            return ended

        with ThreadPoolExecutor(2) as pool:
            waits = pool.submit(end, both[0], lambda: has_open(both[0].ranks[0], tmp_path / "run/.lock"))
            draws = pool.submit(end, both[1], (tmp_path / "sheet/metrics.jsonl").exists)
            (code, said), (code_of_sheet, said_of_sheet) = waits.result(), draws.result()
    assert code == 75
    assert said.startswith("error: another process is writing here")
    assert said.count("\n") == 1
    assert code_of_sheet == 73
    [line] = [line for line in said_of_sheet.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: cannot create output") and "images-000000000008.png" in line


def test_a_rank_that_gets_no_more_data_saves_what_was_done(start: Callable[..., Run], toys: Path) -> None:
    shutil.copytree(toys, toys.parent / "damaged")
    images, (_, third) = ShardFolder(toys.parent / "damaged"), Stream([24], 0).at(22)  # a row of the second rank
    member = images.entry(third).members["png"]
    with (images.path / "shard-000000.tar").open("r+b") as shard:
        shard.seek(member.offset + 30)
        shard.write(b"damaged")
    run = start("--set", "training.max_bad=0", data=images.path)
    code, said = run.end()
    assert code == 65, said
    assert f"key {third:08d}" in said
    assert RunFolder(run.out).saved_images() == 16


def test_what_all_ranks_meet_is_said_once(start: Callable[..., Run]) -> None:
    code, said = start("--set", "training.nothing=1").end()
    assert code == 78
    assert said.startswith("error: recipe has 1 problem")
    assert said.count("\n") == 1


def test_torchrun_and_nproc_exclude_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.run(["train-stage1", "toy-cpu", "--nproc", "2"]) == 2
    assert "torchrun" in capsys.readouterr().err


WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "change",
    [
        {"WORLD_SIZE": "abc"},
        {"WORLD_SIZE": "-1"},
        {"RANK": "2"},
        {"RANK": ""},
        {"MASTER_PORT": "x"},
        {"MASTER_ADDR": ""},
    ],
)
def test_half_an_environment_of_torchrun_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: dict[str, str]
) -> None:
    for name, value in {**WHOLE, **change}.items():
        monkeypatch.setenv(name, value)
    for words in (["train-stage1", "toy-cpu"], ["train-stage2", "toy-cpu-prior"]):
        assert cli.run([*words, "--data", "no/such/folder", "--out", "no/such/run"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: the environment is no whole one of torchrun")
        assert said.count("\n") == 1
        assert next(iter(change)) in said


def test_ranks_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launch.started_ranks() == 1
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    assert launch.started_ranks() == 2
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launch.started_ranks() == 1


def test_a_plan_is_for_as_many_processes_as_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train-stage1", "toy-cpu"], ["train-stage2", "toy-cpu-prior"]):
        assert cli.run([*words, "--dry-run", "--json", "--device-name", "h100", "--nproc", "4"]) == 0
        assert json.loads(capsys.readouterr().out)["metrics"]["device"].startswith("4 x ")


def test_a_file_for_slurm_runs_the_command_on_all_tasks_and_queues_it_again(
    tiny_recipe: Callable[..., Stage1Recipe], toys: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(dump_recipe(tiny_recipe("training.images=100000000")))
    out = tmp_path / "my run"
    words = ["train-stage1", str(tmp_path / "recipe.toml"), "--data", str(toys), "--labels", "none", "--out", str(out)]
    printed = subprocess.run(
        [sys.executable, "-m", "vq3dcli", *words, "--device", "cpu", "--nproc=1", "--slurm", "2"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (printed.returncode, printed.stderr) == (0, "")
    assert not out.exists()
    (tmp_path / "job").write_text(printed.stdout)
    # What SLURM does: tasks with numbers; a signal to all of them when time is short; the highest of their codes.
    fakes = {
        "scontrol": 'echo "$@" >> requeued\n[ "$1" = show ] && echo 127.0.0.1\nexit 0',
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\n'
        'for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=0 "$@" & pids="$pids $!"; done\n'
        'while [ ! -s "my run/metrics.jsonl" ] && kill -0 $pids; do sleep 0.2; done\n'
        "kill -USR1 $pids\nfor pid in $pids; do wait $pid; code=$?; [ $code -le $worst ] || worst=$code; done\n"
        "exit $worst",
    }
    for name, text in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/bash\nworst=0\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "here", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        ["bash", "job"],
        cwd=tmp_path,
        env={**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == 75, ended.stderr
    assert "stopped at" in ended.stderr
    assert list((out / "checkpoints").iterdir())
    assert (tmp_path / "requeued").read_text().splitlines()[-1] == f"requeue {os.getpid()}"
    lines = printed.stdout.splitlines()
    assert {"#SBATCH --job-name=my-run", "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1"} <= set(lines)
