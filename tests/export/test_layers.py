"""Layers drawn from the side are the NeRF seen from the side."""

from __future__ import annotations

import pytest
import torch

from vq3dcli.export.layers import (
    Frustum,
    Layers,
    add_photo,
    bake_layers,
    choose_edges,
    flat_layers,
    render_layers,
)

ANGLES = [(0.0, 0.0), (0.1, 0.0), (-0.1, 0.0), (0.2, 0.0), (-0.2, 0.0), (0.0, 0.2), (0.1, -0.15)]


def inner(picture: torch.Tensor) -> torch.Tensor:
    """Without the border: the layers replicate theirs, as the NeRF's planes do, and the ball's wall goes on."""
    return picture[:, 9:-9, 9:-9]


@pytest.fixture(scope="module")
def layers(field) -> Layers:  # type: ignore[no-untyped-def]
    frustum = Frustum()
    edges = choose_edges(field, frustum, 24)
    return bake_layers(field, frustum, edges, (64, 64), samples_a_layer=4)


@pytest.fixture(scope="module")
def seen(layers, ball, look):  # type: ignore[no-untyped-def]
    """Cameras and what they see of the ball."""
    camera = look(layers.frustum, 64, 64, ANGLES)
    return camera, ball.render(camera, samples=128)


def test_edges_descend_and_gather_where_surfaces_are(layers: Layers) -> None:
    edges = layers.edges_s
    assert (edges[0], edges[-1]) == (1.0, 0.0)
    assert (edges.diff() < 0.0).all()
    # The ball's front is at z_depth 2.45, the wall at 4.5: s 0.54 and 0.28; nothing lies nearer.
    assert edges[1] < 0.62
    assert ((edges > 0.2) & (edges < 0.6)).sum() > 0.6 * len(edges)


def test_drawn_layers_are_the_rendering(layers: Layers, seen, psnr) -> None:  # type: ignore[no-untyped-def]
    camera, view = seen
    drawn, s = render_layers(layers, camera)
    for number, angles in enumerate(ANGLES):
        found = psnr(inner(drawn[number]), inner(view.rgb[number] / 255.0))
        assert found >= (34.0 if angles == (0.0, 0.0) else 30.0), (angles, found)
    assert (inner(s) - inner(view.s)).abs().mean() < 0.01


def test_a_plain_multiplane_image_is_close_too(layers: Layers, seen, psnr) -> None:  # type: ignore[no-untyped-def]
    camera, view = seen
    flat = flat_layers(layers)
    assert (flat.s == flat.planes_s[:, None, None]).all()
    drawn, _ = render_layers(flat, camera)
    for number, angles in enumerate(ANGLES):
        assert psnr(inner(drawn[number]), inner(view.rgb[number] / 255.0)) >= 28.0, angles


def test_a_photo_takes_the_visible_surface(layers: Layers, seen, psnr) -> None:  # type: ignore[no-untyped-def]
    camera, view = seen
    detailed = add_photo(layers, view.rgb[0] / 255.0, view.s[0])
    drawn, _ = render_layers(detailed, camera)
    assert psnr(drawn[0], view.rgb[0] / 255.0) > 60.0
    for number in range(1, len(ANGLES)):
        found = psnr(inner(drawn[number]), inner(view.rgb[number] / 255.0))
        assert found >= 24.0, (ANGLES[number], found)  # the border of the ball is sharp now, the NeRF's is not


def test_a_slanted_plane_with_a_photo_has_no_cracks(look) -> None:  # type: ignore[no-untyped-def]
    frustum = Frustum()
    edges = torch.linspace(1.0, 0.0, 13)
    black = Layers(torch.zeros(12, 3, 8, 8), torch.zeros(12, 8, 8), torch.zeros(12, 8, 8), edges, frustum)
    s = torch.linspace(0.15, 0.75, 64).expand(64, 64)
    white = add_photo(black, torch.ones(3, 64, 64), s)
    drawn, _ = render_layers(white, look(frustum, 64, 64, ANGLES))
    # Seen from the side the plane's end uncovers what is behind it; the middle has no reason to be dark.
    assert drawn[:, :, 8:-8, 16:48].min() > 0.97


def test_the_shape_of_a_photo_is_kept(field) -> None:  # type: ignore[no-untyped-def]
    frustum = Frustum(aspect=2.0)
    layers = bake_layers(field, frustum, torch.linspace(1.0, 0.0, 7), (12, 24))
    assert layers.rgb.shape == (6, 3, 12, 24)
    assert (layers.alpha[-1] == 1.0).all()
    square = bake_layers(field, frustum, torch.linspace(1.0, 0.0, 7), (24, 24))
    assert torch.allclose(layers.alpha.mean(2), square.alpha.reshape(6, 12, 2, 24).mean((2, 3)), atol=0.05)
