"""VQ3D: one photo to a NeRF in one forward pass, and the training of such models; `import vq3d` is the library."""

from __future__ import annotations

import sys

__version__ = "0.1.0"

if sys.platform == "win32":
    _error = ImportError("vq3d needs Linux or macOS, for file locks and signals; on Windows: WSL")
    _hook = sys.excepthook
    # A traceback would hide the one line that helps.
    sys.excepthook = lambda kind, error, trace: (
        print(f"error: {error}", file=sys.stderr) if error is _error else _hook(kind, error, trace)
    )
    raise _error
