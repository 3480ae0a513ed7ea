"""What README and the guides show is what comes out, in a folder with nothing but the examples."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from documents import ROOT, Step, blocks, missing, session

from command import Result, environment

README = ROOT / "README.md"
UPSAMPLER = ROOT / "examples" / "upsampler.py"


def elsewhere(command: str) -> str:
    """The output of a command that is not ours, in a process of its own."""
    words = shlex.split(command)
    own = {"python": [sys.executable], "mlx_lm.convert": [sys.executable, "-m", "mlx_lm", "convert"]}
    words = own.get(words[0], words[:1]) + words[1:]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), check=True)
    return done.stdout


def without_progress(errors: str) -> str:
    """Of stderr, the error."""
    return errors[errors.index("error: ") :] if "error: " in errors else ""


def run(step: Step, mlxport: Callable[..., Result]) -> str:
    name, *arguments = shlex.split(step.command)
    if name != "mlxport":
        return elsewhere(step.command)
    result = mlxport(*arguments)
    return result.out + without_progress(result.err)


def files_of(page: Path) -> dict[str, str]:
    """The blocks of Python that begin with the name of the file that they are."""
    found = {}
    for block in blocks(page, "python"):
        first = block.partition("\n")[0]
        if first.startswith("# ") and first.endswith(".py"):
            found[first[2:]] = block
    return found


def test_the_file_that_is_ported_is_the_example():
    for page in (README, ROOT / "docs" / "port.md"):
        assert files_of(page)["upsampler.py"] == f"# upsampler.py\n{UPSAMPLER.read_text()}", page.name


@pytest.mark.parametrize("name", ["README.md", "docs/convert.md", "docs/port.md", "docs/verify.md", "docs/formats.md"])
def test_the_output_is_what_is_shown(name, folder, mlxport):
    page = ROOT / name
    for file, text in (files_of(page) or files_of(README)).items():
        (folder / file).write_text(text)
    steps = session(page)
    assert steps
    for step in steps:
        assert missing(step.shown, run(step, mlxport), folder) == [], step.command


@pytest.mark.parametrize("name", ["docs/convert.md", "docs/port.md"])
def test_the_python_runs(name, folder, mlxport):
    """Each block as it stands; the one that shows a port's source is a part of it instead."""
    page = ROOT / name
    (folder / "upsampler.py").write_text(files_of(README)["upsampler.py"])
    mlxport("port", "upsampler.py:make", "upsampler-mlx", "--verify", "none")
    emitted = (folder / "upsampler-mlx" / "model.py").read_text()
    for block in blocks(page, "python"):
        if block not in emitted:
            assert "import" in block
            exec(compile(block, page.name, "exec"), {"__name__": page.name})


def test_readme_fits_a_screen_or_three():
    lines = README.read_text("utf-8").splitlines()
    assert len(lines) <= 150
    first = README.read_text("utf-8").split("\n\n")[1].partition(". ")[0]
    assert "port" in first and "convert" in first


@pytest.mark.parametrize(
    ("shown", "output", "lacks"),
    [
        ("a\nb\n", "a\nb\n", []),
        ("a\n...\nc\n", "a\nb\nb\nc\n", []),
        ("...\nc\n", "a\nc\n", []),
        ("a\n...\n", "a\nb\n", []),
        ("a\n", "a\nb\n", ["the end", "b"]),
        ("a\n...\nd\n", "a\nb\nc\n", ["d"]),
        ("b\n", "a\nb\n", ["b"]),
        ("cosine 0.9912656, 84.2%, 3 files", "cosine 0.9913001, 84.1%, 3 files", []),
        ("bits per weight 4.511", "bits per weight 4.512", ["bits per weight 4.511"]),
        ("done: /home/you/out", f"done: {os.sep}somewhere/out", []),
    ],
)
def test_the_comparison_itself(shown, output, lacks):
    assert missing(shown, output, Path("/somewhere")) == lacks
