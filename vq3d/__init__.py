"""One photo to a 3D scene in one forward pass: the library. What the commands do, in a few names.

```python
import vq3d

model = vq3d.load()  # or a weights file, a run's folder, a checkpoint
scene = model.reconstruct("photo.jpg")
scene.save_video("orbit.mp4", camera="orbit", frames=60, disparity=True)
```

All errors that a caller can cause or mend are a `Vq3dError`: its text says what failed and what to try. Names are
imported when they are first used, so that `import vq3d` costs nothing. What lies beneath is `vq3dcli`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vq3dcli import __version__ as __version__

if TYPE_CHECKING:
    from vq3d.edits import Way, compose, interpolate
    from vq3d.model import Model, load
    from vq3d.model import open_scene as open
    from vq3d.scene import Scene, View
    from vq3dcli.errors import Vq3dError

__all__ = ["Model", "Scene", "View", "Vq3dError", "Way", "compose", "interpolate", "load", "open"]

# Module and name there.
_SOURCES = {
    "Model": ("vq3d.model", "Model"),
    "Scene": ("vq3d.scene", "Scene"),
    "View": ("vq3d.scene", "View"),
    "Vq3dError": ("vq3dcli.errors", "Vq3dError"),
    "Way": ("vq3d.edits", "Way"),
    "compose": ("vq3d.edits", "compose"),
    "interpolate": ("vq3d.edits", "interpolate"),
    "load": ("vq3d.model", "load"),
    "open": ("vq3d.model", "open_scene"),
}

if not TYPE_CHECKING:  # a type checker shall know a misspelt name

    def __getattr__(name: str) -> Any:
        """Import a public name at its first use (PEP 562)."""
        if name not in _SOURCES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, source = _SOURCES[name]
        globals()[name] = value = getattr(import_module(module), source)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
