"""The viewer in a real browser: headless Chromium, drawing by SwiftShader."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vq3dcli.data.images import encode_png
from vq3dcli.editing.photo_scene import build_photo_scene
from vq3dcli.export.colour import display_range
from vq3dcli.export.layers import (
    Frustum,
    Layers,
    bake_layers,
    choose_edges,
)
from vq3dcli.export.viewer import BOUND_RAD, write_viewer
from vq3dcli.pipelines.inputs import open_scene, parse_sources
from vq3dcli.rendering.cameras import Camera, pivot_camera
from vq3dcli.weights_file import load_weights

HOSTILE = "</title></script><script>window.hacked = 1</script><img src=x onerror='window.hacked=1'>\"&.jpg"
YAW_RAD = (0.0, 0.1, -0.1, 0.2, -0.2)


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A page of a toy scene by the embedded weights, and what our renderer sees from `YAW_RAD`."""
    opened = open_scene(parse_sources(["toyscene:snowman"])[0], load_weights(), fit="crop")
    field = opened.scene.model.frozen_field(opened.scene.planes)
    layers = bake_layers(field, Frustum(), choose_edges(field, Frustum(), 32), (64, 64))
    camera = pivot_camera(torch.tensor(YAW_RAD), torch.zeros(len(YAW_RAD)), height_px=64, width_px=64)
    view = opened.scene.render(camera, samples=96)
    path = tmp_path_factory.mktemp("viewer") / "page.html"
    write_viewer(path, HOSTILE, layers, view.rgb[0], display_range(view.s[0]))
    return path, view.rgb / 255.0


@pytest.fixture
def page(browser, viewer) -> Iterator:  # type: ignore[no-untyped-def,type-arg]
    """The page, loaded; at the end nothing may have gone wrong and nothing may have been asked of a network."""
    opened = browser.new_page(viewport={"width": 400, "height": 500}, reduced_motion="reduce")
    troubles: list[str] = []
    opened.on("console", lambda message: troubles.append(message.text))
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("dialog", lambda dialog: troubles.append(dialog.message))
    opened.on("request", lambda request: None if request.url.startswith("data:") else troubles.append(request.url))
    opened.goto(viewer[0].as_uri())
    assert troubles.pop(0) == viewer[0].as_uri()
    assert opened.evaluate("vq3d.ready") is True
    yield opened
    assert opened.evaluate("window.hacked") is None
    opened.close()
    assert troubles == []


def picture(page, call: str) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """What a call that returns a PNG data URI gives, `[3, H, W]`."""
    data = base64.b64decode(page.evaluate(call).partition(",")[2])
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1) / 255.0


def test_it_draws_what_the_renderer_sees(page, viewer, psnr) -> None:  # type: ignore[no-untyped-def]
    assert page.title() == HOSTILE
    assert page.inner_text("h1") == HOSTILE
    for yaw_rad, seen in zip(YAW_RAD, viewer[1], strict=True):
        found = psnr(picture(page, f"vq3d.picture({yaw_rad}, 0, 64, 64)"), seen)
        assert found >= 32.0, (yaw_rad, found)


