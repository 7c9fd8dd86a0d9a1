"""What lies at an address comes whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from vq3dcli.errors import DataError, InputMissingError, StorageError, UnavailableError, Vq3dError
from vq3dcli.files import sha256_bytes
from vq3dcli.remote import fetch as fetching
from vq3dcli.remote.fetch import UnchangedError, fetch

DATA = bytes(range(256)) * 40


@pytest.fixture
def target(server: Any, tmp_path: Path) -> Path:
    (server.folder / "x.tar").write_bytes(DATA)
    return tmp_path / "here/x.tar"


@pytest.mark.parametrize(
    ("faults", "starts"),
    [
        ([], [0]),
        (["cut 100", "cut 1000"], [0, 100, 1100]),  # goes on where it broke off
        (["cut 100", "whole"], [0, 100]),  # unless the server does not know how
        (["reset 100", "reset 1000"], [0, 100, 1100]),
        (["cut 0", 503, 429], [0, 0, 0, 0]),
        ([500, 502, 504], [0, 0, 0, 0]),
    ],
)
def test_a_transfer_that_breaks_goes_on(server: Any, target: Path, faults: list[str | int], starts: list[int]) -> None:
    server.faults["/x.tar"] = list(faults)
    tag = fetch(f"{server.url}/x.tar", target, sha256=sha256_bytes(DATA), size=len(DATA)).tag
    assert target.read_bytes() == DATA
    assert [int(headers.get("Range", "bytes=0-")[6:-1]) for _, headers in server.requests] == starts
    assert os.listdir(target.parent) == ["x.tar"]
    with pytest.raises(UnchangedError):
        fetch(f"{server.url}/x.tar", target, unless=tag)


@pytest.mark.parametrize(
    ("faults", "error", "message", "requests"),
    [
        ([404], InputMissingError, r"no such file \(http://127.*/x\.tar\): 404 Not Found; try: check the address", 1),
        ([403], UnavailableError, r"access is refused \(.*/x\.tar\): 403 Forbidden", 1),
        ([400], UnavailableError, r"cannot fetch \(.*\): 400", 1),
        ([500] * 4, UnavailableError, r"cannot fetch \(.*\): 500 .*; try: the same command again later", 4),
        (["cut 9"] * 4, UnavailableError, r"ended after 36 of 10240 bytes", 4),
        (["reset 9"] * 4, UnavailableError, r"cannot fetch \(.*\): .*reset", 4),
        (["silent"] * 4, UnavailableError, r"no answer for 0 s", 4),
        (["drip"] * 4, UnavailableError, r"\d+ bytes in 0 s", 4),
    ],
)
def test_what_does_not_come_is_an_error_and_leaves_nothing(
    server: Any,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    faults: list[str | int],
    error: type[Vq3dError],
    message: str,
    requests: int,
) -> None:
    monkeypatch.setattr(fetching, "_TIMEOUT_S", 0.3)
    monkeypatch.setattr(fetching, "_WINDOW_S", 0.3)
    server.faults["/x.tar?key=secret"] = list(faults)
    target.parent.mkdir()
    target.write_bytes(b"before")
    with pytest.raises(error, match=message) as caught:
        fetch(f"{server.url}/x.tar?key=secret", target)
    assert "secret" not in str(caught.value)
    assert server.asked("/x.tar?key=secret") == requests
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == {"x.tar": b"before"}


def test_other_bytes_than_expected_are_asked_for_once_more_and_refused(server: Any, target: Path) -> None:
    for wrong in ({"sha256": sha256_bytes(b"")}, {"size": 7}):
        server.requests.clear()
        with pytest.raises(DataError, match=r"other bytes than expected \(http"):
            fetch(f"{server.url}/x.tar", target, **wrong)
        assert server.asked("/x.tar") == 2
    assert not list(target.parent.iterdir())


def test_a_file_that_changes_on_the_way_is_not_put_together_of_two(server: Any, target: Path) -> None:
    server.faults["/x.tar"] = ["cut 5000"]
    room: list[int] = []

    def change(size: int) -> None:
        room.append(size)
        (server.folder / "x.tar").write_bytes(DATA[::-1])

    fetch(f"{server.url}/x.tar", target, room=change)
    assert target.read_bytes() == DATA[::-1]
    assert room == [len(DATA)] * 2


def test_a_server_that_is_not_there_is_one_line(server: Any, target: Path) -> None:
    with pytest.raises(UnavailableError, match=r"cannot fetch \(http://127\.0\.0\.1:9/x\): .*refused"):
        fetch("http://127.0.0.1:9/x", target)
    with pytest.raises(InputMissingError, match="no such address"):
        fetch("http://127.0.0.1:port/x", target)


def test_a_full_disk_is_not_the_network(server: Any, target: Path, file_limit: Any) -> None:
    with file_limit(4000), pytest.raises(StorageError):
        fetch(f"{server.url}/x.tar", target)
    assert server.asked("/x.tar") == 1
    assert not list(target.parent.iterdir())


def test_the_hub_is_asked_by_its_own_addresses_and_alone_sees_the_token(
    server: Any, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "abc")
    asked = "/datasets/me/set/resolve/v1/a/x.tar"
    (server.folder / asked[1:]).parent.mkdir(parents=True)
    (server.folder / asked[1:]).write_bytes(b"")
    server.faults[asked] = [f"to {server.url.replace('127.0.0.1', 'localhost')}/x.tar"]
    fetch("hf://datasets/me/set@v1/a/x.tar", target)
    assert target.read_bytes() == DATA
    assert [headers.get("Authorization") for _, headers in server.requests] == ["Bearer abc", None]
    with pytest.raises(InputMissingError, match=r"/me/model/y\.safetensors\): 404"):
        fetch("hf://me/model/y.safetensors", target)
    with pytest.raises(InputMissingError, match="no address of the Hub"):
        fetch("hf://me", target)


def test_programs_bring_what_others_know(server: Any, target: Path, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("webdataset")
    (tmp_path / "bin").mkdir()
    fails = tmp_path / "fails"
    for name, args in (("aws", '[ "$1 $2" = "s3 cp" ]'), ("gsutil", '[ "$1" = cat ]')):
        program = tmp_path / "bin" / name
        program.write_text(
            f"#!/bin/sh\n{args} || exit 9\nhead -c 77 {server.folder}/x.tar\n"
            f"[ -e {fails} ] && rm {fails} && exit 1\ntail -c +78 {server.folder}/x.tar\n"
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for url in ("s3://bucket/x.tar", "gs://bucket/x.tar", f"pipe:cat '{server.folder}/x.tar' | cat"):
        fails.write_text("")
        fetch(url, target)
        assert target.read_bytes() == DATA
        target.unlink()
    for url, message in (
        (f"pipe:head -c 50 {server.folder}/x.tar; exit 3", "ended with 3"),
        (f"pipe:(head -c 50 {server.folder}/x.tar; exit 3) | cat", "ended with 3"),
        ("pipe:true", "nothing came"),
        ("pipe:no-such-program x", "a program is not installed"),
    ):
        with pytest.raises(UnavailableError, match=message):
            fetch(url, target)
    assert not list(target.parent.iterdir())
