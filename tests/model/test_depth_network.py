"""The depth network: its encoder is the published one, what is frozen stays, images of any shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from vq3dcli.model.depth_network import DepthNetwork, EfficientNetLite, EncoderName

WIDTHS = (4, 8, 8, 8, 16)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"])
def test_encoder_computes_what_the_published_network_does(name: EncoderName) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    published = package.EfficientNet.from_name(name).eval().double()
    ours = EfficientNetLite(name).eval().double()
    for layer in published.modules():  # padded once and for all for an input whose fifth half may be odd
        if isinstance(layer, nn.Conv2d):
            total = layer.kernel_size[0] - layer.stride[0]
            before = (total // 2, total - total // 2)
            layer.static_padding = nn.ZeroPad2d(before * 2) if total else nn.Identity()
    tensors = published.state_dict()
    ours.load_state_dict({mine: tensors[theirs] for mine, theirs in ours.published_names().items()})
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        hidden = published._swish(published._bn0(published._conv_stem(x)))
        expected = []
        for block in published._blocks:
            hidden = block(hidden)
            expected.append(hidden)
        found = ours(128.0 * x + 127.0)
    assert [feature.shape[-2:] for feature in found] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    for feature, tap in zip(found, ours.taps, strict=True):
        scale = expected[tap].abs().max()  # random networks fade
        torch.testing.assert_close(feature / scale, expected[tap] / scale)


def test_frozen_blocks_and_the_encoders_statistics_stay() -> None:
    torch.manual_seed(0)
    network = DepthNetwork(EfficientNetLite("efficientnet-lite0"), WIDTHS, 11, 128).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network(255.0 * torch.rand(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert not any("running" in name for name in changed if name.startswith("encoder."))
    assert not any(name.startswith("encoder.stem") for name in changed)
    blocks = {int(name.split(".")[2]) for name in changed if name.startswith("encoder.blocks.")}
    assert blocks == set(range(11, 16))
    decoder = {name for name in before if not name.startswith("encoder.")}
    assert {name for name in decoder if "running" in name} <= changed


def test_borders_of_the_decoder_continue_what_is_inside() -> None:
    """A constant feature map gives a constant disparity: nothing is darker at the borders."""
    network = DepthNetwork(EfficientNetLite("efficientnet-lite0"), WIDTHS, 0, 128).eval()
    for layer in network.residual:
        constant = torch.full((1, layer.first[0].in_channels, 6, 6), 0.7)
        found = layer(constant)
        torch.testing.assert_close(found, found[..., :1, :1].expand_as(found))


@pytest.mark.parametrize(
    ("height_px", "width_px", "shape"), [(50, 50, (64, 64)), (40, 160, (32, 128)), (9, 9, (64, 64))]
)
def test_predict_keeps_the_shape_of_a_photo(height_px: int, width_px: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = DepthNetwork(EfficientNetLite("efficientnet-lite0"), WIDTHS, 0, 128).eval()
    photo = (255.0 * torch.rand(1, 3, height_px, width_px)).byte()
    found = network.predict(photo)
    assert found.shape[-2:] == shape and bool(found.isfinite().all())
    size = (2 * shape[0], 2 * shape[1])
    shown = functional.interpolate(photo.float(), size, mode="bicubic", antialias=True).clamp(0, 255)
    torch.testing.assert_close(found, network(shown))
    both = network.predict(photo, flip=True)
    torch.testing.assert_close(both, network.predict(photo.flip(-1), flip=True).flip(-1))


def test_a_fine_map_has_the_edges_of_twice_the_size_and_the_layout_of_the_size_trained_on() -> None:
    torch.manual_seed(0)
    network = DepthNetwork(EfficientNetLite("efficientnet-lite0"), WIDTHS, 0, 64).eval()
    photo = 255.0 * torch.rand(1, 3, 50, 50)
    coarse = functional.interpolate(network.predict(photo)[None], (64, 64), mode="bilinear")[0, 0]
    network.input_px = 128
    fine = network.predict(photo)[0]
    network.input_px = 64
    fine = fine * coarse.std() / fine.std()
    expected = fine.clone()
    for y in range(64):
        for x in range(64):
            window = (slice(max(0, y - 8), y + 9), slice(max(0, x - 8), x + 9))
            expected[y, x] += (coarse[window] - fine[window]).mean()
    torch.testing.assert_close(network.predict_fine(photo)[0], expected)
