"""What goes with the code: the site of the pages, the container, what a wheel carries."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vq3dcli import __version__, cli
from vq3dcli.weights_file import load_depth, load_prior, load_weights

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_pages_build_as_a_site_without_warnings(tmp_path: Path) -> None:
    """Every page is in the navigation, every link and anchor is there."""
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stdout + built.stderr
    page = (tmp_path / "site" / "index.html").read_text()
    assert not re.findall(r"(?:src|href)=\"https?://(?!squidfunk|www\.mkdocs)[^\"]+\.(?:js|css)\"", page)


def test_a_wheel_carries_licences_and_credits() -> None:
    assert {"LICENSE", "NOTICE", "docs/model-card.md"} <= set(PROJECT["license-files"])
    notice = " ".join((ROOT / "NOTICE").read_text().split())
    cards = {"stage1": load_weights().card, "stage2": load_prior().card, "depth": load_depth().card}
    for name, card in cards.items():
        assert f"{name}.safetensors" in notice
        assert card["licence"] in PROJECT["license"]
    for holder in ("Wildfire Games", "Emmanuel Puybaret", "BlendSwap", "Andrew Kator", "Reallusion", "Scopia"):
        assert holder in notice
        assert holder in cards["stage1"]["credits"]


def test_pictures_of_the_pages_are_those_that_make_gallery_makes() -> None:
    """Small ones, each shown somewhere, each made by the script or a figure of the notes."""
    script = (ROOT / "docs" / "make_gallery.py").read_text()
    pages = "".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    for file in (ROOT / "docs" / "gallery").iterdir():
        assert f"gallery/{file.name}" in pages
        assert f'"{file.stem}"' in script or f'"{file.name}"' in script
    pictures = [
        path for path in (ROOT / "docs").rglob("*") if path.suffix in (".webp", ".png", ".gif", ".svg", ".html")
    ]
    assert sum(path.stat().st_size for path in pictures) < 1_500_000


def test_one_repository_and_one_version_are_named() -> None:
    cited = (ROOT / "CITATION.cff").read_text()
    assert f'repository-code: "{PROJECT["urls"]["Repository"]}"' in cited
    assert f"version: {__version__}\n" in cited


def test_the_container_copies_what_is_there_and_runs_the_job_of_make_demo() -> None:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    ignored = (ROOT / ".dockerignore").read_text().split()
    for _, words in (step for step in steps if step[0] == "COPY"):
        for source in words.split()[:-1]:
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored
    needed = {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"}
    assert needed <= {source for step in steps if step[0] == "COPY" for source in step[1].split()[:-1]}
    (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", (ROOT / "Dockerfile").read_text())
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    (job,) = re.findall(r"/bin/vq3d (demo .+)", (ROOT / "Makefile").read_text())
    assert shlex.split(dict(steps)["CMD"].strip("[]").replace(",", " ")) == job.split()
    assert "demo" in {name for name, *_ in cli.COMMANDS}


def test_each_python_that_the_package_names_is_tested_and_so_are_its_oldest_packages() -> None:
    named = {label.split()[-1] for label in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", label)}
    (made,) = re.findall(r"^test-versions: (.+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(made.split()) == {f"test-{version}" for version in named | {"oldest"}}
    (matrix,) = re.findall(r"versions: \[(.+)\]", (ROOT / ".github" / "workflows" / "test.yml").read_text())
    assert set(re.findall(r"[\w.]+", matrix)) == named | {"oldest"}
