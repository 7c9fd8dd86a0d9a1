"""Files at addresses: they come whole or not at all, and are asked for again where that may help.

`https://` and `hf://` are read here, and go on where they broke off; `s3://`, `gs://` and `pipe:COMMAND` are read by
`webdataset.gopen`, from the start. A `pipe:` runs its command: it is for what a user types, never for what a file says.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import os
import random
import re
import shlex
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPResponse, InvalidURL
from io import BufferedRandom
from pathlib import Path
from typing import Any, NamedTuple

from vq3dcli.errors import DataError, InputMissingError, UnavailableError
from vq3dcli.files import atomic_path, make_folder, temporary_for, write_bytes

_log = logging.getLogger(__name__)

_HF = re.compile(r"hf://(datasets/|spaces/)?([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")
_CHUNK = 1 << 20
_TIMEOUT_S = 30.0
# Seconds before each further try; a try that brought this much more than all before begins the row anew.
_PAUSES = (0.5, 2.0, 8.0, 20.0, 60.0)
_PROGRESS = 16 << 20
_LONGEST_PAUSE_S = 120.0
# A body that comes slower than this over a window is broken off.
_WINDOW_S, _LEAST_BYTES = 60.0, 60_000
_PASSING = {408, 425, 429, 500, 502, 503, 504}
UNCHANGED = 304
OFFLINE = "VQ3D_OFFLINE"
# What has come of a file is kept for another call from here on.
_KEPT_BYTES = 1 << 20


class _PassingError(Exception):
    """Something that may be over at the next try, `pause` seconds later at least."""

    def __init__(self, reason: object, pause: float = 0.0) -> None:
        super().__init__(" ".join(str(reason).split()) or type(reason).__name__)
        self.pause = pause


class _Opener(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the hash that the Hub tells with one: where it leads to may have another tag."""

    sha256 = ""

    def redirect_request(self, request: Any, file: Any, code: int, reason: str, headers: Any, url: str) -> Any:
        told = (headers.get("X-Linked-ETag") or "").strip('"')
        if re.fullmatch("[0-9a-f]{64}", told):
            self.sha256 = told
        return super().redirect_request(request, file, code, reason, headers, url)


def refuse_offline(address: str) -> None:
    """Raise `UnavailableError` under --offline."""
    if os.environ.get(OFFLINE):
        raise UnavailableError(f"not here, and offline ({shown(address)})", remedy="the same once without --offline")


class Fetched(NamedTuple):
    """What came."""

    tag: str  # of this version of the file, where the server gives one
    size: int
    sha256: str
    mtime_ns: int


class UnchangedError(Exception):
    """The file is still the one that a tag is of."""


def join(url: str, name: str) -> str:
    """The address of a file in the folder at an address; of a pipe the command with the name in place of `{}`."""
    if url.startswith("pipe:"):
        return url.replace("{}", shlex.quote(name))
    base, mark, query = url.partition("?")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


def shown(url: str) -> str:
    """An address as messages name it: without what may be a key to it."""
    return url if url.startswith("pipe:") else re.sub(r"//[^/@?]*@", "//", url.partition("?")[0])


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str = "",
    size: int | None = None,
    unless: str = "",
    room: Callable[[int], None] = lambda size: None,
    keep: bool = False,
) -> Fetched:
    """Write the bytes at an address to `path`, whole or not at all; its folder is made.

    Args:
        sha256: Of the bytes, if that is known; so is `size`.
        unless: The tag of a file that is there already.
        room: Called with the number of bytes that come, where the server says it.
        keep: What a call gets that ends early, or is killed, is where the next one goes on. That needs one name for all
            of them: only who holds a lock of `path` may say so.

    Raises `UnchangedError`: the file has the tag `unless`; `InputMissingError`: there is no such file;
    `UnavailableError`: access is refused, a program or package is missing, it still failed at the last try, or this
    process is offline; `DataError`: the bytes are not those of `sha256` or `size`.
    """
    refuse_offline(url)
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.part") if keep else temporary_for(path)
    with atomic_path(path) as temporary, _open_part(part, keep) as file:
        transfer = _Transfer(url, file, unless, room, part)
        pauses, most, again = iter(_PAUSES), 0, True
        while True:
            try:
                transfer.read()
                fetched = _measure(file, transfer.tag)
                if (wrong := _wrong(fetched, sha256 or transfer.sha256, size)) == "":
                    part.replace(temporary)
                    _tag_of(part).unlink(missing_ok=True)
                    return fetched
                if not again:
                    file.truncate(0)
                    raise DataError(f"other bytes than expected ({shown(url)}): {wrong}", remedy="another copy of it")
                again, transfer.tag = False, ""
                file.truncate(0)
                continue
            except _PassingError as error:
                reached = file.seek(0, os.SEEK_END)
                if reached >= most + _PROGRESS:
                    pauses, most = iter(_PAUSES), reached
                pause = next(pauses, None)
                if pause is None:
                    raise UnavailableError(
                        f"cannot fetch ({shown(url)}): {error}", remedy="the same command again later, or a local copy"
                    ) from error
                pause = min(max(pause * random.uniform(0.75, 1.25), error.pause), _LONGEST_PAUSE_S)
                _log.info("%s: %s; again in %.0f s", shown(url), error, pause)
            time.sleep(pause)


