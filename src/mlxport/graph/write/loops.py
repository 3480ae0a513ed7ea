"""Write calls of list elements that repeat as ``for`` loops."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = ["Line", "roll"]

Line = tuple[tuple[str, ...], str]
_ELEMENT = re.compile(r"\b(self(?:\.\w+|\[\d+\]|\['[^']*'\])*|cache)\[(\d+)\]")


def roll(lines: Sequence[Line], lists: Mapping[str, int]) -> list[str]:
    """``lines`` (targets and expression) as text; runs that differ in an index only become loops over the list."""
    output: list[str] = []
    index = 0
    while index < len(lines):
        found = _loop(lines, index, lists)
        if found is None:
            output.append(_line(lines[index]))
            index += 1
        else:
            text, used = found
            output += text
            index += used
    return output


def _line(line: Line) -> str:
    targets, value = line
    return f"{', '.join(targets)} = {value}" if targets else value


def _loop(lines: Sequence[Line], start: int, lists: Mapping[str, int]) -> tuple[list[str], int] | None:
    for period in range(1, min(8, (len(lines) - start) // 2) + 1):
        first = _abstract(lines[start : start + period], lists)
        if first is None:
            continue
        begin, shape = first
        count = 1
        later: str | None = None
        while True:
            block = _abstract(lines[start + count * period : start + (count + 1) * period], lists)
            if block is None or block[0] != begin + count or (later is not None and block[1] != later):
                break
            later = block[1]
            count += 1
        if count < 2 or later is None:
            continue
        carried = _carried(lines[start : start + period], lines[start + period : start + 2 * period], shape, later)
        if carried is None:
            continue
        return _written(lines[start + period : start + 2 * period], carried, begin, count, lists), count * period
    return None


def _abstract(block: Sequence[Line], lists: Mapping[str, int]) -> tuple[int, str] | None:
    """The one index of list elements in the block, and its text without it."""
    if not block:
        return None
    text = "\n".join(map(_line, block))
    indices = {int(number) for name, number in _ELEMENT.findall(text) if name in lists}
    if len(indices) != 1:
        return None
    return indices.pop(), _ELEMENT.sub(lambda m: f"{m[1]}[#]" if m[1] in lists else m[0], text)


def _carried(first: Sequence[Line], second: Sequence[Line], shape: str, later: str) -> dict[str, str] | None:
    """Variables that the first round takes under another name, by their name; None if the rounds differ otherwise."""
    if shape == later:
        return {}
    ours, theirs = re.split(r"(\b[A-Za-z_]\w*\b)", shape), re.split(r"(\b[A-Za-z_]\w*\b)", later)
    if len(ours) != len(theirs):
        return None
    names: dict[str, str] = {}
    assigned = {target for targets, _ in second for target in targets}
    for one, two in zip(ours, theirs, strict=True):
        if one != two:
            if two not in assigned or names.setdefault(two, one) != one:
                return None
    targets = [targets for targets, _ in first]
    if targets != [targets for targets, _ in second]:
        return None
    return names


def _written(
    block: Sequence[Line], carried: Mapping[str, str], begin: int, count: int, lists: Mapping[str, int]
) -> list[str]:
    text = [_line(line) for line in block]
    used = list(dict.fromkeys(name for name, _ in _ELEMENT.findall("\n".join(text)) if name in lists))
    taken = set(re.findall(r"\w+", "\n".join(text)))
    variables = {name: _variable(name, taken) for name in used}
    body = [_ELEMENT.sub(lambda m: variables[m[1]] if m[1] in variables else m[0], line) for line in text]
    sources = []
    for name in used:
        whole = begin == 0 and count == lists[name]
        sources.append(
            name if whole else f"{name}[{begin or ''}:{'' if begin + count == lists[name] else begin + count}]"
        )
    head = ", ".join(variables.values())
    iterable = sources[0] if len(sources) == 1 else f"zip({', '.join(sources)}, strict=True)"
    lines = [f"{name} = {source}" for name, source in carried.items()]
    return [*lines, f"for {head} in {iterable}:", *("    " + line for line in body)]


def _variable(name: str, taken: set[str]) -> str:
    if name == "cache":  # mlx-lm's models call it so
        return "c"
    base = re.sub(r"\[\d+\]", "", name).rpartition(".")[2].strip("_").lower()
    if base.endswith("ies"):
        singular = base[:-3] + "y"
    else:
        singular = base[:-1] if base.endswith("s") and not base.endswith("ss") and len(base) > 2 else "layer"
    singular = f"{singular}_module" if singular in taken else singular
    while singular in taken:
        singular += "_"
    taken.add(singular)
    return singular
