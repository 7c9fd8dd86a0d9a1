"""Addresses among the arguments of a command: local copies take their place."""

from __future__ import annotations

import os
import re

from vq3dcli.errors import UsageError

# What may stand before an address in one argument, `--option=` or `key=`, and the options that name an output.
_ADDRESS = re.compile(r"(--[\w-]+=|[\w.-]+=)?((?:https?|s3|gs|hf)://.+|pipe:.+)", re.DOTALL)
_OUTPUTS = ("-o", "--out", "--output", "--sheet", "--preview")
# Options whose address may be a repository of the Hub, and what of it they mean; `--init` what is trained.
WEIGHTS_OPTIONS = {"--weights": "stage1", "--prior": "stage2", "--model": "depth", "--depth-model": "depth"}
_KINDS = ("stage1", "stage2", "depth")
# Commands that draw: by default with the prior that lies in a repository beside its weights; `--pictures` are drawn.
_DRAWING = ("sample", "classes", "evaluate generation")
_OWN_PRIOR = re.compile(r"--(?:prior|pictures)(?:=|$)")


def with_copies(arguments: list[str], command: str) -> list[str]:
    """The arguments with local copies in the place of addresses. Raises as `local_copy`; `UsageError` for outputs."""
    copies, prior = list(arguments), list[str]()
    if command == "push":  # whose address is where it goes
        return copies
    for i, argument in enumerate(arguments):
        match = _ADDRESS.fullmatch(argument)
        if match is None or os.path.lexists(argument):  # a shell's * may give files of any name: they are no commands
            continue
        option = match[1].rstrip("=") if match[1] else arguments[i - 1]
        if option in _OUTPUTS:
            raise UsageError(
                f"outputs are local ({match[2]})", remedy="a local folder, then aws s3 sync, gsutil rsync or rsync"
            )
        from vq3dcli.remote.cache import local_copy  # only now: most calls name no address
        from vq3dcli.remote.hub import file_address, repository

        kind = WEIGHTS_OPTIONS.get(option) or command.removeprefix("train-")
        copies[i] = f"{match[1] or ''}{local_copy(file_address(match[2], kind) if kind in _KINDS else match[2])}"
        draws = command in _DRAWING and not any(map(_OWN_PRIOR.match, arguments))
        if draws and option == "--weights" and repository(match[2]):
            prior = [f"--prior={local_copy(file_address(match[2], 'stage2'))}"]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [*copies[:end], *prior, *copies[end:]]
