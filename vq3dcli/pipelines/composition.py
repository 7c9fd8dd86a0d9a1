"""The composition file: what is in a scene and where, as TOML; all that `vq3d compose` needs to make it again.

Places are fractions of the scene's first view: (0, 0) is its top left corner, (1, 1) its bottom right one.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vq3dcli.data.images import read_file
from vq3dcli.errors import DataError, OutputError, UsageError
from vq3dcli.export.video import check_output
from vq3dcli.files import write_bytes
from vq3dcli.meshscenes.ray_mesh import is_mesh
from vq3dcli.pipelines.inputs import parse_sources
from vq3dcli.sealed import Seal, check_seal, parse_toml, plain_reason, sealed_bytes

FORMAT_VERSION = 1
SUFFIX = ".toml"
_MAX_BYTES = 1 << 20
_MARK = b"# Written by vq3d compose, which replaces it unless it is edited.\n"
# Only in files that we wrote: who edits one deletes the line.
_SEAL = Seal(0, _MARK + b"# To delete after an edit by hand: sha256 ")

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
# A foot may stand a little outside the picture.
Place = tuple[Annotated[float, Field(ge=-1.0, le=2.0)], Annotated[float, Field(ge=-1.0, le=2.0)]]
Distance = Annotated[float, Field(gt=0.0, le=1000.0)]
Degrees = Annotated[float, Field(ge=-3600.0, le=3600.0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Cut(_Strict):
    """Where on a first view an object is."""

    box: tuple[Fraction, Fraction, Fraction, Fraction] | None = None  # left, top, right, bottom; None is the whole view
    # nearest and farthest z_depth of the object; None finds it by what stands out of its surroundings
    z_range: tuple[Distance, Distance] | None = None

    @model_validator(mode="after")
    def _has_extent(self) -> Cut:
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise ValueError("a box is left, top, right, bottom, with left < right and top < bottom")
        if self.z_range is not None and not self.z_range[0] < self.z_range[1]:
            raise ValueError("z_range is nearest, farthest")
        return self


class Stand(Cut):
    """Where something stands."""

    # the place of its foot, or several, which it visits in turn during the video; none keeps its own place (a mesh:
    # below the middle)
    at: list[Place] = Field(default=[], max_length=1000)
    # distance of its foot from the first camera; None stands on what the scene shows there
    z_depth: Distance | None = None
    # its size against its own, or, from a photo into a photo, against that which suits it; of meshes, the longest
    # side in metres
    scale: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    rotate_deg: Degrees | tuple[Degrees, Degrees, Degrees] = 0.0  # turn about the vertical axis; or yaw, pitch, roll
    spin_deg: Degrees = 0.0  # further turn about the vertical axis during the video
    shadow: Fraction = 0.35  # how dark its shadow on the scene is, 0 to 1


class Insert(Stand):
    """Something that comes from elsewhere."""

    object: str = Field(min_length=1)  # a photo, sample, saved scene or toy scene to cut it out of, or a mesh
    up: Literal["y", "z"] = "y"  # the axis of a mesh that points up


class Composition(_Strict):
    """A scene and what is done to it."""

    format_version: Literal[1] = 1
    scene: str = Field(min_length=1)  # a photo, sample, saved scene or toy scene
    weights_sha256: str | None = None  # the weights it was made with, for a warning if others are used
    delete: list[Cut] = Field(default=[], max_length=1000)
    move: list[Stand] = Field(default=[], max_length=1000)
    insert: list[Insert] = Field(default=[], max_length=1000)

    def with_more(self, other: Composition) -> Composition:
        """This composition, and then what `other` does."""
        more: dict[str, list[Any]] = {"delete": other.delete, "move": other.move, "insert": other.insert}
        return self.model_copy(update={key: [*getattr(self, key), *items] for key, items in more.items()})


def read_composition(path: Path | str) -> Composition:
    """Read a composition file; names of files in it are relative to its folder.

    Raises:
        InputMissingError: There is no such file.
        DataError: It is not TOML, or says what no composition says; its first ten problems in one line.
    """
    path = Path(path)
    data = read_file(path)
    if len(data) > _MAX_BYTES:
        raise DataError(f"not a composition ({path}): {len(data)} bytes", remedy="docs/editing.md has an example")
    if data.startswith(_SEAL.mark):
        remedy = "delete its second line if the edit is yours, or another copy"
        check_seal(io.BytesIO(data), _SEAL, name=f"composition ({path})", remedy=remedy)
    try:
        read = Composition.model_validate(parse_toml(data.decode("utf-8-sig")))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {plain_reason(e)}" for e in error.errors()[:10])
        raise DataError(f"not a composition ({path}): {problems}", remedy="docs/editing.md lists the keys") from error
    except ValueError as error:  # not UTF-8, not TOML
        raise DataError(f"not a TOML file ({path}): {error}", remedy="docs/editing.md has an example") from error
    return _renamed(read, lambda name: os.path.join(path.parent, os.path.expanduser(name)))


def check_place(path: Path) -> None:
    """Raise `OutputError` if a composition file of that name cannot be written, or would replace one of the user's."""
    check_output(path, "png")
    if path.exists():
        try:
            check_seal(io.BytesIO(read_file(path)), _SEAL, name=str(path), remedy="")
        except DataError as error:
            raise OutputError(
                f"a composition that is not as vq3d wrote it would be replaced ({path})", remedy="another name with -o"
            ) from error


