"""The viewer in a real browser: headless Chromium, drawing by SwiftShader."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vq3dcli.checkpoint import load_weights
from vq3dcli.errors import UsageError
from vq3dcli.export.colour import display_range
from vq3dcli.export.layers import (
    Frustum,
    Layers,
    Sheet,
    bake_layers,
    choose_edges,
    layers_of_sheets,
    render_layers,
)
from vq3dcli.export.viewer import BOUND_RAD, viewer_html, write_viewer
from vq3dcli.pipelines.inputs import open_scene, parse_sources
from vq3dcli.rendering.cameras import Camera, pivot_camera

HOSTILE = "</title></script><script>window.hacked = 1</script><img src=x onerror='window.hacked=1'>\"&.jpg"
YAW_RAD = (0.0, 0.1, -0.1, 0.2, -0.2)
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
SOFTWARE = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@pytest.fixture(scope="module")
def browser():  # type: ignore[no-untyped-def]
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed: {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=SOFTWARE)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A page of a toy scene by the embedded weights, and what our renderer sees from `YAW_RAD`."""
    opened = open_scene(parse_sources(["toyscene:snowman"])[0], load_weights(), fit="crop")
    field = opened.scene.model.frozen_field(opened.scene.planes)
    layers = bake_layers(field, Frustum(), choose_edges(field, Frustum(), 32), height_px=64, width_px=64)
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


def test_photo_sheets_fade_as_in_the_library(browser, tmp_path: Path, psnr) -> None:  # type: ignore[no-untyped-def]
    x, y = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 64), indexing="xy")
    s = 0.25 + 0.3 * torch.sigmoid((0.4 - torch.hypot(x, y)) * 25.0)
    front = torch.stack([0.5 + 0.4 * torch.sin(6 * x), 0.5 + 0.4 * torch.cos(5 * y), 0.5 + 0.3 * x])
    sheets = [Sheet(front, s), Sheet(1.0 - front, torch.full_like(s, 0.25))]
    layers = layers_of_sheets(sheets, Frustum(aspect=1.5), 16, margins=(1.2, 1.1))
    camera = Frustum(aspect=1.5).camera(64, 96)
    yaw_rad, pitch_rad = torch.tensor([0.0, 0.15]), torch.tensor([0.0, -0.1])
    pose = pivot_camera(yaw_rad, pitch_rad, height_px=64, width_px=96).cam_to_world
    expected, _ = render_layers(layers, Camera(pose, camera.intrinsics.expand(2, 3, 3), 64, 96))
    write_viewer(tmp_path / "a.html", "a", layers, torch.zeros(3, 64, 96, dtype=torch.uint8), (0.0, 1.0))
    with browser.new_page(viewport={"width": 300, "height": 300}, reduced_motion="reduce") as page:
        page.goto((tmp_path / "a.html").as_uri())
        assert page.evaluate("vq3d.ready") is True
        for number, call in enumerate(("vq3d.picture(0, 0, 96, 64)", "vq3d.picture(0.15, -0.1, 96, 64)")):
            assert psnr(picture(page, call), expected[number].clamp(0.0, 1.0)) > 34.0, call


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
        for beta, gamma in ((40.0, 0.0), (44.0, 10.0), (44.0, 80.0)):
            event = f"new DeviceOrientationEvent('deviceorientation', {{beta: {beta}, gamma: {gamma}}})"
            page.evaluate(f"dispatchEvent({event})")
            view = page.evaluate("vq3d.view")
            assert np.hypot(view["yaw"], view["pitch"]) <= BOUND_RAD + 1e-9
            if gamma == 10.0:
                assert view["yaw"] == pytest.approx(np.radians(5.0))
                assert view["pitch"] == pytest.approx(-np.radians(2.0))


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


def test_the_page_is_sealed() -> None:
    text = viewer_html(HOSTILE, small_layers(), torch.zeros(3, 8, 8, dtype=torch.uint8), (0.0, 1.0))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; img-src data:; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "://" not in re.sub(r"base64,[^\"]*", "", text)
    assert text.count("<script") == text.count("</script>") == 2
    (data,) = re.findall(r'id="scene">(.*?)</script>', text, re.DOTALL)
    scene = json.loads(data)
    assert len(scene["colours"]) == len(scene["shapes"]) == len(scene["planes_s"]) == 2
    assert scene["cover"] == "2" * 512


def test_too_much_for_a_browser_is_refused() -> None:
    still = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for layers in (small_layers(33), small_layers(2, 513)):
        with pytest.raises(UsageError, match="more than a browser"):
            viewer_html("a", layers, still, (0.0, 1.0))
