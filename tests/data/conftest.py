"""Small shard folders that tests read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes


@pytest.fixture(scope="session")
def _toy_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "toy"
    prepare_toyscenes(out, count=22, size=16, seed=3, shard_size=8)
    label_exact(out)
    return out


@pytest.fixture
def toy_shards(_toy_shards: Path, tmp_path: Path) -> Path:
    """22 labelled toy scenes of 16 pixels in 3 shards; a copy that a test may damage."""
    return Path(shutil.copytree(_toy_shards, tmp_path / "toy"))
