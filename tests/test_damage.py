"""Cuts and flipped bits in each kind of file that we write: a few of those that `tests/tools/damage.py` tries."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def damage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("damage", Path(__file__).parent / "tools" / "damage.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_what_is_damaged_is_named_or_read_as_before(damage: ModuleType, tmp_path: Path) -> None:
    kinds = list(damage.make_kinds(tmp_path))
    assert len({kind.name for kind in kinds}) == len(kinds) >= 25
    for kind in kinds:
        outcomes = list(damage.trials(kind, cuts=3, flips=6, seed=1))
        bad = [outcome for outcome in outcomes if outcome[1] not in ("found", "verify", "harmless")]
        assert not bad, (kind.name, bad[:3])
        if kind.name != "composition":  # whose first lines are comments
            assert not [outcome for outcome in outcomes if outcome[1] == "harmless"], kind.name