@pytest.fixture(scope="module")
def photo_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A page of a photo with fine texture and a step in depth, and what photo detail shows from `YAW_RAD`."""
    height_px, width_px = 96, 128
    x, y = torch.meshgrid(torch.linspace(-1, 1, width_px), torch.linspace(-1, 1, height_px), indexing="xy")
    noise = torch.rand(3, height_px, width_px, generator=torch.Generator().manual_seed(0))
    photo = (0.5 + 0.3 * torch.sin(torch.stack([20 * x, 23 * y, 9 * x * y])) + 0.3 * (noise - 0.5)) * 255.0
    weights = load_weights()
    path = tmp_path_factory.mktemp("photo")
    (path / "photo.png").write_bytes(encode_png(photo.round().to(torch.uint8)))
    opened = open_scene(parse_sources([str(path / "photo.png")])[0], weights, fit="squash")
    s = 0.25 + 0.2 * torch.sigmoid((0.4 - torch.hypot(x, y)) * 25.0)
    frustum = Frustum(aspect=width_px / height_px)
    camera = frustum.camera(height_px, width_px)
    pose = pivot_camera(torch.tensor(YAW_RAD), torch.zeros(len(YAW_RAD)), height_px=8, width_px=8).cam_to_world
    cameras = Camera(pose, camera.intrinsics.expand(len(pose), 3, 3), height_px, width_px)
    scene = build_photo_scene(opened.frustum, opened.photo, s, cameras)
    still = torch.zeros(3, height_px, width_px, dtype=torch.uint8)
    write_viewer(path / "page.html", "a", scene.cropped(), still, (0.0, 1.0))
    return path / "page.html", scene.render(cameras).rgb / 255.0


def test_photos_are_drawn_as_photo_detail_is(browser, photo_page, psnr) -> None:  # type: ignore[no-untyped-def]
    with browser.new_page(viewport={"width": 300, "height": 300}, reduced_motion="reduce") as page:
        page.goto(photo_page[0].as_uri())
        assert page.evaluate("vq3d.ready") is True
        for yaw_rad, seen in zip(YAW_RAD, photo_page[1], strict=True):
            found = psnr(picture(page, f"vq3d.picture({yaw_rad}, 0, 128, 96)"), seen)
            assert found >= 34.0, (yaw_rad, found)


def test_a_page_begins_as_close_as_it_is_told(browser, photo_page, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = photo_page[0].read_text()
    assert '"zoom":1.0' in text
    (tmp_path / "page.html").write_text(text.replace('"zoom":1.0', '"zoom":1.1'))
    with browser.new_page(viewport={"width": 300, "height": 300}, reduced_motion="reduce") as page:
        page.goto((tmp_path / "page.html").as_uri())
        assert page.evaluate("vq3d.ready") is True  # only then does it listen
        assert page.evaluate("vq3d.view.zoom") == 1.1
        page.keyboard.press("+")
        assert page.evaluate("vq3d.view.zoom") > 1.2
        page.keyboard.press("0")
        assert page.evaluate("vq3d.view.zoom") == 1.1


def test_mouse_keys_and_buttons(page) -> None:  # type: ignore[no-untyped-def]
    before = page.screenshot()
    box = page.locator("canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y + 10)
    page.mouse.up()
    view = page.evaluate("vq3d.view")
    assert view["yaw"] < -0.02  # what is seen follows the pointer, so the camera goes the other way
    assert view["pitch"] > 0.0
    page.wait_for_timeout(700)
    assert page.screenshot() != before
    page.mouse.down()
    page.mouse.move(x - 3000, y - 3000, steps=3)
    page.mouse.up()
    view = page.evaluate("vq3d.view")
    assert np.hypot(view["yaw"], view["pitch"]) <= BOUND_RAD + 1e-9
    page.keyboard.press("0")
    assert page.evaluate("[vq3d.view.yaw, vq3d.view.pitch]") == [0, 0]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("[vq3d.view.yaw, vq3d.view.pitch]") == pytest.approx([0.02, 0.02])
    coloured = picture(page, "vq3d.picture(0, 0, 32, 32)")
    page.click("#disparity")
    assert page.get_attribute("#disparity", "aria-pressed") == "true"
    assert (picture(page, "vq3d.picture(0, 0, 32, 32)") - coloured).abs().mean() > 0.05
    page.keyboard.press("d")
    assert torch.equal(picture(page, "vq3d.picture(0, 0, 32, 32)"), coloured)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -300)
    page.wait_for_function("vq3d.view.zoom > 1.2")
    assert not page.is_visible("#tilt")


def test_touch_and_tilt(browser, viewer) -> None:  # type: ignore[no-untyped-def]
    options = {"has_touch": True, "is_mobile": True, "reduced_motion": "reduce"}
    with browser.new_context(viewport={"width": 300, "height": 500}, **options) as context:
        page = context.new_page()
        page.goto(viewer[0].as_uri())
        assert page.evaluate("vq3d.ready") is True
        facts = "pointerId: 5, pointerType: 'touch', clientY: 200, bubbles: true"
        page.evaluate("HTMLElement.prototype.setPointerCapture = () => {}")  # a made-up pointer cannot be captured
        for kind, x in (("down", 100), ("move", 160), ("up", 160)):
            event = f"new PointerEvent('pointer{kind}', {{clientX: {x}, {facts}}})"
            page.evaluate(f"document.querySelector('canvas').dispatchEvent({event})")
        assert page.evaluate("vq3d.view.yaw") < -0.02
        page.tap("#tilt")
        # The click may come after the tap, and permission is asked for asynchronously.
        page.wait_for_selector("#tilt[aria-pressed=true]")
        for beta, gamma in ((40.0, 0.0), (44.0, 10.0), (44.0, 80.0)):
            event = f"new DeviceOrientationEvent('deviceorientation', {{beta: {beta}, gamma: {gamma}}})"
            page.evaluate(f"dispatchEvent({event})")
            view = page.evaluate("vq3d.view")
            assert np.hypot(view["yaw"], view["pitch"]) <= BOUND_RAD + 1e-9
            if gamma == 10.0:
                assert view["yaw"] == pytest.approx(np.radians(5.0))
                assert view["pitch"] == pytest.approx(-np.radians(2.0))
        # On its side, its top to the left: its own x axis points up, and its y axis to the left.
        page.evaluate("Object.defineProperty(screen.orientation, 'angle', {get: () => 90})")
        page.evaluate("dispatchEvent(new DeviceOrientationEvent('deviceorientation', {beta: 44, gamma: 10}))")
        view = page.evaluate("vq3d.view")
        assert (view["yaw"], view["pitch"]) == pytest.approx((np.radians(2.0), np.radians(5.0)))


def test_without_webgl_there_is_a_still_picture(browser, viewer) -> None:  # type: ignore[no-untyped-def]
    with browser.new_context(viewport={"width": 300, "height": 400}) as context:
        context.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
        page = context.new_page()
        page.goto(viewer[0].as_uri())
        assert page.evaluate("vq3d.ready") is False
        assert page.is_visible("#still")
        assert page.evaluate("document.getElementById('still').naturalWidth") == 64
        assert "still picture" in page.inner_text("#status")


def small_layers(count: int = 2, side_px: int = 8) -> Layers:
    alpha = torch.ones(count, side_px, side_px)
    edges = torch.linspace(1.0, 0.0, count + 1)
    return Layers(torch.rand(count, 3, side_px, side_px), alpha, 0.5 * alpha, edges, Frustum())


def test_the_page_is_sealed(tmp_path: Path) -> None:
    write_viewer(tmp_path / "a.html", HOSTILE, small_layers(), torch.zeros(3, 8, 8, dtype=torch.uint8), (0.0, 1.0))
    text = (tmp_path / "a.html").read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; img-src data:; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "://" not in re.sub(r"base64,[^\"]*", "", text)
    assert text.count("<script") == text.count("</script>") == 2
    (data,) = re.findall(r'id="scene">(.*?)</script>', text, re.DOTALL)
    scene = json.loads(data)
    assert len(scene["colours"]) == len(scene["shapes"]) == len(scene["planes_s"]) == 2
    assert scene["cover"] == "2" * 512


def test_a_name_that_is_no_text_is_no_trouble(tmp_path: Path) -> None:
    still = torch.zeros(3, 8, 8, dtype=torch.uint8)
    write_viewer(tmp_path / "a.html", "caf\udce9.jpg", small_layers(), still, (0.0, 1.0))
    assert r"<title>caf\udce9.jpg</title>" in (tmp_path / "a.html").read_text(encoding="utf-8")