def write_composition(path: Path, composition: Composition) -> None:
    """Write a composition file, atomically; names of files become relative to its folder."""
    # Folders without symbolic links: ".." of a linked one is not where its name stands.
    folder = path.parent.resolve()
    relative = _renamed(
        composition, lambda name: os.path.relpath(Path(name).parent.resolve() / Path(name).name, folder)
    )
    values = relative.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    try:
        data = tomli_w.dumps({"format_version": FORMAT_VERSION, **values}).encode()
    except UnicodeEncodeError as error:
        raise OutputError("a composition file holds only names that are text", remedy="rename the input") from error
    write_bytes(path, sealed_bytes(_SEAL, b"\n" + data))


def composition_from_options(
    scene: str, inserts: list[dict[str, Any]], moves: list[dict[str, Any]], deletes: list[dict[str, Any]]
) -> Composition:
    """A composition from what the command line says. Raises `UsageError` for a value out of range."""
    try:
        return Composition.model_validate({"scene": scene, "insert": inserts, "move": moves, "delete": deletes})
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "string_unicode":
            raise UsageError(
                f"a composition holds only names that are text ({first['input']})", remedy="rename the input"
            ) from error
        place = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
        raise UsageError(
            f"{place}: {plain_reason(first)} (got {first['input']})", remedy="vq3d compose --help"
        ) from error


def with_shadows(composition: Composition, strength: float) -> Composition:
    """The composition with all shadows that dark. Raises `UsageError` unless `strength` is in [0, 1]."""
    if not 0.0 <= strength <= 1.0:
        raise UsageError(f"--shadow is {strength:g}, must be 0 to 1")
    update = {"shadow": strength}
    moves = [item.model_copy(update=update) for item in composition.move]
    inserts = [item.model_copy(update=update) for item in composition.insert]
    return composition.model_copy(update={"move": moves, "insert": inserts})


def _renamed(composition: Composition, rename: Any) -> Composition:
    """The composition with other names for its files."""

    def name(text: str) -> str:
        if is_mesh(text):
            return str(rename(text))
        source = parse_sources([text])[0]
        if source.path is None:
            return text
        return str(rename(str(source.path))) + ("" if source.sample is None else f"#{source.sample}")

    inserts = [item.model_copy(update={"object": name(item.object)}) for item in composition.insert]
    return composition.model_copy(update={"scene": name(composition.scene), "insert": inserts})
