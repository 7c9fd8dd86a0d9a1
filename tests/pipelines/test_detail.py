"""Photo detail: the photo from its own camera, filled gaps from others, and paths that suit a scene."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vq3dcli.data_tools.depth.models import DepthModel
from vq3dcli.editing.cutout import cut_out
from vq3dcli.editing.march import camera_lines, intersect
from vq3dcli.editing.parallax import (
    MOST_PARALLAX,
    MOST_STRETCH,
    MOST_ZOOM,
    adapted_reach,
    covering_zoom,
    disparity_extent,
    steepest_slope,
)
from vq3dcli.editing.photo_scene import PhotoScene, build_photo_scene
from vq3dcli.editing.refined import refined_disparity
from vq3dcli.model.scene import reconstruct_scene
from vq3dcli.pipelines.camera_file import read_cameras, write_cameras
from vq3dcli.pipelines.export import Wish, wished_photo_scene
from vq3dcli.pipelines.export_layers import turned_cameras
from vq3dcli.pipelines.film import Eyes, Shot, StereoKind
from vq3dcli.pipelines.geometry import (
    NERF,
    Geometry,
    field_of,
    first_view,
    geometry_of_map,
    geometry_of_network,
    photo_relief,
    read_disparity,
    user_s,
    with_relief,
)
from vq3dcli.pipelines.inputs import OpenedScene, parse_sources, read_picture
from vq3dcli.pipelines.render import Look, staged, staged_photo
from vq3dcli.rendering.cameras import Camera, pivot_pose, project, s_from_z_depth, z_depth_from_s
from vq3dcli.rendering.scene import view_fields
from vq3dcli.rendering.trajectories import PATHS
from vq3dcli.scene_file import SceneCamera, camera_of
from vq3dcli.weights_file import load_weights

CPU = torch.device("cpu")
OpenPhoto = Callable[[Tensor], OpenedScene]
SIZE = (48, 64)
PLAIN = torch.full((3, 300, 400), 90, dtype=torch.uint8)


def cameras(opened_scene: OpenedScene, *yaw_deg: float) -> Camera:
    yaw = torch.tensor([math.radians(value) for value in yaw_deg])
    return opened_scene.frustum.camera(*SIZE).at(pivot_pose(yaw, torch.zeros_like(yaw)))


def layers(opened_scene: OpenedScene, s: Tensor, seen_by: Camera) -> PhotoScene:
    assert opened_scene.photo is not None
    return build_photo_scene(opened_scene.frustum, opened_scene.photo, s, seen_by)


@pytest.fixture(scope="module")
def card(open_photo: OpenPhoto) -> OpenedScene:
    """A red card in front of a wall that is green on the left and blue on the right."""
    photo = torch.zeros(3, *SIZE, dtype=torch.uint8)
    photo[1, :, :32], photo[2, :, 32:] = 200, 200
    photo[:, 12:36, 20:44] = torch.tensor([220, 20, 20], dtype=torch.uint8)[:, None, None]
    return open_photo(photo)


def card_s() -> Tensor:
    s = torch.full(SIZE, 0.2)
    s[12:36, 20:44] = 0.6
    return s


def test_the_canonical_view_is_the_photo(open_photo: OpenPhoto) -> None:
    photo = torch.randint(0, 256, (3, *SIZE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    scene = open_photo(photo)
    for s in (torch.rand(SIZE), refined_disparity(torch.rand(16, 16), photo)):
        view = layers(scene, s, cameras(scene, 0.0, 10.0)).render(cameras(scene, 0.0))
        assert (view.rgb[0].int() - photo.int()).abs().max() <= 1
        # The disparity that comes out is that which went in.
        assert (view.s[0] - s).abs().max() < 0.01


def test_the_card_moves_and_the_wall_is_seen_behind_it(card: OpenedScene) -> None:
    seen_by = cameras(card, 6.0, -6.0)
    scene = layers(card, card_s(), seen_by)
    # What stands behind the card's edges has the wall's disparity, and nothing of the card's red.
    margin = (scene.behind.s.shape[1] - SIZE[1]) // 2, (scene.behind.s.shape[0] - SIZE[0]) // 2
    uncovered = scene.behind.s[margin[1] + 12 : margin[1] + 36, margin[0] + 40 : margin[0] + 44]
    assert (uncovered < 0.25).all()
    right, left = scene.render(seen_by).rgb
    red = [(view[0] > 180) & (view[1] < 90) & (view[2] < 90) for view in (right, left)]
    middles = [float(mask.nonzero()[:, 1].float().mean()) for mask in red]
    # Near things move against the camera, around a pivot in front of the wall.
    assert middles[0] < 31.5 < middles[1]
    assert all(500 < int(mask.sum()) < 640 for mask in red)  # 24 x 24 pixels, neither torn nor doubled
    # In front of the pivot (s = 0.43 at z = 3) the card's share of the shift agrees with geometry.
    point = torch.tensor([[[0.0, 0.0, 1.0 / (0.6 * (1 / 1.35 - 1 / 60) + 1 / 60) - 3.0]]]).expand(2, 1, 3)
    expected = project(seen_by, point)[0][:, 0, 0]
    assert abs((middles[0] - middles[1]) - float(expected[0] - expected[1])) < 1.0


def test_what_is_behind_continues_its_own_level_sideways(open_photo: OpenPhoto) -> None:
    """A red head before a yellow neck, both before a wall that is green above and blue below."""
    photo = torch.zeros(3, *SIZE, dtype=torch.uint8)
    photo[1, :30], photo[2, 30:] = 200, 200
    s = torch.full(SIZE, 0.2)
    for rows, columns, colour, level in (
        (slice(20, 48), slice(26, 40), (200, 200, 0), 0.5),
        (slice(4, 20), slice(20, 46), (200, 0, 0), 0.7),
    ):
        photo[:, rows, columns] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
        s[rows, columns] = level
    scene = open_photo(photo)
    behind = layers(scene, s, cameras(scene, 4.0, -4.0)).cropped().behind
    strip = behind.rgb[:, 22:46, 26:28]  # behind the neck's left edge
    torch.testing.assert_close(behind.s[22:46, 26:28], torch.full((24, 2), 0.2), atol=0.02, rtol=0)
    upper, lower = strip[:, :6], strip[:, 12:]
    assert upper[1].min() > 0.65 and upper[[0, 2]].max() < 0.1
    assert lower[2].min() > 0.65 and lower[[0, 1]].max() < 0.1


def test_a_path_adapts_to_the_scene(card: OpenedScene) -> None:
    frustum = card.frustum
    # Of levels that no surface joins: what may tear bounds no slope.
    deep, flat = (
        torch.linspace(low, high, 10).repeat_interleave(40).expand(300, 400) for low, high in ((0.0, 0.9), (0.40, 0.42))
    )
    for name in PATHS:
        less, more = (adapted_reach(name, s, PLAIN, frustum, fov_rad=frustum.fov_rad) for s in (deep, flat))
        assert math.radians(0.5) <= less.amplitude_rad < more.amplitude_rad <= math.radians(20.0)
    reach, extent = (
        adapted_reach("swing", deep, PLAIN, frustum, fov_rad=frustum.fov_rad),
        disparity_extent(deep, frustum.depth_range),
    )
    assert reach.pivot_z == pytest.approx(2.0 / (extent.low + extent.high))
    # A swing's whole parallax, from a pinhole: the baseline times the range of disparities, in widths.
    parallax = reach.pivot_z * math.sin(reach.amplitude_rad) * extent.width * 0.5 / math.tan(0.5 * frustum.fov_rad)
    assert parallax == pytest.approx(MOST_PARALLAX, rel=0.01)


def test_the_amplitude_of_the_user_wins_and_the_canonical_pose_stays(card: OpenedScene) -> None:
    for amplitude_deg in (None, 2.0):
        shot = Shot("swing", frames=4, amplitude_deg=amplitude_deg)
        _, camera = staged(card, shot, Look(), detail="photo")
        assert (camera.height_px, camera.width_px) == SIZE
        assert torch.allclose(camera.cam_to_world[0, :3, 3], torch.tensor([0.0, 0.0, -3.0]), atol=1e-5)
        yaw_deg = math.degrees(math.asin(-float(camera.cam_to_world[1, 0, 2])))
        assert amplitude_deg is None or yaw_deg == pytest.approx(amplitude_deg, abs=1e-3)


def test_eyes_agree_at_the_focus(card: OpenedScene) -> None:
    stereo = Eyes("sbs", 0.1, focus_z=2.5)
    camera = cameras(card, 0.0)
    point = torch.tensor([[[0.2, 0.1, -0.5], [0.2, 0.1, 1.0]]])  # z_depth 2.5 and 4
    left, right = (project(stereo.eye(camera, side), point)[0][0, :, 0] for side in (-0.5, 0.5))
    assert left[0] == pytest.approx(float(right[0]), abs=1e-3)
    assert right[1] > left[1]  # what is farther lies behind the screen: uncrossed


def test_a_map_of_the_whole_photo_is_cropped_with_it(tmp_path: Path, card: OpenedScene) -> None:
    Image.new("RGB", (60, 30)).save(tmp_path / "a.png")
    picture = read_picture(parse_sources([str(tmp_path / "a.png")])[0], 16, fit="crop")
    assert (picture.aspect, picture.whole_aspect) == (1.0, 2.0)
    depth = np.zeros((30, 60), np.float32)
    depth[:, 30:45] = 1.0  # the right half of the square in the middle
    np.save(tmp_path / "a.npy", depth)
    assert card.photo is not None
    square = replace(
        card,
        photo=card.photo[:, :, 8:56],
        camera=SceneCamera(**{**card.camera.model_dump(), "aspect": 1.0}),
        whole_aspect=2.0,
    )
    look = Look(geometry=geometry_of_map(tmp_path / "a.npy"))
    scene, camera = staged(square, Shot(view_deg=(0.0, 0.0)), look, detail="photo")
    s = scene(camera).s[0]
    assert s[:, 26:].min() > s[:, :22].max() + 0.2


def test_depth_of_the_user_corrects_the_plain_nerf(tmp_path: Path, card: OpenedScene) -> None:
    np.save(tmp_path / "a.npy", np.linspace(0.0, 1.0, 60, dtype=np.float32)[:, None].repeat(80, 1))
    shot = Shot(view_deg=(0.0, 0.0), size_px=24)
    plain, camera = staged(card, shot, Look(), detail="none")
    moved, _ = staged(card, shot, Look(geometry=geometry_of_map(tmp_path / "a.npy")), detail="none")
    before, after = plain(camera), moved(camera)
    given = user_s(read_disparity(tmp_path / "a.npy"), card.camera, name="a")
    wanted = torch.nn.functional.interpolate(given[None, None], size=after.s.shape[1:], mode="area")[0, 0]

    def error(s: Tensor) -> float:
        return float((s[0] - wanted).abs().mean())

    # The field of a model that was never trained is a fog: its mean moves, not quite as far as a surface would.
    assert error(after.s) < 0.5 * error(before.s)
    assert (after.rgb.float() - before.rgb.float()).abs().mean() < 8.0


def test_disparity_is_that_of_the_camera_that_looks(card: OpenedScene) -> None:
    """A wall, and a camera 0.4 m nearer to it."""
    camera = cameras(card, 0.0)
    camera.cam_to_world[:, 2, 3] += 0.4
    s = torch.tensor(0.3)
    seen = layers(card, s.expand(SIZE).clone(), camera).render(camera).s
    expected = s_from_z_depth(z_depth_from_s(s) - 0.4)
    torch.testing.assert_close(seen, expected.expand(1, *SIZE), atol=1e-3, rtol=0)


def test_outlines_are_antialiased(card: OpenedScene) -> None:
    seen_by = cameras(card, 6.0)
    view = layers(card, card_s(), seen_by).render(seen_by).rgb[0].float()
    red_share = view[0, 16:32] / 220.0
    between = ((red_share > 0.15) & (red_share < 0.85)).sum(1)
    assert between.max() <= 5 and between.float().mean() >= 1.0


def test_cameras_beside_the_scene_end_soon(card: OpenedScene) -> None:
    """The layer behind and the margins stay bounded where a camera looks along the photo."""
    seen_by = cameras(card, 90.0, 170.0)
    scene = layers(card, card_s(), seen_by)
    assert max(scene.front.s.shape) < 2 * max(SIZE)
    assert scene.render(seen_by).rgb.shape == (2, 3, *SIZE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_photo_detail_on_a_gpu(tiny_weights: Path) -> None:
    photo = torch.randint(0, 256, (3, *SIZE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    weights = load_weights(tiny_weights, "cuda")
    scene = reconstruct_scene(weights.model, photo[None, :, :16, :16].cuda())
    there = OpenedScene(scene, photo, "photo", camera_of(weights, photo.shape[2] / photo.shape[1]), {})
    for stereo in (None, "sbs"):
        shown, camera = staged(there, Shot(frames=2), Look(stereo=stereo), detail="photo")
        assert shown(camera).rgb.shape[2:] == (SIZE[0], SIZE[1] * (1 if stereo is None else 2))


def test_a_depth_network_moves_what_it_says_is_near(tmp_path: Path, card: OpenedScene) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Split", ["image"], ["red", "green", "blue"], axis=1, num_outputs=3)],
        "red is near",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("red", onnx.TensorProto.FLOAT, [1, 1, 32, 32])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "red.onnx")
    look = Look(geometry=geometry_of_network(str(tmp_path / "red.onnx"), CPU))
    scene, camera = staged(card, Shot(view_deg=(0.0, 0.0)), look, detail="photo")
    s = scene(camera).s[0]
    assert s[20:30, 26:38].mean() > s[:8].mean() + 0.2


def test_the_stretch_of_surfaces_is_bounded(card: OpenedScene) -> None:
    fov_rad = math.radians(card.camera.fov_deg)
    across = torch.arange(320.0)[None].expand(240, 320)
    gentle, steep = 0.2 + 0.4 * across / 320, 0.2 + 0.4 * ((across - 150) / 10).clamp(0.0, 1.0)
    step = torch.where(across < 160, 0.2, 0.6)
    amplitudes = []
    for s in (gentle, step, steep):
        slope, extent = steepest_slope(s), disparity_extent(s, card.frustum.depth_range)
        reach = adapted_reach("swing", s, PLAIN, card.frustum, fov_rad=fov_rad)
        baseline = reach.pivot_z * math.sin(reach.amplitude_rad)
        parallax = baseline * extent.width * 0.5 / math.tan(0.5 * fov_rad)
        # Of the whole range of disparities, over the width: by so much a pixel moves more than its neighbour.
        stretch = 1.0 + parallax * slope * card.frustum.depth_range.extent / extent.width
        assert stretch <= MOST_STRETCH + 1e-3
        amplitudes.append(parallax)
    assert steepest_slope(gentle) == pytest.approx(0.4, rel=0.05)
    assert steepest_slope(step) == pytest.approx(0.0, abs=1e-3)  # what may tear is no surface
    assert steepest_slope(steep) == pytest.approx(0.4 / 10 * 320, rel=0.1)
    assert amplitudes[:2] == pytest.approx([MOST_PARALLAX, MOST_PARALLAX], rel=0.01)
    assert amplitudes[2] == pytest.approx(1.0 / 32.0, rel=0.1)  # 10 of 320 pixels, which may become 20


def test_where_texture_would_be_torn_the_camera_goes_less_far(card: OpenedScene) -> None:
    posts = torch.where(torch.arange(400) % 50 < 20, 0.6, 0.2).expand(300, 400).contiguous()
    noise = torch.randint(0, 256, (3, 300, 400), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
    ramp = torch.linspace(0.2, 0.6, 300)[:, None].expand(300, 400).contiguous()
    full, half, no_step = (
        adapted_reach("swing", s, photo, card.frustum, fov_rad=card.frustum.fov_rad).amplitude_rad
        for s, photo in ((posts, PLAIN), (posts, noise), (ramp, noise))
    )
    assert half == pytest.approx(0.5 * full, rel=0.01) and no_step > 0.9 * full


def beyond(scene: PhotoScene, size: tuple[int, int], camera: Camera) -> float:
    """Share of the pixels of all cameras that show what lies beyond the photo's edges."""
    margin = [
        (side - inner) / 2 for side, inner in ((scene.camera.width_px, size[1]), (scene.camera.height_px, size[0]))
    ]
    low = torch.tensor(margin)
    high = low + torch.tensor([size[1], size[0]])
    shares = []
    for index in range(camera.cam_to_world.shape[0]):
        lines = camera_lines(scene.camera, camera[index], scene.frustum.depth_range)
        seen = intersect(scene.front.s, lines).pixels
        shares.append(float(((seen < low) | (seen > high)).any(-1).float().mean()))
    return max(shares)


