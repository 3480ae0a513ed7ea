"""How many layers there are, and of which kinds, as config.json says it: fields of ``ModelArgs``.

A field is taken where it says what was captured: as many layers as the list has, and for each kind of layer one
constructor, one cache and one mask. A config of another depth then builds another list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from mlxport.graph.capture.captured import Captured
from mlxport.graph.write.loops import Line

__all__ = ["LayerList", "layer_list", "spelled_list"]

# Of the decoder first: where there is an encoder, the others may be its own.
_DEPTHS = ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "n_layer", "n_layers", "num_layers")
_KINDS = ("layer_types", "layers_block_type")
_WINDOW = "sliding_window"
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])")
_INDEX = re.compile(r"\b((?:self\.)?\w+)\[(\d+)\]")
_WORD = re.compile(r"(\b[A-Za-z_]\w*\b)")


@dataclass(frozen=True)
class LayerList:
    """The layers of a language model, and the config's fields that say how many and which they are.

    Attributes:
        path: Of the list of modules.
        count: How many.
        depth: Name of the config's number of layers; ``""`` where it is another number.
        kinds: Name of the config's list of kinds; ``""`` where there is none, or just one kind in it.
        kind_of: The kind of each layer.
        window: How many tokens the config says that a window has; None where it says nothing.
    """

    path: str
    count: int
    depth: str = ""
    kinds: str = ""
    kind_of: tuple[str, ...] = field(default=(), repr=False)
    window: int | None = None

    def fields(self) -> dict[str, Any]:
        """Those that the source may name."""
        named = {self.depth: self.count, self.kinds: list(self.kind_of), _WINDOW: self.window}
        return {name: value for name, value in named.items() if name and value is not None}

    def constructed(self, texts: Sequence[str]) -> str | None:
        """A list of the layers whose constructors are ``texts``."""
        if len(texts) == self.count > 1 and len(set(texts)) == 1 and self.depth:
            return f"[{texts[0]} for _ in range(args.{self.depth})]"
        chosen = self.chosen(texts)
        return None if chosen is None else f"[{chosen} for kind in args.{self.kinds}]"

    def chosen(self, texts: Sequence[str]) -> str | None:
        """One expression for texts that follow from the layers' kinds, where they do."""
        if not self.kinds or len(texts) != self.count:
            return None
        by_kind = dict(zip(self.kind_of, texts, strict=True))
        if any(by_kind[kind] != text for kind, text in zip(self.kind_of, texts, strict=True)):
            return None
        if len(set(by_kind.values())) != 2 or len(by_kind) != 2:
            return None
        (kind, one), (_, other) = by_kind.items()
        return _either(kind, one, other)

    def caches(self, texts: Sequence[str]) -> str | None:
        """A list of caches that follow from the kinds."""
        chosen = self.chosen([self._windowed(text, "self.args.") for text in texts])
        return None if chosen is None else f"[{chosen} for kind in self.args.{self.kinds}]"

    def _windowed(self, text: str, owner: str) -> str:
        if self.window is None:
            return text
        return re.sub(rf"\b((?:max|window)_size)={self.window}\b", rf"\1={owner}{_WINDOW}", text)

    def looped(self, lines: Sequence[Line], lists: Mapping[str, int]) -> list[Line] | None:
        """Statements (targets and expression) of which the calls of all layers are a loop; None where they are not."""
        called = f"{self.path.rpartition('.')[2]}[0]("
        start = next((at for at, (_, text) in enumerate(lines) if called in text), None)
        if not self.kinds or start is None:
            return None
        block = lines[start : start + self.count]
        if [_indices(text, lists) for _, text in block] != [{index} for index in range(self.count)]:
            return None
        loop = self._loop(block, lists)
        if loop is None:
            return None
        before = [(targets, self._of_kinds(text)) for targets, text in lines[:start]]
        return [*before, *loop, *lines[start + self.count :]]

    def _loop(self, block: Sequence[Line], lists: Mapping[str, int]) -> list[Line] | None:
        """One loop of a statement for each layer, whose words differ by its kind."""
        targets = block[0][0]
        if len({given for given, _ in block}) != 1 or len(targets) != 1:
            return None
        rows = [_WORD.split(_INDEX.sub(lambda m: f"{m[1]}[#]" if m[1] in lists else m[0], text)) for _, text in block]
        if len({len(row) for row in rows}) != 1:
            return None
        words, carried = [], ""
        for column in zip(*rows, strict=True):
            if len(set(column)) == 1:
                words.append(column[0])
            elif set(column[1:]) == {targets[0]}:  # the first layer takes what comes before
                carried = column[0]
                words.append(targets[0])
            elif (chosen := self.chosen(column)) is not None:
                words.append(chosen)
            else:
                return None
        text = "".join(words)
        used = list(dict.fromkeys(name for name in lists if f"{name}[#]" in text))
        names = {name: "c" if name == "cache" else "layer" for name in used}
        if len(set(names.values())) != len(names):
            return None
        for name, variable in names.items():
            text = text.replace(f"{name}[#]", variable)
        over = ", ".join([*used, f"self.{self.kinds}"])
        head = f"for {', '.join([*names.values(), 'kind'])} in zip({over}, strict=True):"
        first = [f"{targets[0]} = {carried}"] if carried else []
        return [((), line) for line in (*first, head, f"    {targets[0]} = {text}")]

    def _of_kinds(self, text: str) -> str:
        """Masks are made with the cache of the first layer of a kind."""
        found = re.search(r"create_\w+\([^()]*?cache\[(\d+)\]", text)
        if found is None:
            return text
        kind = self.kind_of[int(found[1])]
        if self.kind_of.index(kind) != int(found[1]):
            return text
        named = text.replace(f"cache[{found[1]}]", f"cache[self.{self.kinds}.index({kind!r})]", 1)
        return self._windowed(named, "self.")


