"""Options across all commands: one name has one meaning, and help calls values what people call them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, get_args

from typer.core import TyperGroup

from vq3dcli import cli

# Names of files, by whatever a command takes for one, and what one command takes several of.
_PLACES = {"--out", "-o", "--data", "--weights"}
_FORMATS = "--format"


def parameters() -> list[tuple[str, Any]]:
    """Of every command."""
    found = []
    for name, module, _ in cli.COMMANDS:
        command = cli.load_command(name, module)
        inner = command.commands if isinstance(command, TyperGroup) else {}
        for words, what in [(name, command), *((f"{name} {word}", inner[word]) for word in inner)]:
            found += [(words, parameter) for parameter in what.params]
    return found


def test_an_option_name_has_one_meaning() -> None:
    kinds: dict[str, dict[object, str]] = defaultdict(dict)
    for words, parameter in parameters():
        kind = parameter.type_descriptor.annotation
        kind = get_args(kind)[0] if parameter.multiple else kind
        for name in parameter.opts:
            if name.startswith("-") and name not in _PLACES | {_FORMATS}:
                kinds[name].setdefault(kind, words)
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}
    counts = {words for words, parameter in parameters() if "-n" in parameter.opts}
    assert counts == {"sample"}  # of each class; --count is of all
    assert {words for words, parameter in parameters() if "--views" in parameter.opts} == {"export", "prepare-data"}


def test_help_names_values_without_types_of_python() -> None:
    context = cli.load_command("doctor", "doctor").make_context("vq3d", [])
    for words, parameter in parameters():
        record = parameter.get_help_record(context)
        assert record is not None
        left = record[0].partition(" ")[2]
        assert not left.startswith("<") and "list[" not in left and " range" not in left, (words, record)
