"""`vq3d view`: what its server gives to whom, and the page in headless Chromium."""

from __future__ import annotations

import errno
import http.client
import io
import json
import math
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vq3dcli.cli import run
from vq3dcli.data.images import read_image
from vq3dcli.editing.parallax import MOST_ZOOM
from vq3dcli.errors import UnavailableError
from vq3dcli.metrics.image import psnr
from vq3dcli.pipelines.camera_file import read_cameras
from vq3dcli.pipelines.film import Shot, shot_camera
from vq3dcli.pipelines.render import Look
from vq3dcli.pipelines.targets import Task
from vq3dcli.pipelines.view import Gaze, LiveScene, open_live
from vq3dcli.pipelines.view_server import ViewServer

HOSTILE = "<img src=x onerror='window.hacked=1'>&.png"
PIXELS = "document.getElementById('scene').toDataURL()"
FRONT = {"yaw": 0.0, "pitch": 0.0, "zoom": 1.0, "detail": "photo", "disparity": False}


@pytest.fixture(scope="module")
def live(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> LiveScene:
    """A photo of 320 x 240 pixels by an untrained model, saved beside itself."""
    folder = tmp_path_factory.mktemp("view")
    y, x = np.mgrid[0:240, 0:320] / 20.0
    waves = [127 + 120 * np.sin(x), 127 + 120 * np.cos(y), 127 + 120 * np.sin(x * y / 9)]
    Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(folder / HOSTILE)
    task = Task(torch.device("cpu"), str(folder), geometry="nerf", weights=tiny_weights)
    return open_live(str(folder / HOSTILE), Look(), task, size_px=256, amplitude_deg=4.0)


@pytest.fixture(scope="module")
def server(live: LiveScene) -> Iterator[ViewServer]:
    made = ViewServer(live)
    thread = threading.Thread(target=made.serve)
    thread.start()
    yield made
    made.shutdown()
    thread.join()


def ask(server: ViewServer, name: str, value: Any = None, *, url: str = "", **headers: str) -> tuple[int, bytes]:
    """Status and body of a request; `value` goes as JSON, bytes as they are."""
    data = None if value is None else value if isinstance(value, bytes) else json.dumps(value).encode()
    named = {key.replace("_", "-"): text for key, text in headers.items()}
    request = urllib.request.Request((url or server.url) + name, data, named)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def frame(server: ViewServer, *, whole: bool = False, **gaze: Any) -> Image.Image:
    status, body = ask(server, "frame", {"gaze": FRONT | gaze, "whole": whole})
    assert status == 200, body
    return Image.open(io.BytesIO(body))


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


def test_frames_are_small_as_the_camera_moves_and_whole_at_rest(server: ViewServer, live: LiveScene) -> None:
    assert frame(server).size == (192, 144)
    assert frame(server, whole=True).size == (256, 192)
    assert frame(server, detail="none").size == (192, 144)
    assert frame(server, whole=True, detail="none").size == (256, 192)
    seen = frame(server, whole=True)
    assert 1.0 <= live.ways["photo"].vantage.zoom <= MOST_ZOOM
    photo = read_image(live.folder / HOSTILE)[None]
    assert float((as_tensor(seen).float().mean((2, 3)) - photo.float().mean((2, 3))).abs().max()) < 12.0


def test_each_question_changes_the_picture(server: ViewServer) -> None:
    front = as_tensor(frame(server)).float()
    for change in ({"yaw": 0.06}, {"pitch": -0.06}, {"zoom": 2.0}, {"detail": "none"}, {"disparity": True}):
        other = as_tensor(frame(server, **change)).float()
        assert float((front - other).abs().mean()) > 2.0, change
    assert torch.equal(as_tensor(frame(server)).float(), front)


def test_what_is_shown_by_itself(tiny_weights: Path, tmp_path: Path) -> None:
    Image.effect_noise((1300, 650), 60.0).save(tmp_path / "photo.jpg")
    task = Task(torch.device("cpu"), geometry="nerf", weights=tiny_weights)
    photo = open_live(str(tmp_path / "photo.jpg"), Look(), task, size_px=None, amplitude_deg=None)
    assert {detail: way.size for detail, way in photo.ways.items()} == {"photo": (512, 1024), "none": (256, 512)}
    assert 0.0 < photo.ways["photo"].vantage.bound_rad <= 0.2
    task = Task(torch.device("cpu"), weights=tiny_weights)
    toy = open_live("toyscene:cone", Look(), task, size_px=None, amplitude_deg=None)
    assert {detail: way.size for detail, way in toy.ways.items()} == {"none": (512, 512)}
    assert toy.ways["none"].vantage == (math.radians(20.0), 3.0, 1.0)
    # The plain NeRF as it is filmed.
    gaze = Gaze(yaw=math.radians(12.0), pitch=math.radians(-5.0), detail="none")
    shot = shot_camera(Shot(size_px=512, view_deg=(12.0, -5.0)), toy.opened.frustum)
    assert torch.allclose(toy.camera(gaze).cam_to_world, shot.cam_to_world, atol=1e-6)
    assert torch.equal(toy.camera(gaze).intrinsics, shot.intrinsics)


def test_bands_are_the_picture(live: LiveScene) -> None:
    gaze = Gaze(yaw=0.03, pitch=0.02, detail="none")
    seen = live.ways["none"].render(live.camera(gaze), False)
    assert torch.equal(live.picture(gaze, whole=True), seen.rgb[0])
    asked = iter([True, True, False])
    assert live.picture(gaze, whole=True, wanted=lambda: next(asked)) is None  # and not asked a fourth time


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"yaw": 0.08}, "at most 0.070"),  # 4 degrees
        ({"yaw": 0.06, "pitch": 0.06}, "at most 0.070"),
        ({"zoom": 0.5}, "zoom"),
        ({"zoom": 9.0}, "zoom"),
        ({"yaw": float("nan")}, "yaw"),
        ({"yaw": 1e400}, "yaw"),
        ({"yaw": "0"}, "yaw"),
        ({"yaw": True}, "yaw"),
        ({"pitch": None}, "pitch"),
        ({"detail": "more"}, "detail"),
        ({"disparity": 1}, "disparity"),
        ({"speed": 1.0}, "speed"),
    ],
)
def test_bad_cameras_are_refused(server: ViewServer, changes: dict[str, Any], said: str) -> None:
    gaze = FRONT | changes
    for name, value in (
        ("frame", {"gaze": gaze, "whole": True}),
        ("still", {"gaze": gaze}),
        ("path", {"gazes": [FRONT, gaze]}),
    ):
        status, body = ask(server, name, value)
        assert status == 400
        assert said in body.decode()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"gaze": 1}', b'{"gazes": []}', b"[" * 100_000])
