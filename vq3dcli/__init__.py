"""VQ3D: one photo to a NeRF in one forward pass, and the training of such models.

The public API, imported when a name is first used, so that `import vq3dcli` costs nothing:

```python
import vq3dcli

weights = vq3dcli.load()  # or vq3dcli.load("run/")
image = vq3dcli.to_square(vq3dcli.read_image("photo.jpg"), weights.recipe.model.image_size, fit="crop")
scene = vq3dcli.reconstruct_scene(weights.model, image[None])
view = scene.render(vq3dcli.trajectory("orbit", 60, height_px=128, width_px=128))  # view.rgb, view.s
vq3dcli.save_scene("a.vq3d.safetensors", scene, weights=weights, provenance={}, photo=image)
scene = vq3dcli.load_scene("a.vq3d.safetensors").scene  # without the weights

prior = vq3dcli.load_prior()  # of the same weights
codes = vq3dcli.sample_tokens(prior.model, torch.tensor([3, 3]), seed=0)  # two new scenes of class 3
scenes = vq3dcli.scene_from_codes(weights.model, codes)
```
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if sys.platform == "win32":
    raise ImportError("vq3d needs Linux or macOS, for file locks and signals; on Windows: WSL")

if TYPE_CHECKING:
    from vq3dcli.data.images import read_image, to_square
    from vq3dcli.errors import Vq3dError
    from vq3dcli.model.draw_codes import Sharpening, sample_tokens
    from vq3dcli.model.scene import Scene, reconstruct_scene, scene_from_codes
    from vq3dcli.pipelines.composition import read_composition
    from vq3dcli.pipelines.inputs import open_scene, parse_sources
    from vq3dcli.pipelines.stage import build_stage
    from vq3dcli.rendering.cameras import Camera, canonical_camera, pivot_camera
    from vq3dcli.rendering.scene import SceneView
    from vq3dcli.rendering.trajectories import trajectory
    from vq3dcli.scene_file import load_scene, save_scene
    from vq3dcli.weights_file import LoadedPrior, LoadedWeights, load_prior
    from vq3dcli.weights_file import load_weights as load

__all__ = [
    "Camera",
    "LoadedPrior",
    "LoadedWeights",
    "Scene",
    "SceneView",
    "Sharpening",
    "Vq3dError",
    "build_stage",
    "canonical_camera",
    "load",
    "load_prior",
    "load_scene",
    "open_scene",
    "parse_sources",
    "pivot_camera",
    "read_composition",
    "read_image",
    "reconstruct_scene",
    "sample_tokens",
    "save_scene",
    "scene_from_codes",
    "to_square",
    "trajectory",
]

# Module to its public names; NAME:ALIAS where it is called otherwise here.
_NAMES = {
    "data.images": "read_image to_square",
    "errors": "Vq3dError",
    "model.draw_codes": "Sharpening sample_tokens",
    "model.scene": "Scene reconstruct_scene scene_from_codes",
    "pipelines.stage": "build_stage",
    "pipelines.composition": "read_composition",
    "pipelines.inputs": "open_scene parse_sources",
    "rendering.cameras": "Camera canonical_camera pivot_camera",
    "rendering.scene": "SceneView",
    "rendering.trajectories": "trajectory",
    "scene_file": "load_scene save_scene",
    "weights_file": "LoadedPrior LoadedWeights load_prior load_weights:load",
}
_SOURCES = {
    name.rpartition(":")[2]: (module, name.partition(":")[0])
    for module, names in _NAMES.items()
    for name in names.split()
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
