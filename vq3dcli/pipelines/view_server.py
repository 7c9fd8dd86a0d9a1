"""The page of `pipelines.view`: a server for this machine alone.

It listens on 127.0.0.1 only, its address holds a random token, and requests that name another host or come from
another page's origin are refused. One thread renders: of the pictures that wait, the one asked for last.
"""

from __future__ import annotations

import errno
import html
import http.server
import json
import logging
import secrets
import socketserver
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vq3dcli import __version__
from vq3dcli.data.images import encode_jpeg
from vq3dcli.errors import UnavailableError, UsageError, Vq3dError
from vq3dcli.export.viewer import hash_source, json_in_html
from vq3dcli.files import as_bytes
from vq3dcli.pipelines.camera_file import MOST_CAMERAS
from vq3dcli.pipelines.view import Gaze, LiveScene
from vq3dcli.sealed import first_problem

HOST = "127.0.0.1"
_MOST_BYTES = 1 << 21
_IDLE_S = 600
_log = logging.getLogger(__name__)


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Frame(_Message):
    gaze: Gaze
    whole: bool


class _Still(_Message):
    gaze: Gaze


class _Path(_Message):
    gazes: Annotated[list[Gaze], Field(min_length=1, max_length=MOST_CAMERAS)]


class ViewServer(socketserver.ThreadingTCPServer):
    """Serves one scene until Ctrl-C.

    Args:
        port: Of this machine; 0 takes one that is free.

    Raises `UnavailableError`: the port is in use.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, scene: LiveScene, port: int = 0) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            busy = error.errno == errno.EADDRINUSE
            reason = "is in use" if busy else f"cannot be had: {error.strerror or error}"
            raise UnavailableError(f"port {port} {reason}", remedy="no --port, for one that is free") from error
        self.scene, self.token = scene, secrets.token_urlsafe(24)
        self.page, self.policy = _page(scene)
        self._renderer, self._newest = ThreadPoolExecutor(1), 0

    @property
    def url(self) -> str:
        """Where the page is, its token included."""
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    def serve(self) -> None:
        """Serve until Ctrl-C."""
        try:
            self.serve_forever()
        except KeyboardInterrupt:
            _log.info("ended")
        finally:
            self._newest += 1
            self.server_close()
            self._renderer.shutdown(cancel_futures=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news."""
        _log.debug("a request failed", exc_info=True)

    def frame(self, gaze: Gaze, whole: bool) -> bytes | None:
        """A JPEG; None when another one was asked for meanwhile."""
        self._newest = mine = self._newest + 1

        def render() -> bytes | None:
            picture = self.scene.picture(gaze, whole=whole, wanted=lambda: mine == self._newest)
            return None if picture is None else encode_jpeg(picture)

        return self._renderer.submit(render).result()

    def save(self, message: _Still | _Path) -> Path:
        """Save a still or a path."""
        if isinstance(message, _Still):
            return self._renderer.submit(self.scene.save_still, message.gaze).result()
        return self._renderer.submit(self.scene.save_path, message.gazes).result()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ViewServer
    server_version, sys_version = f"vq3d/{__version__}", ""
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two small writes
    timeout = _IDLE_S

    def do_GET(self) -> None:
        """The page."""
        name = self._asked_for()
        if name == "":
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        elif name is not None:
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")

    def do_POST(self) -> None:
        """A frame, a still or a path."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > _MOST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too long, or without a length")
            return
        body = self.rfile.read(int(length))  # all of it: else the answer is lost with the connection
        kinds: dict[str, type[_Message]] = {"frame": _Frame, "still": _Still, "path": _Path}
        name = self._asked_for()
        if name is None:
            return
        if name not in kinds:
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")
            return
        try:
            message = kinds[name].model_validate_json(body)
            if isinstance(message, _Frame):
                picture = self.server.frame(message.gaze, message.whole)
                if picture is None:
                    self._answer(HTTPStatus.CONFLICT, "text/plain", b"another one was asked for meanwhile")
                else:
                    self._answer(HTTPStatus.OK, "image/jpeg", picture)
            elif isinstance(message, _Still | _Path):
                saved = json.dumps({"saved": str(self.server.save(message))})
                self._answer(HTTPStatus.OK, "application/json", as_bytes(saved))
        except ValidationError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, first_problem(error))
        except UsageError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except Vq3dError as error:
            _log.warning("%s", error)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def _asked_for(self) -> str | None:
        """What follows the token in the address; None for those who may not ask, who have been told so."""
        host = self.headers.get("Host", "")
        token, slash, name = self.path.removeprefix("/").partition("/")
        allowed = (
            host.rpartition(":")[0] in (HOST, "localhost")  # names of other sites may lead here, too
            and self.headers.get("Origin", f"http://{host}") == f"http://{host}"
            and self.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
            and secrets.compare_digest(token.encode(errors="replace"), self.server.token.encode())
            and slash
        )
        if not allowed:
            self._refuse(HTTPStatus.FORBIDDEN, "the address is that which vq3d view has printed")
        return name if allowed else None

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True
        self._answer(status, "text/plain; charset=utf-8", as_bytes(reason))

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", self.server.policy),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A line a frame would be too much."""


def _page(scene: LiveScene) -> tuple[bytes, str]:
    """The page, and the policy that allows its own script and style sheet and nothing else."""
    text = resources.files("vq3dcli.pipelines").joinpath("view.html").read_text(encoding="utf-8")
    style, script = (text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0] for tag in ("style", "script"))
    policy = (
        f"default-src 'none'; connect-src 'self'; script-src {hash_source(script)}; style-src {hash_source(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    text = text.replace("SCENE_TITLE", html.escape(scene.opened.stem))
    return as_bytes(text.replace("SCENE_FACTS", json_in_html(scene.facts()))), policy
