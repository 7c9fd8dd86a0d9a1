"""What lies on disk: the shard index, the manifest and the names in a shard folder.

A shard folder holds
    plan.json                 what was asked for, written first; the same command run again must ask for the same
    shard-000000.tar          samples of source positions 0 .. shard_size - 1, members `{key:08d}.{extension}`
    shard-000000.index.json   where each member lies, its SHA-256, and the rejects among these source positions
    index.columns             of large folders the same for the loader, see `shard_index`; made anew where it is missing
    rejects.jsonl             one line a rejected file, written at the end
    SHA256SUMS                hashes of all these files, the manifest's too, as `sha256sum --check` reads them
    manifest.json             what came out, written last: a folder without it is unfinished
    disparity/NAME/           label shards with the same names and keys, a shard folder of kind "disparity"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vq3dcli.config.defaults import MAX_VIEWS
from vq3dcli.errors import DataError
from vq3dcli.files import read_bytes
from vq3dcli.sealed import first_problem, parse_json

FORMAT_VERSION = 1
PLAN_NAME = "plan.json"
MANIFEST_NAME = "manifest.json"
REJECTS_NAME = "rejects.jsonl"
SUMS_NAME = "SHA256SUMS"
COLUMNS_NAME = "index.columns"

DISPARITY_FOLDER = "disparity"
DISPARITY_EXTENSION = "disparity.npy"
DISPARITY_INFO_EXTENSION = "disparity.json"
DISPARITY_LEVELS = 65535
IMAGE_EXTENSIONS = ("png", "jpg")
INFO_EXTENSION = "json"

LabelKind = Literal["metric", "relative"]


class StrictRecord(BaseModel):
    """JSON of ours: no unknown keys, no numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Member(StrictRecord):
    """One file inside a shard."""

    offset: int = Field(ge=0, le=2**62)
    size: int = Field(ge=0, le=2**62)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class SampleEntry(StrictRecord):
    """One sample of a shard; `members` are keyed by extension, for example `png` or `disparity.npy`."""

    key: str
    class_index: int | None = Field(ge=0, le=2**31 - 1)
    members: dict[str, Member]


class RejectEntry(StrictRecord):
    """A source file that is not in the shards."""

    path: str
    reason: str
    # `duplicate`: a good file, but its bytes are in the shards already; `--max-bad` does not count it
    kind: Literal["bad", "duplicate"] = "bad"


class ShardIndex(StrictRecord):
    """`shard-000000.index.json`."""

    format_version: int
    name: str
    size: int
    sha256: str
    plan_sha256: str
    samples: list[SampleEntry]
    rejects: list[RejectEntry]


class ShardEntry(StrictRecord):
    """One shard as the manifest lists it."""

    name: str
    samples: int = Field(ge=0)
    size: int = Field(ge=0)
    sha256: str
    index_sha256: str


class Manifest(StrictRecord):
    """`manifest.json`."""

    format_version: int
    kind: Literal["images", "disparity"]  # `images`, or `disparity` for label shards
    preset: str  # how the shards were made: `toyscenes`, `folder`, or the name of a depth model
    # side in pixels that training reads; what is stored is `margin` times larger
    image_size: int = Field(ge=1, le=65536)
    margin: float = Field(ge=1, le=16)  # room for random crops, 1 for none
    own_disparity: bool  # whether the samples carry a disparity of their own
    views: int = Field(0, ge=0, le=MAX_VIEWS)  # exact pictures from other cameras beside each sample, see `data.views`
    num_samples: int = Field(ge=0)  # samples in all shards
    num_rejects: int = Field(ge=0)  # lines in `rejects.jsonl`
    class_names: list[str]  # by class index, each once: WordNet ids for ImageNet
    class_titles: list[str] = []  # what to call the classes, by class index; empty where their names say it
    options: dict[str, Any]  # the plan: everything that the bytes depend on
    shards: list[ShardEntry]

    @property
    def stored_size(self) -> int:
        """Side of the stored images in pixels."""
        return stored_size(self.image_size, self.margin)


class DisparityInfo(StrictRecord):
    """`{key}.disparity.json`: the disparity is `lo + (hi - lo) * u16 / 65535`."""

    kind: LabelKind  # `metric`: normalised disparity s itself; `relative`: known up to scale and shift
    lo: float = Field(ge=-1.7e38, le=1.7e38)  # their difference is a float32
    hi: float = Field(ge=-1.7e38, le=1.7e38)
    # what is wrong with the label, for example `constant`; empty if nothing is. Flagged labels are passed over in
    # training
    flags: list[str] = Field(max_length=16)
    sha256: str  # of the image member that it was made for

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lo > self.hi:
            raise ValueError("lo is above hi")
        return self


class ViewInfo(StrictRecord):
    """One of the `views` in `{key}.json`: where the camera of a view is, a rigid transform `[4][4]`."""

    cam_to_world: list[list[float]]

    @model_validator(mode="after")
    def _rigid(self) -> Self:
        rows = self.cam_to_world
        if [len(row) for row in rows] != [4] * 4 or rows[3] != [0.0, 0.0, 0.0, 1.0]:
            raise ValueError("not 4 x 4 numbers with 0 0 0 1 below")
        for i in range(3):
            for j in range(3):
                if abs(sum(rows[i][k] * rows[j][k] for k in range(3)) - (i == j)) > 1e-3:
                    raise ValueError("not a rotation")
        return self


def view_extensions(number: int) -> tuple[str, str]:
    """Extensions of view `number` of a sample: of its picture and of its disparity."""
    return f"view{number}.png", f"view{number}.{DISPARITY_EXTENSION}"


def shard_name(number: int) -> str:
    """`shard-000000` for number 0, without a suffix."""
    return f"shard-{number:06d}"


def sample_key(position: int) -> str:
    """Key of the sample at a source position: eight digits, no dot, since webdataset splits names at the first dot."""
    return f"{position:08d}"


def stored_size(image_size: int, margin: float) -> int:
    """Side in pixels of what is stored for training images of side `image_size`."""
    return round(image_size * margin)


Record = TypeVar("Record", bound=BaseModel)


def read_record(path: Path, schema: type[Record], remedy: str) -> Record:
    """Read one JSON file of ours. Raises `DataError`: it is damaged, or of another version; else as `read_bytes`."""
    return parse_record(read_bytes(path, remedy), schema, name=str(path), remedy=remedy)


def parse_record(text: bytes, schema: type[Record], *, name: str, remedy: str) -> Record:
    """Parse JSON of ours; see `read_record`."""
    return validated(parse_json(text, name=f"file ({name})", remedy=remedy), schema, name=name, remedy=remedy)


def validated(value: dict[str, Any], schema: type[Record], *, name: str, remedy: str) -> Record:
    """The record that parsed JSON of ours is; see `read_record`."""
    version = value.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise DataError(
            f"unknown format version {version!r:.40} ({name})",
            remedy="the version of vq3d that wrote it, or a newer one",
        )
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise DataError(f"damaged file ({name}): {first_problem(error)}", remedy=remedy) from error
