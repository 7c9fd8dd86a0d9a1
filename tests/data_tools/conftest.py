"""Gives the tests `archives.py`, which makes small data sets, and small shards that they may label."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from vq3dcli.data_tools.toyscenes import prepare_toyscenes


@pytest.fixture(scope="session")
def archives() -> ModuleType:
    """The module `archives` beside this file."""
    spec = importlib.util.spec_from_file_location("archives", Path(__file__).with_name("archives.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 toy scenes of 32 pixels in 3 shards."""
    out = tmp_path_factory.mktemp("shards") / "toy"
    prepare_toyscenes(out, count=11, size=32, seed=3, shard_size=4)
    return out


@pytest.fixture
def fresh(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "toy"))
