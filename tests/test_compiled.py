"""Kept machine code belongs to all the files that it is made of."""

from __future__ import annotations

from hashlib import sha256

from vq3dcli import compiled
from vq3dcli.rendering import fused, fused_training


def test_a_kernel_is_compiled_anew_where_a_part_of_it_has_changed() -> None:
    names = {path.name for path in compiled.parts_of(fused_training._look.py_func)}
    assert names == {"fused_training.py", "fused.py", "simd.py"}
    assert {path.name for path in compiled.parts_of(fused._rays.py_func)} == {"fused.py", "simd.py"}
    stamp = fused._rays._cache._cache_file._source_stamp
    assert all(sha256(path.read_bytes()).digest() in stamp for path in compiled.parts_of(fused._rays.py_func))