def test_bad_bodies_are_refused(server: ViewServer, body: bytes) -> None:
    for name in ("frame", "still", "path"):
        assert ask(server, name, body)[0] == 400
    assert ask(server, "path", {"gazes": [FRONT] * 10_001})[0] == 400
    assert ask(server, "", b"{}")[0] == 404
    assert ask(server, "file", b"{}")[0] == 404
    assert ask(server, "../view.py")[0] == 404


@pytest.mark.parametrize("length", [str((1 << 21) + 1), "-1", "x", ""])
def test_bodies_of_bad_lengths_are_not_read(server: ViewServer, length: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    connection.putrequest("POST", f"/{server.token}/frame")
    connection.putheader("Content-Length", length)
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert answer.headers["Connection"] == "close"
    connection.close()


def test_others_are_refused(server: ViewServer) -> None:
    root = server.url.removesuffix(f"{server.token}/")
    port = server.server_address[1]
    status, page = ask(server, "")
    assert status == 200 and b"<canvas" in page
    assert ask(server, "", Host=f"localhost:{port}")[0] == 200
    own = f"http://127.0.0.1:{port}"
    assert ask(server, "frame", {"gaze": FRONT, "whole": False}, Origin=own)[0] == 200
    for url in (root, f"{root}{server.token}", f"{root}{server.token}x/", f"{root}{'a' * 32}/", f"{root}%00/"):
        for value in (None, {"gaze": FRONT, "whole": False}):
            status, body = ask(server, "", value, url=url)
            assert status == 403
            assert server.token.encode() not in body
    for headers in (
        {"Host": f"evil.example:{port}"},
        {"Host": f"127.0.0.1.evil.example:{port}"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{port + 1}"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ):
        assert ask(server, "", **headers)[0] == 403, headers
        assert ask(server, "frame", {"gaze": FRONT, "whole": False}, **headers)[0] == 403, headers
    request = urllib.request.Request(server.url, method="OPTIONS")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 501
    assert not [name for name in refused.value.headers if name.startswith("Access-Control")]


def test_only_this_machine_is_listened_to(server: ViewServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(OSError, match=os.strerror(errno.ECONNREFUSED)):  # another address of the same machine
        socket.create_connection(("127.0.0.2", server.server_address[1]), timeout=10)


def test_tokens_differ_and_a_port_in_use_is_told(server: ViewServer, live: LiveScene) -> None:
    with ViewServer(live) as other:
        assert other.token != server.token
        assert len(other.token) >= 32
        assert other.server_address[1] != server.server_address[1]
    with pytest.raises(UnavailableError, match="in use"):
        ViewServer(live, server.server_address[1])


def test_the_page_is_sealed(server: ViewServer) -> None:
    with urllib.request.urlopen(server.url, timeout=60) as answer:
        text, headers = answer.read().decode(), answer.headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; connect-src 'self'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert "://" not in text
    assert "<img" not in text
    assert server.token not in text


def test_a_still_is_what_was_seen(server: ViewServer, live: LiveScene) -> None:
    seen = as_tensor(frame(server, whole=True, yaw=0.05, disparity=True))
    paths = [json.loads(ask(server, "still", {"gaze": FRONT | gaze})[1])["saved"] for gaze in ({}, {})]
    assert len(set(paths)) == 2  # none replaces another
    status, body = ask(server, "still", {"gaze": FRONT | {"yaw": 0.05, "disparity": True}})
    assert status == 200
    saved = Path(json.loads(body)["saved"])
    assert saved.parent == live.folder
    assert float(psnr(read_image(saved)[None], seen)) > 30.0  # but for the JPEG


def test_render_films_a_path_that_was_saved(
    server: ViewServer, live: LiveScene, tiny_weights: Path, tmp_path: Path
) -> None:
    gazes = [FRONT, FRONT | {"yaw": 0.06, "pitch": -0.02}, FRONT | {"yaw": 0.03, "zoom": 1.5}]
    status, body = ask(server, "path", {"gazes": gazes})
    assert status == 200
    saved = json.loads(body)["saved"]
    assert len(read_cameras(Path(saved))) == 3
    options = ["--path", saved, "--weights", str(tiny_weights), "--geometry", "nerf", "--size", "256", "--quiet"]
    assert run(["render", str(live.folder / HOSTILE), *options, "--format", "frames", "-o", f"{tmp_path}/"]) == 0
    for number, gaze in enumerate(gazes):
        filmed = read_image(tmp_path / f"frame_{number:05d}.png")[None]
        seen = live.picture(Gaze(**gaze), whole=True)
        assert seen is not None
        # What is behind edges is made for the cameras that look.
        assert float(psnr(filmed, seen[None])) > 30.0, number


def test_what_cannot_be_saved_is_told(
    server: ViewServer, live: LiveScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(server, "scene", replace(live, folder=tmp_path / "file"))
    status, body = ask(server, "still", {"gaze": FRONT})
    assert status == 500
    assert b"a file has that name" in body


# --- the page --------------------------------------------------------------------------------------------------------


def wait_for(page, condition: str) -> None:  # type: ignore[no-untyped-def]
    """Until a condition of the page's holds: the page forbids itself the `eval` that playwright would wait with."""
    deadline = time.monotonic() + 60.0
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"{condition}: {page.inner_text('#status')}"
        page.wait_for_timeout(20)


@pytest.fixture
def page(browser, server: ViewServer) -> Iterator:  # type: ignore[no-untyped-def,type-arg]
    """The page; at the end nothing may have gone wrong, and nothing but the server may have been asked."""
    opened = browser.new_page(viewport={"width": 500, "height": 500})
    troubles: list[str] = []
    opened.on("console", lambda message: troubles.append(message.text))
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on(
        "request",
        lambda request: None if request.url.startswith((server.url, "data:")) else troubles.append(request.url),
    )
    opened.goto(server.url)
    wait_for(opened, "vq3d.shown.whole")
    yield opened
    assert opened.evaluate("window.hacked") is None
    opened.close()
    assert troubles == []


def test_the_camera_follows_the_mouse_and_rests(page) -> None:  # type: ignore[no-untyped-def]
    assert page.inner_text("h1") == HOSTILE.removesuffix(".png")
    assert page.evaluate("document.getElementById('scene').width") == 256
    before = page.evaluate(PIXELS)
    frames = page.evaluate("vq3d.shown.frames")
    box = page.locator("canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 50, y + 10)
    view = page.evaluate("vq3d.view")
    assert view["yaw"] < 0.0 < view["pitch"]  # what is seen follows the pointer
    wait_for(page, f"vq3d.shown.frames > {frames}")
    page.mouse.move(x - 3000, y - 3000, steps=4)
    page.mouse.up()
    view = page.evaluate("vq3d.view")
    assert np.hypot(view["yaw"], view["pitch"]) <= np.radians(4.0) + 1e-9
    wait_for(page, "vq3d.shown.whole")
    assert page.evaluate("document.getElementById('scene').width") == 256
    assert page.evaluate(PIXELS) != before
    page.mouse.move(x, y)
    page.mouse.wheel(0, -300)
    wait_for(page, "vq3d.view.zoom > 1.2")
    page.keyboard.press("0")
    assert page.evaluate("[vq3d.view.yaw, vq3d.view.pitch, vq3d.view.zoom]") == [0, 0, 1]
    wait_for(page, "vq3d.shown.whole")
    assert page.evaluate(PIXELS) == before


def test_keys_buttons_and_what_they_save(page, live: LiveScene) -> None:  # type: ignore[no-untyped-def]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    step = 0.1 * np.radians(4.0)
    assert page.evaluate("[vq3d.view.yaw, vq3d.view.pitch]") == pytest.approx([step, step])
    page.click("#disparity")
    assert page.get_attribute("#disparity", "aria-pressed") == "true"
    page.keyboard.press("d")
    assert page.get_attribute("#disparity", "aria-pressed") == "false"
    page.keyboard.press("n")
    assert page.get_attribute("#detail", "aria-pressed") == "true"
    wait_for(page, "vq3d.shown.whole")
    page.click("#detail")
    for select, names in (("#still", "*_view_*.png"), ("#path", "*_cameras_*.json")):
        before = set(live.folder.glob(names))
        page.click(select)
        if select == "#path":
            assert page.get_attribute(select, "aria-pressed") == "true"
            page.keyboard.press("ArrowLeft")
            page.wait_for_timeout(200)
            page.keyboard.press("r")
        wait_for(page, "document.getElementById('status').textContent.startsWith('saved')")
        (saved,) = set(live.folder.glob(names)) - before
        assert page.inner_text("#status") == f"saved {saved}"
        page.evaluate("document.getElementById('status').textContent = ''")
    assert len(read_cameras(saved)) >= 2


def test_touch(browser, server: ViewServer) -> None:  # type: ignore[no-untyped-def]
    with browser.new_context(viewport={"width": 300, "height": 500}, has_touch=True, is_mobile=True) as context:
        page = context.new_page()
        page.goto(server.url)
        wait_for(page, "vq3d.shown.whole")
        page.evaluate("HTMLElement.prototype.setPointerCapture = () => {}")  # a made-up pointer cannot be captured

        def touch(finger: int, kind: str, x: int) -> None:
            event = f"new PointerEvent('pointer{kind}', {{pointerId: {finger}, clientX: {x}, clientY: 200}})"
            page.evaluate(f"document.querySelector('canvas').dispatchEvent({event})")

        for kind, x in (("down", 100), ("move", 160)):
            touch(5, kind, x)
        assert page.evaluate("vq3d.view.yaw") < 0.0
        touch(6, "down", 200)
        touch(6, "move", 240)
        assert page.evaluate("vq3d.view.zoom") == pytest.approx(2.0)
        assert page.evaluate("document.documentElement.scrollWidth") <= 300


# --- the command -----------------------------------------------------------------------------------------------------
