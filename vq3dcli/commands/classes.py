"""`vq3d classes`."""

from __future__ import annotations

from vq3dcli.commands.options import PriorOption, Stage1Option
from vq3dcli.commands.output import JsonOption, Output, QuietOption


def command(
    weights: Stage1Option = None, prior: PriorOption = None, json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """List the classes that new scenes can be of.

    By number and name; vq3d sample --class takes either.

    Example:
      vq3d classes
      vq3d classes --weights stage1/ --prior stage2/
    """
    import vq3d

    said = Output("classes", json, quiet)
    model = vq3d.load(weights, prior=prior, device="cpu")
    classes = model.classes
    if not classes:
        said.note("this prior knows no classes: vq3d sample without --class")
    said.finish(count=len(classes), weights=model.weights, metrics={"classes": classes}, table=list(enumerate(classes)))
