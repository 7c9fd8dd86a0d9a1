"""`vq3d doctor`: what works here, what is missing, and what to do."""

from __future__ import annotations

from vq3dcli.commands.output import JsonOption, Output, QuietOption


def command(json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Say what works on this machine, what is missing, and what to do about it.

    Example:
      vq3d doctor
      vq3d doctor --json
    """
    Output("doctor", json, quiet).finish()
