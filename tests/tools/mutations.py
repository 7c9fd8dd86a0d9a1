"""Break the code in many small ways, one at a time, and see whether the tests that guard it notice. Run by hand:

    python tests/tools/mutations.py                      # all of `mutations.toml`
    python tests/tools/mutations.py --only training/ --jobs 2

It works on copies of the tree in a temporary folder. First all tests that it is going to run must pass there. Then each
breakage is made and its tests run: a test that fails, or hangs, is what should happen; where all pass, something is
untested. Ends with 1 if any breakage survives, with 2 if the table does not fit the code.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_suffix(".toml")
FAILED, USAGE = 1, 2
_LINE = 60


@dataclass(frozen=True)
class Breakage:
    """One change, and the tests that should notice it."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        old, new = (" ".join(text.split())[:_LINE] for text in (self.old, self.new))
        return f"{self.file}: {old!r} -> {new!r}"

    def text(self) -> str:
        """The file as it is; empty where there is none."""
        path = ROOT / self.file
        return path.read_text() if path.is_file() else ""


def read_table(only: list[str]) -> list[Breakage]:
    """All breakages, or those whose file, old or new text contains any of `only`."""
    found = []
    for file, entry in tomllib.loads(TABLE.read_text()).items():
        for old, new, *other in entry["breaks"]:
            tests = other[0] if other else entry["tests"]
            found.append(Breakage(file, old, new, tuple(tests)))
    return [b for b in found if not only or any(word in f"{b.file}\n{b.old}\n{b.new}" for word in only)]


def copy_tree(folder: Path) -> None:
    """The working tree without what git ignores, to an empty folder."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-zco", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def run_tests(tree: Path, tests: tuple[str, ...], timeout_s: float) -> tuple[int | None, str]:
    """Pytest's exit code, or None if it took too long; and what it wrote."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, cwd=tree, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        return code, said.read()


def main() -> int:
    """Try the table's breakages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="only breakages with one of these texts in them")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that the tests of one may take")
    options = parser.parse_args()
    breakages = read_table(options.only)
    if not breakages:
        _refuse("no breakage has that text")
    misfits = [
        f"{b}: the old text is there {n} times, not once" for b in breakages if (n := b.text().count(b.old)) != 1
    ]
    if misfits:
        _refuse("\n".join(misfits))
    with tempfile.TemporaryDirectory(prefix="mutations-") as temporary:
        trees: queue.Queue[Path] = queue.Queue()
        for number in range(min(options.jobs, len(breakages))):
            trees.put(tree := Path(temporary, str(number)))
            copy_tree(tree)
        every_test = tuple(dict.fromkeys(test for breakage in breakages for test in breakage.tests))
        code, said = run_tests(Path(temporary, "0"), every_test, 10 * options.timeout)
        if code != 0:
            _refuse(f"the tests fail without any breakage:\n{said[-4000:]}")

        def survives(breakage: Breakage) -> bool:
            tree, start = trees.get(), time.perf_counter()
            sound = (tree / breakage.file).read_text()
            (tree / breakage.file).write_text(sound.replace(breakage.old, breakage.new))
            code, said = run_tests(tree, breakage.tests, options.timeout)
            (tree / breakage.file).write_text(sound)
            trees.put(tree)
            if code not in (0, FAILED, None):
                _refuse(f"{breakage}: pytest ended with {code}:\n{said[-4000:]}")
            outcome = {0: "SURVIVES", FAILED: "dies", None: "dies, by the time it takes"}[code]
            print(f"{outcome} ({time.perf_counter() - start:.0f} s): {breakage}", flush=True)
            return code == 0

        with ThreadPoolExecutor(options.jobs) as pool:
            survivors = list(pool.map(survives, breakages))
    print(f"{len(breakages) - sum(survivors)} of {len(breakages)} die")
    return FAILED if any(survivors) else 0


def _refuse(reason: str) -> None:
    print(f"error: {reason}", file=sys.stderr)
    raise SystemExit(USAGE)


if __name__ == "__main__":
    sys.exit(main())
