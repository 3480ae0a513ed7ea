"""The documentation as data: pages, fenced blocks, the sessions that they show, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
HOME = "/home/you"  # the folder in which the sessions were run, as the pages write it
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Said where there is any, which is another matter on each processor.
_ROUNDING = re.compile(r", within \d\.\de-\d\d of the scale")
# What differs from one machine to another: rounding, memory, free space, seconds.
_UNSTABLE = re.compile(
    r"\d+(\.\d+)?e[+-]\d+|\d+\.\d{4,}|\d+(\.\d+)?%|about [\d.]+ [kMG]B|[\d.]+ [kMGT]B free|[\d.]+ tokens per second"
)


@dataclass(frozen=True)
class Step:
    """One command of a session, and what the page shows of its output."""

    command: str
    shown: str


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [text for name, text in _FENCE.findall(page.read_text("utf-8")) if name == language]


def session(page: Path) -> list[Step]:
    """The commands of all ``console`` blocks, in order."""
    steps = []
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            steps.append(Step(command, shown))
    return steps


def stable(text: str, folder: Path | None = None) -> list[str]:
    """The lines that must be the same everywhere: figures of rounding as ``#``, widths of columns ignored."""
    if folder is not None:
        text = text.replace(str(folder), HOME)
    text = _UNSTABLE.sub("#", _ROUNDING.sub("", text))
    lines = re.sub("[━─]+", "─", text).splitlines()
    return [line for line in (" ".join(line.split()) for line in lines) if line]


def missing(shown: str, output: str, folder: Path) -> list[str]:
    """What is shown and did not come out; a line ``...`` stands for any lines.

    Returns:
        The first part between two such lines that is not in the output after what came before; empty if all are.
    """
    found = stable(output, folder)
    parts: list[list[str]] = [[]]
    for line in stable(shown):
        if line == "...":
            parts.append([])
        else:
            parts[-1].append(line)
    place = 0
    for number, part in enumerate(parts):
        last = len(found) - len(part)
        starts = range(place, last + 1) if number else range(0, 1)
        start = next((i for i in starts if found[i : i + len(part)] == part), None)
        if start is None:
            return part
        place = start + len(part)
    return [] if parts[-1] == [] or place == len(found) else ["the end", *found[place:]]


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every ``mlxport`` command in a block of code, fenced or indented."""
    for line in page.read_text("utf-8").splitlines():
        shown = re.fullmatch(r"(?:\$ |    )mlxport (.*?)(?: {2,}#.*)?", line)
        if shown and "[OPTIONS]" not in line:
            yield shlex.split(shown[1])


def spelled_inline(page: Path) -> Iterator[list[str]]:
    """The arguments of every ``mlxport`` command in running text: it may leave out what it is not about."""
    text = _FENCE.sub("", page.read_text("utf-8"))
    for found in re.findall(r"`mlxport ([^`]+)`", text):
        yield found.replace("…", "").replace("[OPTIONS]", "").split()
