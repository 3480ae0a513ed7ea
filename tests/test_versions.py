"""What is promised about versions is what CI tries."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WHEEL_OF = {"mlx-cpu": "mlx"}  # what another package is, by the extra of it that we ask for


def pinned() -> dict[str, str]:
    """Package to version, of constraints/lowest.txt."""
    lines = (ROOT / "constraints/lowest.txt").read_text("utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {each.name: str(each.specifier).removeprefix("==") for each in found}


def promised() -> dict[str, set[str]]:
    """Package to its lower bounds, wherever it is named."""
    extras = PROJECT["optional-dependencies"]
    found: dict[str, set[str]] = {}
    for each in map(Requirement, [*PROJECT["dependencies"], *extras["torch"], *extras["dev"]]):
        found.setdefault(each.name, set()).update(s.version for s in each.specifier if s.operator == ">=")
    return found


@pytest.mark.parametrize("package", sorted(pinned()))
def test_the_lowest_version_that_ci_tries_is_the_bound(package: str) -> None:
    bounds = promised()[WHEEL_OF.get(package, package)]
    assert len(bounds) == 1
    bound, tried = (tuple(map(int, version.split("."))) for version in (*bounds, pinned()[package]))
    assert tried[: len(bound)] == bound and not any(tried[len(bound) :])


def test_ci_tries_every_python_from_the_lowest_on() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert f'python: ["{lowest}", ' in workflow and f'python: "{lowest}", versions: lowest' in workflow
