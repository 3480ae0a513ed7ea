"""Names of tensors that a wrapper has changed for all of a checkpoint: what is to be taken off, or put before them.

torch.compile saves ``_orig_mod.model…``, DataParallel ``module.model…``, PEFT ``base_model.model.…``, a training script
whatever its own module is called; a base model lacks the ``model.`` of the model that it is the base of. None of the
beginnings is looked for by name: what the checkpoint has and what the model expects end alike, and where they begin
otherwise is the change.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["NameChange", "PartNames", "first_that_fits", "likely_changes", "likely_parts"]

Tensor = TypeVar("Tensor")

# What torch puts between the names of a module and its parts: torch.compile, FSDP, activation checkpointing. No model
# has a module of such a name, so these may be anywhere: a script may compile its layers one by one.
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_DEEPEST = 6  # names of modules before a model
_SURE = 0.5  # of the names that end alike must have the beginnings of a change
_MOST_PARTS = 3  # that are tried
_MOST = 8  # changes that are tried, and pairs of beginnings that are looked at


@dataclass(frozen=True)
class NameChange:
    """From the names in a checkpoint to those that its model has.

    Attributes:
        wrappers: Names of wrappers to take out wherever they are.
        outer: What all names begin with, to be taken off.
        strip: What most names begin with after that, to be taken off too.
        add: What to put in its place.
        keep: Names that stay as they then are, because the model has them.
    """

    wrappers: tuple[str, ...] = ()
    outer: str = ""
    strip: str = ""
    add: str = ""
    keep: frozenset[str] = frozenset()

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tensors of a checkpoint, under the names that the model has."""
        return {self(name): item for name, item in tensors.items()}

    def __call__(self, name: str) -> str:
        """The name of a tensor of the checkpoint in the model."""
        if self.wrappers:
            name = _WRAPPERS.sub("", name)
        name = name.removeprefix(self.outer)
        return self.add + name[len(self.strip) :] if name.startswith(self.strip) and name not in self.keep else name

    def __str__(self) -> str:
        """What was done, as a note for the user."""
        off = [repr(part) for part in (*self.wrappers, self.outer, "" if self.add else self.strip) if part]
        done = [f"taken off the names of the tensors: {', '.join(off)}"] if off else []
        if self.strip and self.add:
            done.append(f"{self.strip!r} in the names of the tensors read as {self.add!r}")
        elif self.add:
            done.append(f"put before the names of the tensors: {self.add!r}, which the model's have")
        return "; ".join(done)


@dataclass(frozen=True)
class PartNames:
    """From the names in a checkpoint to those of a model that is a part of it.

    Attributes:
        inside: What the names of the part begin with, to be taken off.
        add: What to put in its place.
        beside: Names outside of it that are the part's too, to what the part calls them: an output layer.
    """

    inside: str
    add: str
    beside: Mapping[str, str]

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the part, under its names."""
        start = len(self.inside)
        held = {self.add + name[start:]: item for name, item in tensors.items() if name.startswith(self.inside)}
        return held | {self.beside[name]: item for name, item in tensors.items() if name in self.beside}

    def __str__(self) -> str:
        """What was done, as a note for the user."""
        return f"the text model's tensors are those called {self.inside}…" if self.inside else ""


def likely_parts(names: Collection[str], expected: Collection[str], is_head: Callable[[str], bool]) -> list[PartNames]:
    """Where in a checkpoint a model may be a part, the place that holds most of its tensors first; each is to be tried.

    Args:
        names: In the checkpoint, among them those of other parts, which may end like the model's.
        expected: In the model, which may name some of its tensors otherwise.
        is_head: Whether a name is that of an output layer, which lies outside of a base model.
    """
    known = set(expected)
    starts = {beginning for name in expected for beginning, _ in _split(name)}
    insides = {beginning for name in names for beginning, _ in _split(name)}
    held = {inside: [name[len(inside) :] for name in names if name.startswith(inside)] for inside in insides}
    counts = {(inside, add): sum(add + end in known for end in ends) for inside, ends in held.items() for add in starts}
    places = sorted((place for place, count in counts.items() if count), key=lambda place: (-counts[place], place))
    return [PartNames(*place, _heads_beside(names, place[0], known, is_head)) for place in places[:_MOST_PARTS]]


def _heads_beside(
    names: Iterable[str], inside: str, known: Collection[str], is_head: Callable[[str], bool]
) -> dict[str, str]:
    """Output layers outside of a part, by what the part's model calls them."""
    outside = [name for name in names if is_head(name) and not name.startswith(inside)]
    return {name: end for name in outside if (end := ".".join(name.split(".")[-2:])) in known or name == end}