@pytest.mark.parametrize("stereo", [None, "sbs"])
@pytest.mark.parametrize("path", ["orbit", "swing", "spiral", "dolly", "dolly-zoom"])
def test_no_mirrored_margin_shows(tmp_path: Path, card: OpenedScene, path: str, stereo: StereoKind | None) -> None:
    # Near at the left edge, far at the right one: both look beyond the photo.
    np.save(tmp_path / "a.npy", np.linspace(1.0, 0.0, 64, dtype=np.float32)[None].repeat(48, 0))
    look = Look(geometry=geometry_of_map(tmp_path / "a.npy"), stereo=stereo)
    shown, camera, eyes = staged_photo(card, Shot(path, frames=24), look)
    assert beyond(shown, SIZE, camera if eyes is None else eyes.both(camera)) == 0.0
    zoom = float(camera.intrinsics[0, 0, 0] / card.frustum.camera(*SIZE).intrinsics[0, 0, 0])
    assert 1.0 <= zoom <= MOST_ZOOM + 1e-5


def test_views_zoom_no_closer_than_they_must(card: OpenedScene) -> None:
    s = torch.linspace(0.6, 0.1, 64).expand(48, 64).contiguous()
    camera = cameras(card, 0.0, 3.0)
    zoom = covering_zoom(s, card.frustum, camera)
    assert zoom is not None and 1.0 < zoom < MOST_ZOOM
    for factor, shows in ((1.0, False), (0.98, True)):
        intrinsics = camera.intrinsics.clone()
        intrinsics[:, :2, :2] *= factor * zoom
        closer = Camera(camera.cam_to_world, intrinsics, *SIZE)
        assert (beyond(layers(card, s, closer), SIZE, closer) > 0.0) == shows
    assert covering_zoom(s, card.frustum, cameras(card, 0.0)) == 1.0
    assert covering_zoom(s, card.frustum, cameras(card, 40.0)) is None


