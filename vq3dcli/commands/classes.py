"""`vq3d classes`."""

from __future__ import annotations

from vq3dcli.commands import options
from vq3dcli.commands.output import Output


def command(said: Output, weights: options.Weights = None, prior: options.Prior = None) -> None:
    """List the classes that new scenes can be of.

    Those whose samples a viewer recognises, as the prior's card says, by number and name; vq3d sample --class takes
    either, and the names of the others (vq3d inspect --json), too.

    Example:
      vq3d classes
      vq3d classes --weights stage1/ --prior stage2/
    """
    from vq3dcli.pipelines.sampling.record import shown_name
    from vq3dcli.weights_file import load_prior, load_weights

    loaded, loaded_prior = load_weights(weights), load_prior(prior)
    loaded_prior.check_stage1(loaded)
    names = loaded_prior.tokens.class_names
    rows = [(index, shown_name(names[index])) for index in loaded_prior.recognised]
    if not names:
        said.note("this prior knows no classes: vq3d sample without --class")
    elif len(rows) < len(names):
        said.note(f"{len(names) - len(rows)} more are not drawn well; vq3d sample --class all draws them, too")
    said.finish(count=len(rows), weights=loaded, metrics={"classes": [name for _, name in rows]}, table=rows)
