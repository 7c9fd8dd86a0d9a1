"""VQ3D: one photo to a NeRF in one forward pass, and the training of such models.

The public API, imported when a name is first used, so that `import vq3dcli` costs nothing:

```python
import vq3dcli

weights = vq3dcli.load()  # or vq3dcli.load(Path("run/"))
image = vq3dcli.to_square(vq3dcli.read_image(Path("photo.jpg")), weights.recipe.model.image_size, fit="crop")
scene = vq3dcli.reconstruct_scene(weights.model, image[None])
view = scene.render(vq3dcli.trajectory("orbit", 60, height_px=128, width_px=128))  # view.rgb, view.s
```
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vq3dcli.checkpoint import LoadedWeights
    from vq3dcli.checkpoint import load_weights as load
    from vq3dcli.data.images import read_image, to_square
    from vq3dcli.errors import Vq3dError
    from vq3dcli.model.scene import Scene, SceneView, reconstruct_scene
    from vq3dcli.rendering.cameras import Camera, canonical_camera, pivot_camera
    from vq3dcli.rendering.trajectories import trajectory

__all__ = [
    "Camera",
    "LoadedWeights",
    "Scene",
    "SceneView",
    "Vq3dError",
    "canonical_camera",
    "load",
    "pivot_camera",
    "read_image",
    "reconstruct_scene",
    "to_square",
    "trajectory",
]

# Public name to its module and its name there.
_SOURCES = {
    "Camera": ("rendering.cameras", "Camera"),
    "LoadedWeights": ("checkpoint", "LoadedWeights"),
    "Scene": ("model.scene", "Scene"),
    "SceneView": ("model.scene", "SceneView"),
    "Vq3dError": ("errors", "Vq3dError"),
    "canonical_camera": ("rendering.cameras", "canonical_camera"),
    "load": ("checkpoint", "load_weights"),
    "pivot_camera": ("rendering.cameras", "pivot_camera"),
    "read_image": ("data.images", "read_image"),
    "reconstruct_scene": ("model.scene", "reconstruct_scene"),
    "to_square": ("data.images", "to_square"),
    "trajectory": ("rendering.trajectories", "trajectory"),
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, source = _SOURCES[name]
    value = getattr(import_module(f"{__name__}.{module}"), source)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
