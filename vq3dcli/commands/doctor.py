"""`vq3d doctor`."""

from __future__ import annotations

from vq3dcli.commands.output import Output
from vq3dcli.errors import UnavailableError


def command(output: Output) -> None:
    """Say what works on this machine, what is missing, and what to do about it.

    Ends with code 69 if something is missing that vq3d cannot do without.

    Example:
      vq3d doctor
      vq3d doctor --json
    """
    from vq3dcli.pipelines.doctor import check_all

    checks = check_all()
    for check in checks:
        if check.status != "ok":
            output.warn(f"{check.name} is {check.status}: {check.detail}; try: {check.remedy}")
    output.finish(
        metrics={check.name: {"status": check.status, "detail": check.detail, **check.facts} for check in checks},
        table=[("part", "status", "found"), *((check.name, check.status, check.detail) for check in checks)],
    )
    for check in checks:
        if check.required and check.status != "ok":
            output.fail(UnavailableError(f"{check.name} is {check.status}: {check.detail}", remedy=check.remedy))
