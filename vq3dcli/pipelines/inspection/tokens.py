"""What is in a token store."""

from __future__ import annotations

from pathlib import Path

from vq3dcli.data.token_store import TokenStore, code_use
from vq3dcli.errors import DataError
from vq3dcli.pipelines.inspection.result import SHOWN, Inspection


def inspect_tokens(path: Path, verify: bool) -> Inspection:
    """Counts and the use of codes; with `verify` every hash is checked."""
    problems: list[str] = []
    try:
        store = TokenStore(path, check_hashes=verify)
    except DataError as error:
        if not verify:
            raise
        return Inspection("tokens", {"problems": 1}, [error.message])
    manifest = store.manifest
    facts = {
        "images": manifest.images,
        "views": manifest.views,
        "view_names": manifest.view_names[:SHOWN],
        "length": manifest.length,
        "codebook_size": manifest.codebook_size,
        "image_px": manifest.image_size,
        "classes": len(manifest.class_names),
        "bytes": store.tokens.nbytes,
        "stage1_sha256": manifest.stage1_sha256,
        "sources": {source.name: source.images for source in manifest.sources},
    }
    top = max((int(store.tokens[i : i + 4096].max()) for i in range(0, store.num_images, 4096)), default=0)
    if top >= manifest.codebook_size:
        problems.append(f"codes up to {top}, but a codebook of {manifest.codebook_size} ({path})")
    else:
        facts |= code_use(store)
    if not -1 <= int(store.class_index.min()) <= int(store.class_index.max()) < len(manifest.class_names):
        problems.append(f"classes that have no name ({path})")
    return Inspection("tokens", facts, problems)
