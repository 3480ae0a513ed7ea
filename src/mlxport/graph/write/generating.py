"""What the source of a language model has beside, for mlx-lm to run it: its layers, its caches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mlxport.graph.capture.captured import Captured
from mlxport.graph.rewrite.caches.cached_step import CacheKind

__all__ = ["Generating", "generating", "with_cache"]

_UPDATE = re.compile(r"( *)(\w+, \w+) = (\w+)\.update_and_fetch\((.*)\)")

_IMPORTS = (
    "from mlx_lm.models.base import create_attention_mask, scaled_dot_product_attention",
    "from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache",
)


@dataclass(frozen=True)
class Generating:
    """Parts of the file that are the same for all language models.

    Attributes:
        call: Signature of the root's ``__call__`` and statements that come before its own.
        methods: Further methods of the root, indented.
        imports: From mlx-lm; those that are not used are taken out again.
        layer_count: How many caches there are.
    """

    call: tuple[str, list[str]]
    methods: str
    imports: tuple[str, ...]
    layer_count: int


def generating(captured: Captured, caches: Sequence[CacheKind]) -> Generating:
    """The parts for a model with these caches."""
    layers = _layers(captured, len(caches))
    methods = [
        *("@property", "def layers(self):", f"    return self.{layers}", ""),
        *("def make_cache(self):", f"    return {_made(caches)}"),
    ]
    call = "self, input_ids, cache=None", ["if cache is None:", "    cache = [None] * len(self.layers)"]
    return Generating(call, "\n".join(f"    {line}" if line else "" for line in methods), _IMPORTS, len(caches))


def _layers(captured: Captured, count: int) -> str:
    """Path of the list of the modules that the caches are of."""
    found = [
        path
        for path, module in captured.modules.items()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    return found[0]


def _made(caches: Sequence[CacheKind]) -> str:
    """The expression of a list of new caches."""
    if len(set(caches)) == 1:
        return f"[{_cache(caches[0])} for _ in self.layers]"
    return "[" + ", ".join(map(_cache, caches)) + "]"


def _cache(kind: CacheKind) -> str:
    if kind.states:
        return f"ArraysCache(size={kind.states})"
    return "KVCache()" if kind.window is None else f"RotatingKVCache(max_size={kind.window})"


def with_cache(lines: Sequence[str]) -> Iterator[str]:
    """Lines of a body, a cache updated where there is one: evaluation and training have none, as in mlx-lm."""
    for line in lines:
        found = _UPDATE.fullmatch(line)
        if found is None:
            yield line
            continue
        indent, names, cache, given = found.groups()
        if names != given:
            yield f"{indent}{names} = {given}"
        yield f"{indent}if {cache} is not None:"
        yield f"{indent}    {names} = {cache}.update_and_fetch({names})"
