"""From one scene to the next: photos, samples and saved scenes as stops, and frames between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vq3dcli.errors import UsageError
from vq3dcli.files import cut_name
from vq3dcli.model.blend import mix_codes, mix_planes
from vq3dcli.model.scene import Scene
from vq3dcli.pipelines.inputs import OpenedScene
from vq3dcli.scene_file import check_codes
from vq3dcli.weights_file import LoadedWeights

Mix = Literal["codes", "planes"]
_MOST_BYTES = 80


@dataclass(frozen=True)
class Journey:
    """Scenes and how to go from one to the next.

    Attributes:
        stops: At least two single scenes of one model.
        weights: That model; only needed for `codes`.
        mix: In the space of codes, or of planes.
        requantize: See `model.mixing.mix_codes`.
        loop: Go back to the first stop, so that the video repeats without a jump.
    """

    stops: tuple[Scene, ...]
    weights: LoadedWeights | None
    mix: Mix = "codes"
    requantize: bool = False
    loop: bool = False

    def scene_at(self, frame: int, frames: int) -> Scene:
        """The scene of a frame."""
        index, fraction = leg(frame, frames, len(self.stops), loop=self.loop)
        first, second = self.stops[index], self.stops[(index + 1) % len(self.stops)]
        if self.mix == "planes":
            return mix_planes(first, second, fraction)
        assert self.weights is not None
        return mix_codes(self.weights.model, first.codes, second.codes, fraction, requantize=self.requantize)


def leg(frame: int, frames: int, stops: int, *, loop: bool) -> tuple[int, float]:
    """Between which stops a frame lies: the index of the first of them, and how far it is to the next, in [0, 1].

    The first frame shows the first stop, and the last frame the last one; in a loop the frame after the last one
    would show the first stop again.
    """
    legs = stops if loop else stops - 1
    steps = frames if loop else max(1, frames - 1)
    # In whole numbers: a frame that falls on a stop falls on it exactly.
    index, rest = divmod(frame * legs, steps)
    return (index, rest / steps) if index < legs else (legs - 1, 1.0)


def plan_journey(
    opened: Sequence[OpenedScene], weights: LoadedWeights | None, *, mix: Mix, requantize: bool, loop: bool
) -> Journey:
    """Check that there is a way between the scenes.

    Raises:
        UsageError: Fewer than two scenes, scenes of different models, or codes wanted of a scene that has none.
        DataError: A scene has codes that its weights do not know.
    """
    if len(opened) < 2:
        raise UsageError("one input leads nowhere", remedy="vq3d interpolate A B")
    if requantize and mix == "planes":
        raise UsageError("--requantize is for codes, not for planes", remedy="--mix codes")
    made_by = {str(item.provenance.get("weights_sha256")) for item in opened}
    if len(made_by) > 1 or (mix == "codes" and weights is not None and made_by != {weights.sha256}):
        names = ", ".join(sorted(sha256[:12] for sha256 in made_by | ({weights.sha256} if weights else set())))
        raise UsageError(f"scenes of different weights have no way between them ({names})", remedy="--weights")
    if mix == "codes" and not all(item.scene.codes.numel() for item in opened):
        without = next(item.stem for item in opened if not item.scene.codes.numel())
        raise UsageError(f"a scene without codes ({without})", remedy="--mix planes")
    if mix == "codes" and weights is not None:
        for item in opened:
            check_codes(Path(item.stem), item.scene.codes, weights)
    return Journey(tuple(item.scene for item in opened), weights, mix, requantize, loop)


def joint_stem(stems: Sequence[str]) -> str:
    """A name for the output of several inputs."""
    return cut_name("_to_".join(stems), _MOST_BYTES)
