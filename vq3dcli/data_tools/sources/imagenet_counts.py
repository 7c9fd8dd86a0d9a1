"""How many images ImageNet has, and what is said where a copy has others.

The figures are those of ILSVRC 2012: https://image-net.org/challenges/LSVRC/2012/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vq3dcli.data_tools.sources.entry import Found

NUM_CLASSES = 1000
_SHOWN = 5


class Expected(NamedTuple):
    """A whole split: its images, and the fewest and most of a class."""

    images: int
    fewest: int
    most: int


EXPECTED = {"train": Expected(1_281_167, 732, 1300), "val": Expected(50_000, 50, 50)}
ARCHIVE_SIZES = {"ILSVRC2012_img_train.tar": 147_897_477_120, "ILSVRC2012_img_val.tar": 6_744_924_160}


def compare_counts(split: str, counts: Mapping[str, int], unusable: int) -> tuple[dict[str, Any], list[str], list[str]]:
    """What was found against what a whole split has.

    Args:
        split: `train`, `val`, or `any`: then only the classes are compared.
        counts: Images by class.
        unusable: Images among the files found that cannot be used: without a class, or no regular files.

    Returns:
        Figures for the report, notes and warnings. A subset of the classes is a note; all of the classes with other
        counts is a warning that names the classes.
    """
    found = sum(counts.values())
    expected = EXPECTED.get(split)
    facts: dict[str, Any] = {"found": found, "found_classes": len(counts)}
    if expected is not None:
        facts |= {"expected": expected.images, "expected_classes": NUM_CLASSES}
    what = f"{found} images of {len(counts)} classes"
    notes, warnings = [], []
    if unusable:
        warnings.append(f"{unusable} files cannot be used: they have no class, or are no regular files")
    own_numbers = f"classes are numbered among these {len(counts)}, not among the {NUM_CLASSES} of ImageNet"
    if expected is None:
        notes.append(f"found {what}; no folder or archive says which split they are")
        if len(counts) < NUM_CLASSES:
            warnings.append(f"{own_numbers}: other images count alike only if they have the same classes")
    elif (found, len(counts)) == (expected.images, NUM_CLASSES):
        notes.append(f"found {what}: the whole split {split}")
    elif len(counts) < NUM_CLASSES:
        notes.append(
            f"found {what} of the split {split}: a part, the whole has {expected.images} of {NUM_CLASSES} classes; "
            f"{own_numbers}"
        )
    else:
        warnings.append(
            f"found {what} of the split {split}, {abs(found - expected.images)} "
            f"{'less' if found < expected.images else 'more'} than the {expected.images} of {NUM_CLASSES} that it has"
        )
    if len(counts) >= NUM_CLASSES and expected is not None:
        odd = [f"{w} has {n}" for w, n in sorted(counts.items()) if not expected.fewest <= n <= expected.most]
        if odd:
            most = f"{expected.fewest} to {expected.most}" if expected.fewest < expected.most else f"{expected.most}"
            rest = f", and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
            warnings.append(f"classes with other than {most} images: {', '.join(odd[:_SHOWN])}{rest}")
    return facts, notes, warnings


def official_sizes(files: Sequence[Found]) -> list[str]:
    """Warnings about official archives of another size than they have."""
    warnings = []
    for file in files:
        size = ARCHIVE_SIZES.get(file.path.rpartition("/")[2])
        if size is not None and size != file.size:
            warnings.append(f"the official archive has {size} bytes, this one {file.size} ({file.path})")
    return warnings
