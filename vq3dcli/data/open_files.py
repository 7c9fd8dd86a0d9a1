"""Files that stay open for positional reads by any thread, as many as the system lets a process have."""

from __future__ import annotations

import functools
import os
import resource
import threading
from collections import OrderedDict
from pathlib import Path

_MOST_OPEN = 1 << 16


class OpenFile:
    """An open file that is closed with the last reference to it: threads read from it while others forget it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size

    def read(self, start: int, size: int) -> bytes:
        """Bytes from a place on, fewer at the end of the file, whatever size is asked for."""
        return os.pread(self._descriptor, max(0, min(size, self._size - start)), start)

    def __del__(self) -> None:
        os.close(self._descriptor)


@functools.cache
def _most_open() -> int:
    """How many shards this process may hold open: three quarters of the files that the system lets it have."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, (_MOST_OPEN if most == resource.RLIM_INFINITY else min(most, _MOST_OPEN)) * 3 // 4)


class OpenFiles:
    """The shards that all folders of this process hold open: the longest unused one goes for the next."""

    def __init__(self, most: int | None = None) -> None:
        self._files: OrderedDict[tuple[int, Path], OpenFile] = OrderedDict()
        self._lock = threading.Lock()
        self._most = most

    def get(self, folder: int, path: Path) -> OpenFile:
        """A file as the folder object of that number opened it: since then it may have been replaced."""
        with self._lock:
            file = self._files.get((folder, path))
            if file is not None:
                self._files.move_to_end((folder, path))
                return file
        file = OpenFile(os.open(path, os.O_RDONLY))
        with self._lock:
            while len(self._files) >= (self._most or _most_open()):
                self._files.popitem(last=False)
            return self._files.setdefault((folder, path), file)

    def forget(self, folder: int) -> None:
        """Close the files of a folder object, once nobody reads them."""
        with self._lock:
            for key in [key for key in self._files if key[0] == folder]:
                del self._files[key]
