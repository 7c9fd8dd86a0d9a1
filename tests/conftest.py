"""Tiny recipes that tests train and render with: the real model, only small."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sys

# As `vq3dcli.__main__` does, before torch is imported: bits may not depend on the machine's load.
os.environ.setdefault("MKL_DYNAMIC", "FALSE")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe, Stage2Recipe

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vq3dcli.data.token_store import TokenStore
    from vq3dcli.pipelines.inputs import OpenedScene

# The same examples in each run: a change is judged by its own merits. `HYPOTHESIS_PROFILE=explore` looks further.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

_TINY = (
    "model.image_size=16",
    "model.patch=4",
    "model.encoder_width=32",
    "model.encoder_heads=2",
    "model.decoder_width=32",
    "model.decoder_heads=2",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "model.codebook_size=32",
    "model.code_dim=8",
    "model.plane_channels=8",
    "model.field_hidden=16",
    "rendering.samples=12",
    "rendering.rays_per_image=64",
    "adversarial.main=0.0",
    "adversarial.novel=0.0",
    "adversarial.start_images=32",
    "adversarial.ramp_images=8",
    "adversarial.size_px=16",
    "adversarial.base_channels=4",
    "adversarial.max_channels=8",
    "adversarial.minibatch_group=4",
    "loss.perceptual=0.0",
    "training.images=64",
    "training.batch_size=8",
    "training.warmup_images=8",
    "training.quantize_from_images=16",
    "training.log_every_images=8",
    "training.sheet_every_images=32",
    "training.checkpoint_every_images=32",
    "training.keep_checkpoints=2",
    "training.accumulate=1",
    "training.compile=false",
)

_TINY_PRIOR = (
    "model.width=32",
    "model.layers=2",
    "model.heads=2",
    "model.dropout=0.0",
    "training.images=64",
    "training.batch_size=8",
    "training.warmup_images=8",
    "training.ema_half_life_images=16",
    "training.held_out=0.2",
    "training.log_every_images=8",
    "training.sheet_every_images=32",
    "training.checkpoint_every_images=32",
    "training.keep_checkpoints=2",
)


@pytest.fixture(autouse=True)
def _denormals_as_they_were() -> Iterator[None]:
    """Commands flush denormals for the life of their process; here that is the process of all tests."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Iterator[None]:
    """Commands that may be stopped watch signals for the life of their process; Ctrl-C here is for pytest."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


_BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_SOFTWARE = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@pytest.fixture(scope="module")
def browser():  # type: ignore[no-untyped-def]
    """The Chromium of the system, without a window, drawing by SwiftShader."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed: {', '.join(_BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=_SOFTWARE)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def tiny_recipe() -> Callable[..., Stage1Recipe]:
    """A recipe of a 16-pixel model; further overrides as arguments."""

    def make(*overrides: str) -> Stage1Recipe:
        return load_recipe("toy-cpu", Stage1Recipe, [*_TINY, *overrides])

    return make


@pytest.fixture(scope="session")
def tiny_weights(tiny_recipe: Callable[..., Stage1Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of an untrained 16-pixel model."""
    from vq3dcli.model.build import build_autoencoder
    from vq3dcli.weights_file import save_weights

    recipe = tiny_recipe()
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, build_autoencoder(recipe), recipe, {"images_seen": 0})
    return path


@pytest.fixture(scope="session")
def open_photo(tiny_weights: Path) -> Callable[[Tensor], OpenedScene]:
    """From a photo uint8 `[3, H, W]` to its scene, as the untrained model sees it."""
    from torch.nn.functional import interpolate

    from vq3dcli.model.scene import reconstruct_scene
    from vq3dcli.pipelines.inputs import OpenedScene
    from vq3dcli.scene_file import camera_of
    from vq3dcli.weights_file import load_weights

    weights = load_weights(tiny_weights)

    def opened(photo: Tensor) -> OpenedScene:
        small = interpolate(photo[None].float(), size=(16, 16)).byte()
        camera = camera_of(weights, photo.shape[2] / photo.shape[1])
        return OpenedScene(reconstruct_scene(weights.model, small), photo, "photo", camera, {})

    return opened


@pytest.fixture(scope="session")
def tiny_prior_recipe() -> Callable[..., Stage2Recipe]:
    """A recipe of a prior of two narrow layers; further overrides as arguments."""

    def make(*overrides: str) -> Stage2Recipe:
        return load_recipe("toy-cpu-prior", Stage2Recipe, [*_TINY_PRIOR, *overrides])

    return make


@pytest.fixture
def file_limit() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """A block in which writing beyond so many bytes of a file fails, as on a full disk."""

    @contextlib.contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope="session")
def write_store() -> Callable[..., TokenStore]:
    """Writes a finished token store: given codes `[N, V, 16]`, or 60 images of three classes whose codes count up.

    Those start where the class says, and one code in eight is random.
    """
    import numpy as np

    from vq3dcli.data.token_store import TokenManifest, TokenStore, write_token_manifest
    from vq3dcli.files import sha256_bytes, sha256_file

    def patterned(images: int = 60, views: int = 2, length: int = 16) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(0)
        classes = np.arange(images) % 3
        start = classes * 5 + random.integers(0, 3, images)
        tokens = (start[:, None, None] + np.arange(length)) % 32
        tokens = np.broadcast_to(tokens, (images, views, length)).copy()
        noisy = random.random(tokens.shape) < 1 / 8
        tokens[noisy] = random.integers(0, 32, noisy.sum())
        return tokens, classes

    def write(
        path: Path,
        tokens: np.ndarray | None = None,
        classes: np.ndarray | None = None,
        *,
        stage1_sha256: str = "ab" * 32,
        stage1_ancestors: Sequence[str] = (),
    ) -> TokenStore:
        if tokens is None or classes is None:
            tokens, classes = patterned()
        path.mkdir(parents=True)
        tokens.astype("<u2").tofile(path / "tokens.u16")
        classes.astype("<i4").tofile(path / "classes.i32")
        manifest = TokenManifest(
            format_version=1,
            images=len(tokens),
            views=tokens.shape[1],
            view_names=["plain", "flip"][: tokens.shape[1]],
            length=tokens.shape[2],
            codebook_size=32,
            image_size=16,
            stage1_sha256=stage1_sha256,
            stage1_ancestors=list(stage1_ancestors),
            class_names=["ant", "bee", "cow"],
            seed=0,
            sources=[],
            tokens_sha256=sha256_file(path / "tokens.u16"),
            classes_sha256=sha256_file(path / "classes.i32"),
            plan_sha256=sha256_bytes(b"{}"),
        )
        (path / "plan.json").write_bytes(b"{}")
        write_token_manifest(path, manifest)
        return TokenStore(path)

    return write
