"""A server on this machine that fails as it is told to."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vq3dcli.files import sha256_bytes
from vq3dcli.remote import cache, fetch


class Server:
    """Serves the files of a folder, by ranges too; `faults` of a path are used up one a request.

    A fault is a status; `cut N`: the connection ends after N bytes, `reset N`: it is torn down; `drip`: a byte now and
    then; `silent`: nothing comes; `whole`: ranges are ignored; `to URL [SHA256]`: a redirect. Attributes `requests` has
    (path, headers) of all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, list[str | int]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.end = threading.Event()
        self.post: Callable[[Any], None] = lambda to: to.send_error(405)
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            def do_POST(self) -> None:
                server.post(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def asked(self, path: str) -> int:
        return sum(asked == path for asked, _ in self.requests)

    def answer(self, to: Any) -> None:
        self.requests.append((to.path, dict(to.headers)))
        faults = self.faults.get(to.path, [])
        fault = faults.pop(0) if faults else ""
        file = self.folder / to.path.lstrip("/").partition("?")[0]
        if isinstance(fault, int) or not file.is_file():
            to.send_response(fault if isinstance(fault, int) else 404)
            to.send_header("Retry-After", "0")
            to.send_header("Content-Length", "0")
            return to.end_headers()
        if fault.startswith("to "):
            to.send_response(302)
            _, where, *hashes = fault.split()
            to.send_header("Location", where)
            for value in hashes:
                to.send_header("X-Linked-ETag", f'"{value}"')
            to.send_header("Content-Length", "0")
            return to.end_headers()
        if fault == "silent":
            self.end.wait(20)
            to.close_connection = True
            return None
        data = file.read_bytes()
        tag = f'"{sha256_bytes(data)[:16]}"'
        if to.headers.get("If-None-Match") == tag:
            to.send_response(304)
            return to.end_headers()
        start = int((to.headers.get("Range") or "bytes=0-")[6:-1])
        if fault == "whole" or to.headers.get("If-Range") != tag:
            start = 0
        to.send_response(206 if start else 200)
        if start:
            to.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        to.send_header("ETag", tag)
        to.send_header("Content-Length", str(len(data) - start))
        to.end_headers()
        body = data[start:]
        if fault == "drip":
            for i in range(len(body)):
                to.wfile.write(body[i : i + 1])
                to.wfile.flush()
                time.sleep(0.05)
        how, _, most = fault.partition(" ")
        whole = how not in ("cut", "reset")
        to.wfile.write(body if whole else body[: int(most)])
        to.close_connection = not whole
        if how == "reset":
            time.sleep(0.05)  # what was sent may be read first
            to.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            to.connection.close()
        return None


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("VQ3D_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "VQ3D_CACHE_GB", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetch, "_PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(cache, "_mirrors", {})
    monkeypatch.setattr(cache, "_held", [])
    (tmp_path / "served").mkdir()
    started = Server(tmp_path / "served")
    yield started
    started.end.set()
    started.http.shutdown()
    started.http.server_close()
