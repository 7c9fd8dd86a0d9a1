"""The Triton kernel in Triton's interpreter, which must be chosen before Triton is imported: in another process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")


def test_the_kernel_in_the_interpreter():
    file = Path(__file__).with_name("interpreted_fused_cuda.py")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(file)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert ended.returncode == 0, ended.stdout[-3000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernel_on_a_gpu():
    from tests.rendering.test_fused import rays, scene
    from vq3dcli.rendering.cameras import Rays
    from vq3dcli.rendering.fused_cuda import CudaField
    from vq3dcli.rendering.space import Frustum

    model, _ = scene((16, 64, 1), Frustum(), sharp=4.0)
    planes = torch.randn(1, 3, 20, 20, 16)
    seen = rays(24, 1)
    model = model.cuda()
    on_gpu = model.frozen_field(planes.cuda())
    assert isinstance(on_gpu, CudaField)
    seen = Rays(seen.origin.cuda(), seen.direction.cuda())
    rgb = on_gpu.along(seen, 48)[0]
    expected = model.cpu().frozen_field(planes).along(rays(24, 1), 48)[0]
    assert float((rgb.cpu() - expected).square().mean()) < 1e-6
    some = torch.arange(3, 576, 7, device="cuda")
    assert torch.equal(on_gpu.along(seen[some], 48)[0], rgb[:, some])
