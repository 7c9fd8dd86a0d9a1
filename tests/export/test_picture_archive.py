"""ADM's npz file, written picture by picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vq3dcli.errors import OutputError
from vq3dcli.export.maps import picture_archive


def test_the_file_is_the_one_that_numpy_writes(tmp_path: Path) -> None:
    pictures = torch.randint(0, 256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with picture_archive(tmp_path / "parts.npz", 5, 8) as add:
        for position, picture in enumerate(pictures):
            add(picture, 7 * position)
            assert not (tmp_path / "parts.npz").exists()
    np.savez(tmp_path / "whole.npz", pictures.permute(0, 2, 3, 1).contiguous().numpy(), 7 * np.arange(5))
    assert (tmp_path / "parts.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with picture_archive(tmp_path / "parts.npz", 5, 8) as add:
            add(torch.zeros(3, 8, 8, dtype=torch.uint8), 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot create output"), picture_archive(tmp_path / "no" / "x.npz", 1, 8):
        pass