def first_that_fits(
    names: Collection[str], expected: Callable[[], Collection[str]], fits: Callable[[NameChange], bool]
) -> NameChange | None:
    """The first likely change under which a checkpoint fits the model; None where it fits as it is, or under none.

    Args:
        names: In the checkpoint.
        expected: Names that the model has, asked for where those of the checkpoint do not fit.
        fits: Whether the model takes the checkpoint under a change.
    """
    if fits(NameChange()):
        return None
    return next((change for change in likely_changes(names, expected()) if fits(change)), None)


def likely_changes(names: Collection[str], expected: Collection[str]) -> list[NameChange]:
    """Changes that bring names nearer to what a model expects, the smallest first; each is to be tried.

    Args:
        names: In a checkpoint.
        expected: In the model, which may name some of its tensors otherwise.
    """
    wrappers = tuple(dict.fromkeys(found for name in names for found in _WRAPPERS.findall(name)))
    plain = [_WRAPPERS.sub("", name) for name in names] if wrappers else [*names]
    outers = [*_common_beginnings(plain)]
    changes = [NameChange(wrappers)] if wrappers else []
    changes += [NameChange(wrappers, outer) for outer in outers]
    for outer in ("", *outers):
        inner = [name.removeprefix(outer) for name in plain]
        for strip, add in _beginnings_of_like_ends(inner, expected):
            keep = frozenset(_right_already(inner, expected, strip, add))
            changes.append(NameChange(wrappers, outer, strip, add, keep))
    return changes[:_MOST]


def _right_already(names: Iterable[str], expected: Iterable[str], strip: str, add: str) -> Iterator[str]:
    """Names that the model has and a change would spoil: an output layer beside a base model without its prefix."""
    known = set(expected)
    for name in names:
        if name in known and name.startswith(strip) and add + name[len(strip) :] not in known:
            yield name


def _common_beginnings(names: list[str]) -> Iterator[str]:
    """What all names begin with, up to each of the first dots."""
    if not names:
        return
    first, last = min(names).split("."), max(names).split(".")  # what these two share, all between them share
    for depth, (one, other) in enumerate(zip(first[:-1], last[:-1], strict=False), 1):
        if one != other or one.isdigit() or depth > _DEEPEST:
            return
        yield ".".join(first[:depth]) + "."


def _beginnings_of_like_ends(names: list[str], expected: Collection[str]) -> list[tuple[str, str]]:
    """What names begin with where they end as expected ones do, and what those begin with; the most frequent first."""
    ends: dict[str, set[str]] = {}
    for name in expected:
        for beginning, end in _split(name):
            ends.setdefault(end, set()).add(beginning)
    votes: Counter[tuple[str, str]] = Counter()
    for name in names:
        found = next(((beginning, ends[end]) for beginning, end in _split(name) if end in ends), None)
        if found is not None:
            votes.update((found[0], other) for other in found[1])
    likely = [pair for pair, count in votes.most_common(_MOST) if count >= _SURE * sum(votes.values())]
    return [pair for pair in likely if pair != ("", "")]


def _split(name: str) -> Iterator[tuple[str, str]]:
    """Beginning and end of a name at each of its first dots, the shortest beginning first; an end has two parts.

    A beginning has no numbers: those of layers and experts are inside of a model.
    """
    parts = name.split(".")
    for depth in range(min(_DEEPEST, len(parts) - 2) + 1):
        if depth and parts[depth - 1].isdigit():
            return
        yield "".join(f"{part}." for part in parts[:depth]), ".".join(parts[depth:])
