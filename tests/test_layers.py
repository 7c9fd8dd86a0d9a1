"""Imports flow down one way, so that every part can be read and used without those above it."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the top; a part may import its own layer and everything below. Parts are modules or folders.
LAYERS = (
    ("vq3dcli.__main__", "vq3dcli.cli", "vq3dcli"),
    ("vq3dcli.commands",),
    ("vq3d",),
    ("vq3dcli.pipelines", "vq3dcli.training", "vq3dcli.data_tools"),
    (
        "vq3dcli.model",
        "vq3dcli.losses",
        "vq3dcli.metrics",
        "vq3dcli.data",
        "vq3dcli.toyscenes",
        "vq3dcli.meshscenes",
        "vq3dcli.checkpoint",
        "vq3dcli.weights_file",
        "vq3dcli.scene_file",
        "vq3dcli.tensor_file",
        "vq3dcli.editing",
        "vq3dcli.export",
        "vq3dcli.weights",
    ),
    ("vq3dcli.rendering", "vq3dcli.config"),
    (
        "vq3dcli.errors",
        "vq3dcli.files",
        "vq3dcli.locks",
        "vq3dcli.remote",
        "vq3dcli.sealed",
        "vq3dcli.log",
        "vq3dcli.signals",
        "vq3dcli.seeding",
        "vq3dcli.allocator",
        "vq3dcli.compiled",
    ),
)
HEIGHT = {part: -depth for depth, layer in enumerate(LAYERS) for part in layer}

# Inside their layer pipelines may use training and data_tools; those two stand alone.
FORBIDDEN_BESIDE = {
    ("vq3dcli.training", "vq3dcli.pipelines"),
    ("vq3dcli.training", "vq3dcli.data_tools"),
    ("vq3dcli.data_tools", "vq3dcli.pipelines"),
    ("vq3dcli.data_tools", "vq3dcli.training"),
}


def part_of(module: str) -> str:
    """The part that a module belongs to; raises `KeyError` for one that no layer names."""
    name = module
    while name not in HEIGHT:
        name, dot, _ = name.rpartition(".")
        if not dot:
            raise KeyError(f"{module} is in no layer: add its part to LAYERS")
    if name == "vq3dcli" and module != "vq3dcli":
        raise KeyError(f"{module} is in no layer: add its part to LAYERS")
    return name


def imports(source: str, package: str) -> Iterator[str]:
    """Absolute names of everything of ours that `source` imports, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            names = [f"{base}.{alias.name}" if base == "vq3dcli" else base for alias in node.names]
        else:
            continue
        for name in names:
            # `from vq3dcli import __version__` takes a name of the root, not a module.
            if name.startswith("vq3dcli.") and not is_module(name) and name.count(".") == 1:
                continue
            if name.partition(".")[0] in ("vq3d", "vq3dcli"):
                yield name


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Upward imports of one module, as text."""
    importer = part_of(module)
    package = module if is_package else module.rpartition(".")[0]
    found = []
    for name in imports(source, package):
        if name == "vq3dcli":  # the root itself: where the package lies
            continue
        imported = part_of(name)
        upward = HEIGHT[imported] > HEIGHT[importer]
        if upward or (importer, imported) in FORBIDDEN_BESIDE:
            found.append(f"{module} imports {name}")
    return found


def our_modules() -> list[tuple[str, Path]]:
    files = sorted(file for package in ("vq3d", "vq3dcli") for file in (ROOT / package).rglob("*.py"))
    return [(".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), f) for f in files]


def test_no_module_imports_upward() -> None:
    found = []
    for module, path in our_modules():
        found += violations(module, path.read_text(), is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vq3dcli.rendering.render", "from vq3dcli.model import field"),
        ("vq3dcli.rendering.render", "def f():\n    import vq3dcli.model.field"),
        ("vq3dcli.rendering.render", "from ..model import field"),
        ("vq3dcli.errors", "from vq3dcli import files, cli"),
        ("vq3dcli.config.load", "from vq3dcli.data.loader import Batch"),
        ("vq3dcli.training.stage1", "from vq3dcli.pipelines.scene import Scene"),
        ("vq3dcli.training.stage1", "import vq3dcli.data_tools.job"),
        ("vq3dcli.data_tools.job", "from vq3dcli.training import stage1"),
        ("vq3dcli.pipelines.render", "from vq3dcli.commands.output import Output"),
        ("vq3dcli.commands.render", "from vq3dcli.cli import run"),
        ("vq3dcli.pipelines.render", "import vq3d"),
        ("vq3d.scene", "from vq3dcli.commands.output import Output"),
    ],
)
def test_an_upward_import_is_found(module: str, source: str) -> None:
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "vq3dcli.pipelines.studies.quickstart",
            "from vq3dcli.training import stage1\nimport vq3dcli.data_tools.toyscenes",
        ),
        ("vq3dcli.commands.output", "from vq3dcli import __version__, log"),
        ("vq3dcli.model.build", "from vq3dcli.config.schema import Stage1Recipe\nimport torch"),
        ("vq3dcli.config.load", "import vq3dcli"),
        ("vq3dcli.commands.classes", "import vq3d"),
        ("vq3d.scene", "from vq3dcli.pipelines.render import staged"),
    ],
)
def test_a_downward_import_is_fine(module: str, source: str) -> None:
    assert not violations(module, source)


def test_a_part_without_a_layer_is_an_error() -> None:
    with pytest.raises(KeyError, match="add its part"):
        violations("vq3dcli.utils", "")


def test_breakages_that_tests_are_tried_with_fit_the_code() -> None:
    """`tests/tools/mutations.py` takes minutes a file; that its table is of this code is seen at once."""
    table = tomllib.loads((ROOT / "tests/tools/mutations.toml").read_text())
    for name, entry in table.items():
        text = (ROOT / name).read_text()
        for old, _, *other in entry["breaks"]:
            assert text.count(old) == 1, (name, old)
            for test in other[0] if other else entry["tests"]:
                assert (ROOT / test.split("::")[0]).exists(), test