def test_a_page_begins_so_close_that_no_margin_shows(card: OpenedScene) -> None:
    scene, vantage = wished_photo_scene(card, Wish("viewer"), SIZE)
    assert scene is not None
    assert 1.0 < vantage.zoom <= MOST_ZOOM
    turns = [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)]
    camera = turned_cameras(card.frustum, vantage, turns, SIZE)
    assert beyond(scene, SIZE, camera) > 0.0
    intrinsics = camera.intrinsics.clone()
    intrinsics[:, :2, :2] *= vantage.zoom
    assert beyond(scene, SIZE, Camera(camera.cam_to_world, intrinsics, *SIZE)) == 0.0


def test_the_field_of_view_of_the_user_stands(tmp_path: Path, card: OpenedScene) -> None:
    own = card.frustum.camera(*SIZE).intrinsics[0, 0, 0]
    _, camera = staged(card, Shot("swing", 8, fov_deg=card.camera.fov_deg), Look(), detail="photo")
    assert torch.allclose(camera.intrinsics[:, 0, 0], own)
    # So does that of a file of cameras, which was written as it was filmed; and nothing zooms where nothing moves.
    _, filmed = staged(card, Shot("swing", 8, amplitude_deg=3.0), Look(), detail="photo")
    assert filmed.intrinsics[0, 0, 0] > own
    write_cameras(tmp_path / "a.json", filmed, fps=24.0)
    _, again = staged(card, Shot(given=read_cameras(tmp_path / "a.json")), Look(), detail="photo")
    assert torch.allclose(again.intrinsics, filmed.intrinsics, rtol=1e-4)
    _, still = staged(card, Shot("swing", 2, amplitude_deg=0.0), Look(), detail="photo")
    assert torch.allclose(still.intrinsics[:, 0, 0], own)


