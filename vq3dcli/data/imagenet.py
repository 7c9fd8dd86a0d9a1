"""English names of ImageNet's classes.

`imagenet_names.tsv` holds the 1000 synsets of ILSVRC 2012 (Russakovsky et al., IJCV 2015) in their order, by WordNet
id, each with its lemmas in WordNet 3.0 (Princeton University, 2006).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources


@functools.cache
def imagenet_names() -> Mapping[str, tuple[str, ...]]:
    """WordNet id to its English names, the usual one first; in the order of class indices."""
    text = (resources.files("vq3dcli.data") / "imagenet_names.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines())
    return {wnid: tuple(names.split(", ")) for wnid, names in rows}
