"""Local copies of files and shard folders at addresses: checked, shared by processes, and bounded in size.

```
CACHE/NAME-HASH/manifest.json ...     a folder of shards: each file comes when it is first read
CACHE/NAME-HASH/x.tar, .x.tar.tag     a single file; the server's tag of its version, its size, hash and time
```
`VQ3D_CACHE` is the folder, `VQ3D_CACHE_GB` its size, about: what was not read for the longest goes first.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vq3dcli.errors import StorageError, UsageError
from vq3dcli.files import make_folder, sha256_bytes, sha256_file, write_bytes
from vq3dcli.locks import open_lock, try_lock
from vq3dcli.remote.fetch import OFFLINE, Fetched, UnchangedError, fetch, join, refuse_offline, shown

_DEFAULT_GB = 100.0
_MANIFEST, _SUMS = "manifest.json", "SHA256SUMS"
_FILE = re.compile(r"[^/?]*\.[A-Za-z]\w{0,15}(\?.*)?")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_POLL_S = 0.2
_SMALL = 64 << 20
# Where locks do not say what is in use: the time of the last read may be a day old, and this is twice that.
_UNUSED_S = 48 * 3600.0

_mirrors: dict[Path, str] = {}  # folders here, and the addresses that they stand for
_held: list[IO[str]] = []  # files that this process reads by their names
_turns: dict[Path, threading.Lock] = {}  # of the threads of this process, which need them where there are no locks


def cache_folder() -> Path:
    """Where copies lie."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VQ3D_CACHE") or Path(home) / "vq3d" / "remote")


def _most_bytes() -> int:
    text = os.environ.get("VQ3D_CACHE_GB") or str(_DEFAULT_GB)
    try:
        return int(float(text) * 1e9)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"VQ3D_CACHE_GB is no number ({text})", remedy="VQ3D_CACHE_GB=100") from error


def local_copy(url: str) -> Path:
    """The file or shard folder at an address, here.

    A last part with an ending, or a `pipe:` without `{}`, is a file; numbers as in `shard-{000000..000127}.tar` are
    files in one folder; anything else is a folder of shards. Raises as `fetch`, and `StorageError`: it is larger than
    the cache.
    """
    if url.startswith("pipe:"):
        return mirror(url) if "{}" in url else _file(url, _place(url))
    if (numbers := _RANGE.search(url)) is None:
        return _file(url, _place(url)) if _FILE.fullmatch(url.rpartition("/")[2]) else mirror(url)
    place = _place(url)
    for number in range(int(numbers[1]), int(numbers[2]) + 1):
        _file(f"{url[: numbers.start()]}{number:0{len(numbers[1])}d}{url[numbers.end() :]}", place)
    return place


def mirror(url: str) -> Path:
    """A folder that stands for the shards at an address: what is read of it comes by `ensure`. Raises as `fetch`."""
    make_folder(cache_folder())
    if os.environ.get(OFFLINE):
        return _mirror_of_before(url)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=".") as scratch:
        fetch(join(url, _MANIFEST), Path(scratch) / _MANIFEST)
        text = (Path(scratch) / _MANIFEST).read_bytes()
    folder = _place(url, text)  # other contents are another folder
    make_folder(folder)
    if not (folder / _MANIFEST).exists():
        write_bytes(folder / _MANIFEST, text)
    _mirrors[folder] = url
    return folder


def _mirror_of_before(url: str) -> Path:
    """The newest mirror of an address that an earlier call has made. Raises `UnavailableError`."""
    slug = _place(url).name.rpartition("-")[0]
    manifests = cache_folder().glob(f"{slug}-*/{_MANIFEST}")
    for manifest in sorted(manifests, key=lambda path: path.stat().st_mtime, reverse=True):
        if manifest.parent == _place(url, manifest.read_bytes()):
            _mirrors[manifest.parent] = url
            return manifest.parent
    refuse_offline(url)
    raise AssertionError("offline")


def mirror_of(path: Path) -> Path:
    """The mirror of a folder inside one, or the path itself. Raises as `mirror`."""
    url = address(path)
    return path if url is None or path in _mirrors else mirror(url)


