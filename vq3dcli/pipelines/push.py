"""Weights to the Hugging Face Hub, with a card that says what they are: `vq3d push`."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

from vq3dcli import __version__
from vq3dcli.config.load import flat
from vq3dcli.errors import UnavailableError, UsageError
from vq3dcli.remote.fetch import refuse_offline
from vq3dcli.remote.hub import repository, weights_name
from vq3dcli.weights_file import LoadedPrior, LoadedWeights

_log = logging.getLogger(__name__)
# As the Hub spells them.
_LICENCES = {"Apache-2.0": "apache-2.0", "CC-BY-SA-3.0": "cc-by-sa-3.0"}
_MOST_CLASSES = 200


def push(
    weights: LoadedWeights, prior: LoadedPrior | None, address: str, *, private: bool = False, message: str = ""
) -> str:
    """Upload weights, which were loaded and so are whole, and their card; returns the address of the commit.

    `address` is `hf://OWNER/NAME[@BRANCH]`; both are made where they are not there, the repository perhaps `private`.

    Raises:
        UsageError: Another address.
        DataError: The prior's codes are those of other weights.
        UnavailableError: huggingface_hub is missing, or the Hub refuses or cannot be reached.
    """
    place = repository(address)
    if place is None:
        raise UsageError(f"no repository of the Hub ({address})", remedy="hf://OWNER/NAME or hf://OWNER/NAME@BRANCH")
    if prior is not None:
        prior.check_stage1(weights)
    refuse_offline(address)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise UnavailableError("uploads need the package huggingface_hub", remedy="pip install 'vq3d[hub]'") from error
    name, branch = place
    _log.info("uploading %s", weights.path if prior is None else f"{weights.path} and {prior.path}")
    with tempfile.TemporaryDirectory(prefix="vq3d-") as folder:
        shutil.copyfile(weights.path, Path(folder) / weights_name("stage1"))
        if prior is not None:
            shutil.copyfile(prior.path, Path(folder) / weights_name("stage2"))
        (Path(folder) / "README.md").write_text(model_card(weights, prior, address), encoding="utf-8")
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN"))
        try:
            api.create_repo(name, private=private, exist_ok=True)
            if branch is not None:
                api.create_branch(name, branch=branch, exist_ok=True)
            commit = api.upload_folder(
                repo_id=name, folder_path=folder, revision=branch, commit_message=message or f"vq3d {__version__}"
            )
        except Exception as error:  # the client raises a dozen types: no network, no token, no such owner, ...
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UnavailableError(
                f"cannot upload ({address}): {reason}", remedy="HF_TOKEN with a token that may write there"
            ) from error
    return str(commit.commit_url)


def model_card(weights: LoadedWeights, prior: LoadedPrior | None, address: str) -> str:
    """The README of a repository: what a reader of the Hub looks for, and all that the files say of themselves."""
    card, model = weights.card, weights.recipe.model
    licence = str(card.get("licence", ""))
    lines = ["---", "library_name: vq3d", "pipeline_tag: image-to-3d"]
    lines += [f"license: {_LICENCES.get(licence, 'other')}"] if licence else []
    lines += ["tags: [3d, nerf, novel-view-synthesis, vq-gan, tri-plane]", "---", ""]
    lines += [f"# {address.removeprefix('hf://').partition('@')[0]}", ""]
    lines += [f"One photo to a NeRF in one forward pass, by [vq3d](https://github.com/vq3d/vq3d) {__version__}.", ""]
    lines += ["```python", "import vq3d", "", f'model = vq3d.load("{address}")']
    lines += ['model.reconstruct("photo.jpg").save_video("orbit.mp4")']
    if prior is not None and prior.tokens.class_names:
        lines += [f'model.sample("{prior.tokens.class_names[0]}", n=4)']
    lines += ["```", "", f"{model.image_size} px, {(model.image_size // model.patch) ** 2} codes of "]
    lines[-1] += f"{model.codebook_size}."
    for title, loaded in (("Stage 1", weights), ("Prior", prior)):
        if loaded is None:
            continue
        lines += ["", f"## {title}", "", f"SHA-256 `{loaded.sha256}`"]
        if isinstance(loaded, LoadedPrior) and loaded.tokens.class_names:
            names = loaded.tokens.class_names
            more = f" and {len(names) - _MOST_CLASSES} more" if len(names) > _MOST_CLASSES else ""
            lines += ["", f"{len(names)} classes: {', '.join(names[:_MOST_CLASSES])}{more}"]
        card = {key: value for key, value in loaded.card.items() if not key.startswith("init_")}
        lines += ["", "| | |", "|---|---|"]
        for key, value in flat(card).items():
            text = (value if isinstance(value, str) else json.dumps(value)).replace("|", "\\|")
            lines.append(f"| {key} | {' '.join(text.split())} |")
    return "\n".join([*lines, ""])
