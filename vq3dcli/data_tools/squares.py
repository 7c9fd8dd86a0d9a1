"""Images of a source as JPEG squares with their class and where they came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vq3dcli.data.images import centre_square, decode_square, encode_jpeg
from vq3dcli.data.shard_format import sample_key
from vq3dcli.data_tools.shard_writer import Reject, Sample, compact_json
from vq3dcli.data_tools.sources.entry import Box, Entry
from vq3dcli.data_tools.sources.reader import Reader
from vq3dcli.errors import DataError, InputMissingError, StoppedError


@dataclass(frozen=True)
class SquareMaker:
    """Makes the samples of some positions; it is sent to worker processes.

    Attributes:
        first: Position of the first of `entries`.
        entries: Entries of consecutive positions.
        side: Of the stored images in pixels.
        apply_orientation: Rotate by EXIF orientation.
        box_margin: Width that is added on each side of a box, as a fraction of its longer side.
    """

    first: int
    entries: list[Entry]
    side: int
    apply_orientation: bool
    box_margin: float = 0.0

    def part(self, positions: range) -> SquareMaker:
        """The same for some of the positions."""
        entries = self.entries[positions.start - self.first : positions.stop - self.first]
        return SquareMaker(positions.start, entries, self.side, self.apply_orientation, self.box_margin)

    def __call__(self, positions: range) -> Iterator[Sample | Reject]:
        """Samples and rejects of the positions in a range, in order."""
        with Reader() as reader:
            for position in positions:
                yield self._make(reader, position, self.entries[position - self.first])

    def _make(self, reader: Reader, position: int, entry: Entry) -> Sample | Reject:
        if entry.reject:
            return Reject(entry.path, entry.reject, entry.kind)
        try:
            square = decode_square(
                reader.read(entry.place),
                self.side,
                name=entry.path,
                apply_orientation=self.apply_orientation,
                window=lambda height_px, width_px: square_around(height_px, width_px, entry.box, self.box_margin),
            )
        except (DataError, InputMissingError) as error:  # a disk that fails is no reason to reject: it ends the run
            reason = error.message.replace(f" ({entry.path})", "").replace(f" ({entry.place.file})", "")
            return Reject(entry.path, reason)
        except MemoryError as error:  # says nothing about the image
            raise StoppedError(
                f"not enough memory for an image ({entry.path})",
                remedy="the same command with fewer --workers, or on a larger machine; finished shards are kept",
            ) from error
        top, left, side = square.window
        info = {
            "source": entry.path,
            "crop": {"top": top, "left": left, "side": side},
            "original_size": {"height": square.height_px, "width": square.width_px},
            **(entry.info or {}),
        }
        members = {"jpg": encode_jpeg(square.image)}
        if entry.class_index is not None:
            members["cls"] = str(entry.class_index).encode()
        members["json"] = compact_json(info)
        return Sample(sample_key(position), entry.class_index, members)


def square_around(height_px: int, width_px: int, box: Box | None, margin: float) -> tuple[int, int, int]:
    """The square around a box with a margin, (top, left, side) in pixels; without a box the centre square.

    Nothing outside of the image is ever asked for: the square is moved inwards, and is at most as large as the
    shorter side of the image. A long box is then cut at both ends.

    Args:
        margin: Added on each side of the box, as a fraction of its longer side.
    """
    if box is None:
        return centre_square(height_px, width_px)
    longer = max(box.right - box.left, box.bottom - box.top)
    side = max(1, min(round(longer * (1 + 2 * margin)), height_px, width_px))
    top = min(max((box.top + box.bottom - side) // 2, 0), height_px - side)
    left = min(max((box.left + box.right - side) // 2, 0), width_px - side)
    return top, left, side