# A network to stand for the embedded one, which not every installation has.
RED_IS_NEAR = DepthModel(lambda images: images[:, 0, ::2, ::2].float(), "disparity", {})


@pytest.mark.parametrize("geometry", ["teacher", "both"])
def test_the_teacher_gives_photo_detail_its_geometry(card: OpenedScene, geometry: Literal["teacher", "both"]) -> None:
    look = Look(geometry=Geometry(geometry, RED_IS_NEAR))
    scene, camera = staged(card, Shot(view_deg=(0.0, 0.0)), look, detail="photo")
    s = scene(camera).s[0]
    assert s[14:34, 22:42].min() > s[:8].max() + 0.1
    assert card.photo is not None
    assert torch.equal(photo_relief(card, card.photo, look.geometry), photo_relief(card, card.photo, look.geometry))


def test_what_stands_in_a_scene_follows_the_teacher(card: OpenedScene) -> None:
    seen = with_relief(card, Geometry("teacher", RED_IS_NEAR))
    assert with_relief(card, NERF) is card and seen.relief is not None
    cutout = cut_out(first_view(seen), seen.frustum, (0.1, 0.1, 0.9, 0.9))
    # The card covers columns 20 to 44 of 64 and rows 12 to 36 of 48.
    rows, columns = (cutout.mask > 0.5).nonzero().unbind(1)
    side = cutout.mask.shape[0]
    found = [float(edge) / side for edge in (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1)]
    assert found == pytest.approx([20 / 64, 44 / 64, 12 / 48, 36 / 48], abs=2.5 / side)
    # The field's surfaces move there, too; that of a model which was never trained is a fog, and moves less.
    fields = [field_of(seen), field_of(card)]
    both = view_fields(fields.__getitem__, cameras(card, 0.0, 0.0), 48, seen.frustum.depth_range)
    moved, fog = both.s
    wanted = torch.nn.functional.interpolate(seen.relief[None, None], size=SIZE, mode="bilinear")[0, 0]
    assert (moved - wanted).abs().mean() < 0.5 * (fog - wanted).abs().mean()
