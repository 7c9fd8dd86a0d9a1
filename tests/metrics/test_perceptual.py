"""LPIPS as a metric, with random trunks: the published ones are hundreds of megabytes."""

import ast
import warnings
from pathlib import Path

import pytest
import torch

from vq3dcli.errors import UnavailableError, UnsafeFileError, UsageError
from vq3dcli.metrics import features, perceptual
from vq3dcli.metrics.perceptual import Lpips, load_lpips, lpips_from
from vq3dcli.weights.third_party import LPIPS_HEADS_SHA256, LPIPS_TRUNKS, package_file, read_state_dict


@pytest.fixture(scope="module")
def lpips_package():
    """The package; torchvision, which it imports, may have been built for another PyTorch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import lpips
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"lpips cannot be imported: {error}")
    return lpips


@pytest.fixture(scope="module")
def random_alex(lpips_package):
    """The package's own network with a random trunk and its published heads, and ours with the same weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = lpips_package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    trunk = {f"features.{name.partition('.')[2]}": value for name, value in reference.net.state_dict().items()}
    heads = package_file("lpips", "weights/v0.1/alex.pth", purpose="a test", remedy="")
    module = lpips_from("alex", trunk, read_state_dict(heads, LPIPS_HEADS_SHA256["alex"]))
    return reference, Lpips("alex", "random", module)


def pair(side_px=48):
    random = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, 3, side_px, side_px), dtype=torch.uint8, generator=random) for _ in range(2)]


def test_values_are_those_of_the_package(random_alex):
    reference, ours = random_alex
    image, target = pair()
    expected = reference(image / 127.5 - 1, target / 127.5 - 1).flatten()
    found = ours(image, target)
    assert found.dtype == torch.float64 and found.shape == (3,)
    assert torch.allclose(found.float(), expected, rtol=1e-4, atol=1e-7)
    assert (found > 0).all()


def test_equal_images_are_at_no_distance_and_types_may_differ(random_alex):
    _, ours = random_alex
    image, target = pair(32)
    assert ours(image, image.double() / 255).abs().max() < 1e-6
    assert torch.allclose(ours(image, target), ours(image.float() / 255, target), rtol=1e-4)


def test_loading_is_silent_and_leaves_the_random_state(random_alex, capfd):
    trunk = {
        f"features.{name.partition('.')[2]}": value for name, value in random_alex[1].module.net.state_dict().items()
    }
    heads = {name: value for name, value in random_alex[1].module.state_dict().items() if name.startswith("lin")}
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lpips_from("alex", trunk, heads)
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


def test_weights_that_cannot_be_fetched_are_one_line(lpips_package, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # An address that nobody answers at, through the proxy setting that every download obeys.
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(UnavailableError) as caught:
        load_lpips("alex")
    text = str(caught.value)
    assert LPIPS_TRUNKS["alex"].url in text and "give its path" in text and "\n" not in text


def test_a_given_file_must_be_the_published_one(lpips_package, tmp_path):
    torch.save({}, tmp_path / "alexnet-owt-7be5be79.pth")
    with pytest.raises(UnsafeFileError):
        load_lpips("alex", trunk_weights=tmp_path / "alexnet-owt-7be5be79.pth")


def test_the_network_of_the_loss_is_refused():
    with pytest.raises(UsageError, match="perceptual loss"):
        load_lpips("vgg", trained_with="lpips-vgg")


def test_packages_are_imported_where_they_are_used():
    """A torchvision that does not fit PyTorch may break LPIPS and FID, but nothing else."""
    for module in (perceptual, features):
        for node in ast.parse(Path(module.__file__).read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                text = ast.unparse(node)
                assert not any(name in text for name in ("lpips ", "torchvision", "torch_fidelity", "efficientnet")), (
                    text
                )
