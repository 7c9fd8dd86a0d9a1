"""Kept machine code belongs to all the files that it is made of."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from vq3dcli import compiled
from vq3dcli.rendering import fused, fused_training


def test_what_an_earlier_process_compiled_is_known(tmp_path: Path) -> None:
    """Only where none has, a wait is said to be for the compiler."""
    (tmp_path / "made.py").write_text("from vq3dcli.compiled import *\n\n@compiled\ndef plus(a):\n    return a + 1\n")
    code = "import made\nprint(made.is_kept(made.plus), made.plus(1))"
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "kept"), "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}
    said = [subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True) for _ in range(2)]
    assert [one.stdout.split() for one in said] == [[b"False", b"2"], [b"True", b"2"]]


def test_a_kernel_is_compiled_anew_where_a_part_of_it_has_changed() -> None:
    names = {path.name for path in compiled.parts_of(fused_training._look.py_func)}
    assert names == {"fused_training.py", "fused.py", "simd.py"}
    assert {path.name for path in compiled.parts_of(fused._rays.py_func)} == {"fused.py", "simd.py"}
    stamp = fused._rays._cache._cache_file._source_stamp
    assert all(sha256(path.read_bytes()).digest() in stamp for path in compiled.parts_of(fused._rays.py_func))