def _tag_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


@contextlib.contextmanager
def _open_part(part: Path, keep: bool) -> Iterator[BufferedRandom]:
    """The file of what has come, to append to; it stays where it may and is worth it."""
    try:
        with part.open("a+b") as file:
            yield file
    finally:
        with contextlib.suppress(OSError):
            if not keep or part.stat().st_size < _KEPT_BYTES or not _tag_of(part).exists():
                part.unlink(missing_ok=True)
                _tag_of(part).unlink(missing_ok=True)


def _measure(file: BufferedRandom, tag: str) -> Fetched:
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Fetched(tag, file.tell(), digest, os.fstat(file.fileno()).st_mtime_ns)


def _wrong(fetched: Fetched, sha256: str, size: int | None) -> str:
    if size is not None and fetched.size != size:
        return f"{fetched.size} bytes, not {size}"
    return "" if sha256 in ("", fetched.sha256) else f"SHA-256 {fetched.sha256[:12]}..., not {sha256[:12]}..."


class _Transfer:
    """The bytes at an address, from wherever a try before has come to."""

    def __init__(self, url: str, file: BufferedRandom, unless: str, room: Callable[[int], None], part: Path) -> None:
        self.url, self.file, self.unless, self.room, self.part = url, file, unless, room, part
        self.shown, self.tag, self.sha256 = shown(url), "", ""
        with contextlib.suppress(OSError):
            self.tag = _tag_of(part).read_text()

    def read(self) -> None:
        """Append what is missing. Raises `_PassingError`, or what `fetch` raises."""
        if self.url.startswith(("http", "hf:")):
            self._read_http()
        else:
            self._read_stream()

    def _read_http(self) -> None:
        have = self.file.seek(0, os.SEEK_END)
        if have and not self.tag:  # who knows whether it is still the same file
            have = self._restart()
        request = _request(self.url)
        if have:
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", self.tag)
        elif self.unless:
            name = "If-None-Match" if self.unless.startswith(('"', "W/")) else "If-Modified-Since"
            request.add_header(name, self.unless)
        with contextlib.ExitStack() as stack:
            opener = _Opener()
            with self._network():
                # An opener of its own reads the proxy settings of this moment.
                response: HTTPResponse = stack.enter_context(
                    urllib.request.build_opener(opener).open(request, timeout=_TIMEOUT_S)
                )
            self.sha256 = opener.sha256
            length = response.headers.get("Content-Length") or ""
            total = int(length) if length.isdecimal() else -1
            if response.status == 206:
                if not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
                    self._restart()
                    raise _PassingError("the server sent another part than was asked for")
                total += have if total >= 0 else 0
            elif have:
                have = self._restart()
            etag = response.headers.get("ETag") or ""
            # A weak tag does not promise the same bytes: parts of such files are not put together.
            self.tag = (etag if not etag.startswith("W/") else "") or response.headers.get("Last-Modified") or ""
            write_bytes(_tag_of(self.part), self.tag.encode())
            self.room(max(total, 0))
            self._copy(response)
        came = self.file.seek(0, os.SEEK_END)
        if 0 <= total != came:
            if came > total:  # somebody else wrote here
                self._restart()
            raise _PassingError(f"it ended after {came} of {total} bytes")

    def _copy(self, response: HTTPResponse) -> None:
        start, mark = time.monotonic(), self.file.tell()
        while True:
            with self._network():
                chunk = response.read1(_CHUNK)
            if not chunk:
                return
            self.file.write(chunk)
            if time.monotonic() > start + _WINDOW_S:
                if self.file.tell() < mark + _LEAST_BYTES:
                    raise _PassingError(f"{self.file.tell() - mark} bytes in {_WINDOW_S:.0f} s")
                start, mark = time.monotonic(), self.file.tell()

    def _restart(self) -> int:
        self.file.seek(0)
        self.file.truncate()
        return 0

    @contextlib.contextmanager
    def _network(self) -> Iterator[None]:
        """Errors of the network alone by what helps against them."""
        try:
            yield
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from error
        except urllib.error.URLError as error:
            raise _PassingError(error.reason) from error
        except TimeoutError as error:
            raise _PassingError(f"no answer for {_TIMEOUT_S:.0f} s") from error
        except (InvalidURL, ValueError) as error:
            raise InputMissingError(f"no such address ({self.shown}): {error}", remedy="check the address") from error
        except (OSError, HTTPException) as error:
            raise _PassingError(error) from error

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        code, said = error.code, f"{error.code} {error.reason}"
        if code == UNCHANGED:
            return UnchangedError()
        if code in (404, 410):
            return InputMissingError(f"no such file ({self.shown}): {said}", remedy="check the address")
        if code in (401, 403):
            token = "; HF_TOKEN" if self.url.startswith("hf:") else ""
            return UnavailableError(f"access is refused ({self.shown}): {said}", remedy=f"a signed address{token}")
        if code == 416:  # there is no more of it: it is another file
            self._restart()
        elif code not in _PASSING:
            return UnavailableError(f"cannot fetch ({self.shown}): {said}", remedy="check the address")
        after = error.headers.get("Retry-After") or ""
        return _PassingError(said, float(after) if after.isdecimal() else 0.0)

    def _read_stream(self) -> None:
        try:
            gopen = importlib.import_module("webdataset.gopen").gopen
        except ImportError as error:
            raise UnavailableError(
                f"needs a package that is not installed ({self.shown})", remedy="pip install 'vq3d[remote]'"
            ) from error
        self._restart()
        url = self.url
        if url.startswith("s3:"):
            url = f"pipe:aws s3 cp --only-show-errors {shlex.quote(url)} -"
        if url.startswith("pipe:") and shutil.which("bash"):  # plain shells forget that the first of several failed
            url = f"pipe:bash -o pipefail -c {shlex.quote(url[5:])}"
        code = 127
        with contextlib.suppress(FileNotFoundError):
            stream = gopen(url, "rb")
            stream.ignore_errors = True  # it takes some codes for success
            while chunk := stream.read(_CHUNK):
                self.file.write(chunk)
            stream.close()
            code = stream.proc.wait()
        if code == 127:
            raise UnavailableError(f"a program is not installed ({self.shown})", remedy="install it")
        if code or not self.file.tell():
            raise _PassingError(f"the program ended with {code}" if code else "nothing came")


def _request(url: str) -> urllib.request.Request:
    headers = {"User-Agent": "vq3d", "Accept-Encoding": "identity"}
    if not url.startswith("hf:"):
        return urllib.request.Request(url, headers=headers)
    match = _HF.fullmatch(url)
    if match is None:
        raise InputMissingError(
            f"no address of the Hub ({url})", remedy="hf://datasets/OWNER/NAME@REVISION/PATH, or hf://OWNER/NAME/PATH"
        )
    kind, name, revision, path = match.groups()
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    request = urllib.request.Request(
        f"{endpoint}/{kind or ''}{name}/resolve/{revision or 'main'}/{path}", headers=headers
    )
    if token := os.environ.get("HF_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # not for the hosts that it leads to
    return request
