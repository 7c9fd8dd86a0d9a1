"""Small shard folders that tests read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vq3dcli.data_tools.depth.labels import label_exact
from vq3dcli.data_tools.toyscenes import prepare_toyscenes
from vq3dcli.files import sha256_bytes, sha256_file

Edit = Callable[[dict[str, Any]], object]


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


@pytest.fixture
def rewrite() -> Callable[[Path, bytes], None]:
    """Exchange a file of a shard folder, and its line in the list of all hashes."""

    def exchange(path: Path, data: bytes) -> None:
        sums = path.parent / "SHA256SUMS"
        sums.write_text(sums.read_text().replace(sha256_file(path), sha256_bytes(data)))
        path.write_bytes(data)

    return exchange


@pytest.fixture
def rewrite_index(rewrite: Callable[[Path, bytes], None]) -> Callable[[Path, Edit], None]:
    """Edit the index of a folder's first shard, and all hashes of it: its writer was wrong."""

    def edited(folder: Path, edit: Edit) -> None:
        path, manifest = folder / "shard-000000.index.json", folder / "manifest.json"
        index, record = json.loads(path.read_bytes()), json.loads(manifest.read_bytes())
        edit(index)
        text = json.dumps(index).encode()
        rewrite(path, text)
        record["shards"][0]["index_sha256"] = sha256_bytes(text)
        rewrite(manifest, json.dumps(record).encode())

    return edited
