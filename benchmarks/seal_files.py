"""Give weights and saved scenes of before files carried a hash of themselves that hash; their tensors stay as they are.

The file's own SHA-256 changes: a Stage 1's card keeps the old one among those whose codes mean the same, so that tokens
and priors go on with it.

Example:
    python benchmarks/seal_files.py run/weights.safetensors
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors import safe_open

from vq3dcli.files import sha256_file
from vq3dcli.tensor_file import write_tensors


def main() -> None:
    """Rewrite the files in place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    for path in parser.parse_args().files:
        print(seal_file(path), path)


def seal_file(path: Path) -> str:
    """Rewrite one file, unless it has its hash; returns the SHA-256 of what is there then."""
    with safe_open(path, framework="pt") as opened:
        header = json.loads((opened.metadata() or {})["vq3d"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    before = sha256_file(path)
    if "file_sha256" in header:
        return before
    if header["format"] == "stage1":
        card = header["card"]
        header["card"] = {**card, "codes_of": [before, *card.get("codes_of", [])]}
    return write_tensors(path, tensors, header)


if __name__ == "__main__":
    main()