def layer_list(captured: Captured, path: str) -> LayerList:
    """What config.json says of a list of layers."""
    config: Any = getattr(captured.modules[""], "config", None)
    given = config.to_dict() if hasattr(config, "to_dict") else {}
    count = len(list(captured.modules[path].children()))
    depth = [name for name in _DEPTHS if given.get(name) == count]
    kinds = [name for name in _KINDS if _are_kinds(given.get(name), count)]
    window = given.get(_WINDOW)
    return LayerList(
        path,
        count,
        depth[0] if depth else "",
        kinds[0] if kinds else "",
        tuple(given[kinds[0]]) if kinds else (),
        window if isinstance(window, int) and not isinstance(window, bool) and window > 2 else None,
    )


def _are_kinds(given: Any, count: int) -> bool:
    listed = isinstance(given, list | tuple) and len(given) == count > 2
    return listed and len(set(given)) == 2 and all(isinstance(kind, str) for kind in given)


def _indices(text: str, lists: Mapping[str, int]) -> set[int]:
    return {int(index) for name, index in _INDEX.findall(text) if name in lists}


def _either(kind: str, one: str, other: str) -> str:
    """``one`` for a kind, else ``other``; where one number differs, of that."""
    numbers = _NUMBER.findall(one), _NUMBER.findall(other)
    if _NUMBER.sub("#", one) == _NUMBER.sub("#", other) and one != "#":
        pairs = list(zip(*numbers, strict=True))
        differing = [place for place, (a, b) in enumerate(pairs) if a != b]
        if len(differing) == 1:
            places = iter(range(len(pairs)))
            a, b = pairs[differing[0]]
            return _NUMBER.sub(
                lambda m: f"{a} if kind == {kind!r} else {b}" if next(places) in differing else m[0], one
            )
    return f"{one} if kind == {kind!r} else {other}"


def spelled_list(values: Sequence[str]) -> str:
    """``(["a"] * 5 + ["b"]) * 4``: a list of words, shorter where it repeats."""
    for period in range(1, len(values) // 2 + 1):
        if len(values) % period == 0 and list(values) == list(values[:period]) * (len(values) // period):
            inner = spelled_list(values[:period])
            return f"({inner}) * {len(values) // period}" if " " in inner else f"{inner} * {len(values) // period}"
    runs = [(word, len(list(same))) for word, same in groupby(values)]
    if len(runs) > 4:
        return repr(list(values))
    return " + ".join(f"[{word!r}]" + (f" * {count}" if count > 1 else "") for word, count in runs)