def address(path: Path) -> str | None:
    """The address of what a path within a mirror stands for."""
    for folder in (path, *path.parents) if _mirrors else ():
        if folder in _mirrors:
            url, name = _mirrors[folder], path.relative_to(folder).as_posix()
            return url if name == "." else join(url, name)
    return None


def ensure(path: Path, *, sha256: str = "", size: int | None = None) -> bool:
    """Fetch a file of a mirror unless it is there; false for a path that is in none. Raises as `fetch`."""
    url = address(path)
    if url is None or path.exists():
        return url is not None
    with _locked(path) as keep:
        if not path.exists():
            if size:
                _make_room(size)
            fetch(url, path, sha256=sha256, size=size, keep=keep)
    return True


def ensure_all(folder: Path) -> None:
    """Fetch every file that the list of hashes of a mirror names, without its labels. Raises as `ensure`."""
    ensure(folder / _SUMS)
    for line in (folder / _SUMS).read_text(errors="replace").splitlines():
        sha256, _, name = line.partition("  ")
        if re.fullmatch(r"\w[\w.-]*", name) and name != _MANIFEST:
            ensure(folder / name, sha256=sha256)


def require_room(size: int) -> None:
    """Raise `StorageError` where so many bytes do not fit into the cache together."""
    if size > _most_bytes():
        raise StorageError(
            f"{size / 1e9:.1f} GB do not fit into the cache of {_most_bytes() / 1e9:.1f} GB ({cache_folder()})",
            remedy=f"VQ3D_CACHE_GB={size / 1e9 * 1.1 + 0.1:.1f}, VQ3D_CACHE on another disk, or a local copy",
        )


def _place(url: str, version: bytes = b"") -> Path:
    name = re.sub(r"[^\w.-]+", "-", shown(url)).strip("-.")[-60:]
    return cache_folder() / f"{name}-{sha256_bytes(url.encode() + version)[:12]}"


def _file(url: str, folder: Path) -> Path:
    """A single file, asked for anew, and held as long as this process lives."""
    names = re.findall(r"[\w.-]+\.\w+", url.partition("?")[0].rpartition("/")[2] or url)
    path = folder / (names[-1] if names else "file")
    tag = path.with_name(f".{path.name}.tag")
    with _locked(path) as keep:
        known = _known(path, tag)
        if known is None or not os.environ.get(OFFLINE):
            with contextlib.suppress(UnchangedError):
                new = fetch(url, path, unless=known.tag if known else "", room=_make_room, keep=keep)
                write_bytes(tag, json.dumps(new).encode())
        handle = open_lock(path)
        try_lock(handle, shared=True)
        _held.append(handle)
    _make_room(0)  # where nobody could say how much would come
    return path


def _known(path: Path, tag: Path) -> Fetched | None:
    """What was fetched, if it is what lies there; who has not changed it since need not hash it."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        known, status = Fetched(*json.loads(tag.read_text())), path.stat()
        if status.st_size == known.size and (status.st_mtime_ns == known.mtime_ns or sha256_file(path) == known.sha256):
            return known
    return None


def _make_room(size: int) -> None:
    """Delete what was not read for the longest, until so many bytes more fit; small files and those in use stay."""
    require_room(size)
    files = []
    for path in cache_folder().rglob("*"):
        with contextlib.suppress(OSError):
            status = path.stat()
            if path.is_file() and not path.name.startswith("."):
                files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = size + sum(each for _, each, _ in files)
    for last, each, path in sorted(files):
        if total <= _most_bytes():
            return
        if each < _SMALL and path.suffix != ".tar":
            continue
        with contextlib.suppress(OSError), path.open("a") as handle:
            lock = try_lock(handle)
            if lock == "held" or (lock and last < time.time() - _UNUSED_S):
                path.unlink()
                total -= each


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Let one process at a time fetch a file; the others find it. False where the file system knows no locks."""
    make_folder(path.parent)
    with _turns.setdefault(path, threading.Lock()), open_lock(path.with_name(f".{path.name}.lock")) as handle:
        while not (lock := try_lock(handle)):
            time.sleep(_POLL_S)
        yield lock == "held"
