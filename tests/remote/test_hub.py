"""Weights to the Hub and back: what is pushed to a server of its ways is loaded from it, and --offline asks nobody."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

import vq3d
from vq3dcli import cli
from vq3dcli.errors import DataError, UnavailableError
from vq3dcli.remote import fetch as fetching
from vq3dcli.remote.fetch import fetch
from vq3dcli.weights_file import embedded_path


@pytest.fixture
def hub(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server, as the Hub is asked; `commits` has what came."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "a-token")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    server.commits = []
    for revision in ("main", "v2"):  # which some versions ask for before they send
        (known := server.folder / "api" / "models" / "me" / "scenes" / "revision" / revision).parent.mkdir(
            parents=True, exist_ok=True
        )
        known.write_text('{"id": "me/scenes"}')

    def post(to: Any) -> None:
        body = to.rfile.read(int(to.headers.get("Content-Length") or 0))
        server.requests.append((to.path, dict(to.headers)))
        answer: dict[str, Any] = {}
        if to.path == "/api/repos/create":
            answer = {"url": f"{server.url}/me/scenes"}
        elif "/preupload/" in to.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            answer = {"files": files}
        elif "/commit/" in to.path:
            rows = [json.loads(line) for line in body.splitlines()]
            files = {r["value"]["path"]: base64.b64decode(r["value"]["content"]) for r in rows if r["key"] == "file"}
            server.commits.append((to.path.rpartition("/")[2], rows[0]["value"]["summary"], files))
            answer = {"commitOid": "0" * 40, "commitUrl": f"{server.url}/me/scenes/commit/{'0' * 40}"}
        data = json.dumps(answer).encode()
        to.send_response(200)
        to.send_header("Content-Type", "application/json")
        to.send_header("Content-Length", str(len(data)))
        to.end_headers()
        to.wfile.write(data)

    server.post = post
    return server


def publish(hub: Any, revision: str, files: dict[str, bytes]) -> Path:
    place = hub.folder / "me" / "scenes" / "resolve" / revision
    place.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (place / name).write_bytes(data)
    return place


def test_what_is_pushed_is_loaded_by_its_address(
    hub: Any, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["push", str(tiny_weights), "me/scenes"]) == 2
    assert "uploading" not in capsys.readouterr().err
    assert cli.run(["push", str(tiny_weights), "hf://me/scenes@v2", "--private", "--message", "a try"]) == 0
    assert capsys.readouterr().out == f"{hub.url}/me/scenes/commit/{'0' * 40}\n"
    [(branch, message, files)] = hub.commits
    assert (branch, message, set(files)) == ("v2", "a try", {"README.md", "stage1.safetensors"})
    assert files["stage1.safetensors"] == tiny_weights.read_bytes()
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: vq3d\n")
    assert 'vq3d.load("hf://me/scenes@v2")' in card
    assert sha256(tiny_weights.read_bytes()).hexdigest() in card
    assert all(headers["authorization"] == "Bearer a-token" for path, headers in hub.requests if "/commit/" in path)

    publish(hub, "v2", files)
    model = vq3d.load("hf://me/scenes@v2", device="cpu")
    assert model.weights.sha256 == sha256(tiny_weights.read_bytes()).hexdigest()
    ours, theirs = model.weights.model.state_dict(), vq3d.load(tiny_weights, device="cpu").weights.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    render = ["render", "toyscene:box", "--yaw", "0", "--size", "16", "--device", "cpu", "-o", "a.png", "-q"]
    assert cli.run([*render, "--weights", "hf://me/scenes@v2"]) == 0
    assert cli.run([*render, "--weights=hf://me/scenes"]) == 66  # of main there are none
    with pytest.raises(vq3d.Vq3dError, match=r"no such file \(hf://me/scenes@v2/stage2.safetensors\)"):
        _ = model.classes


def test_a_prior_goes_with_its_weights(hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = vq3d.load(prior=embedded_path("stage2"), device="cpu")
    assert model.push_to_hub("hf://me/scenes").endswith("0" * 40)
    [(branch, _, files)] = hub.commits
    assert (branch, set(files)) == ("main", {"README.md", "stage1.safetensors", "stage2.safetensors"})
    card = files["README.md"].decode()
    assert "license: cc-by-sa-3.0" in card and "## Prior" in card and "sphere, box, cylinder" in card
    publish(hub, "main", files)
    assert vq3d.load("hf://me/scenes", device="cpu").classes == vq3d.load().classes
    # Nor does a command that draws take the embedded prior in place of that of the repository.
    assert cli.run(["classes", "--weights", "hf://me/scenes"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["0", "sphere"]
    publish(hub, "main", {"stage2.safetensors": b"no prior"})
    for command in (["classes"], ["sample", "-n", "1", "-o", str(tmp_path)], ["evaluate", "generation"]):
        assert cli.run([*command, "--weights=hf://me/scenes"]) == 65
        assert "stage2.safetensors" in capsys.readouterr().err
        assert cli.run([*command, "--weights", "hf://me/scenes", "--prior", "none"]) == 66


def test_other_bytes_than_the_hub_s_hash_are_refused(hub: Any, tiny_weights: Path, tmp_path: Path) -> None:
    """What a large file is led to has a tag of its own; the hash comes with the redirect."""
    data = tiny_weights.read_bytes()
    publish(hub, "main", {"there.safetensors": data, "stage1.safetensors": b""})
    there = f"{hub.url}/me/scenes/resolve/main/there.safetensors"
    address, path = "hf://me/scenes/stage1.safetensors", "/me/scenes/resolve/main/stage1.safetensors"
    hub.faults[path] = [f"to {there} {sha256(data).hexdigest()}"]
    fetch(address, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == data
    hub.faults[path] = [f"to {there} {sha256(b'other').hexdigest()}"] * 2
    with pytest.raises(DataError, match="other bytes than expected"):
        fetch(address, tmp_path / "b")
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["a"]


def test_a_later_call_goes_on_where_one_ended(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_KEPT_BYTES", 1000)
    data = os.urandom(10_000)
    (server.folder / "w.bin").write_bytes(data)
    target = tmp_path / "target" / "w.bin"
    server.faults["/w.bin"] = ["cut 6000", 500, 500, 500]
    with pytest.raises(UnavailableError):
        fetch(f"{server.url}/w.bin", target, keep=True)
    assert not target.exists()
    server.requests.clear()
    fetch(f"{server.url}/w.bin", target, keep=True, sha256=sha256(data).hexdigest())
    assert target.read_bytes() == data
    assert [headers["Range"] for _, headers in server.requests] == ["bytes=6000-"]
    assert [file.name for file in target.parent.iterdir()] == ["w.bin"]
    # Another file meanwhile: it comes anew.
    server.faults["/w.bin"] = ["cut 6000", 500, 500, 500]
    with pytest.raises(UnavailableError):
        fetch(f"{server.url}/w.bin", target, keep=True)
    (server.folder / "w.bin").write_bytes(data[::-1])
    fetch(f"{server.url}/w.bin", target, keep=True)
    assert target.read_bytes() == data[::-1]


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    class Guard(socket.socket):
        def __init__(self, *arguments: object, **options: object) -> None:
            raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", Guard)
    monkeypatch.setattr(socket, "getaddrinfo", Guard)


def test_offline_takes_what_is_here(
    hub: Any, tiny_weights: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    publish(hub, "main", {"stage1.safetensors": tiny_weights.read_bytes()})
    render = ["render", "toyscene:box", "--yaw", "0", "--size", "16", "--device", "cpu", "-o", "a.png", "-q"]
    assert cli.run([*render, "--weights", "hf://me/scenes"]) == 0
    assert cli.run(["prepare-data", "toyscenes", str(hub.folder / "toys"), "--count", "2", "--size", "16", "-q"]) == 0
    assert cli.run(["inspect", f"{hub.url}/toys", "-q"]) == 0
    before = len(hub.requests)
    request.getfixturevalue("no_sockets")
    capsys.readouterr()
    assert cli.run(["--offline", *render, "--weights", "hf://me/scenes"]) == 0
    assert cli.run([*render, "--weights", "hf://me/scenes", "--offline"]) == 0
    assert cli.run(["inspect", f"{hub.url}/toys", "--offline", "-q"]) == 0
    capsys.readouterr()
    for words in (
        [*render, "--weights", "hf://me/others"],
        ["inspect", f"{hub.url}/other"],
        ["inspect", "s3://bucket/x.tar"],
        ["push", str(tiny_weights), "hf://me/scenes"],
        ["depth-labels", str(hub.folder / "toys"), "--model", "some/network", "--download"],
    ):
        assert cli.run([*words, "--offline"]) == 69, words
        line = capsys.readouterr().err.splitlines()[-1]
        assert "offline" in line or "not on this machine" in line
    assert len(hub.requests) == before
    assert "VQ3D_OFFLINE" not in os.environ
    shutil.rmtree(tmp_path / "cache")
    assert cli.run([*render, "--weights", "hf://me/scenes", "--offline"]) == 69
