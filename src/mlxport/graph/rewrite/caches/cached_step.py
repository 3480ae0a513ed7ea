"""The program of a step of generation: which of its inputs are tokens, which is remembered of each layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sympy
import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.origin import raised_at
from mlxport.graph.lower import cache_ops
from mlxport.graph.lower.token_ops import is_on_cache
from mlxport.graph.rewrite.fuse.values import Values
from mlxport.graph.rewrite.graph_queries import shape

__all__ = ["SOURCES", "CacheKind", "CachedStep", "NotCached", "read_step"]

SOURCES = ("input_ids", "input_features", "input_values")  # what an encoder reads: tokens, spectra, samples


class NotCached(Exception):
    """A program that cannot be written on mlx-lm's caches; says why."""

    @classmethod
    def raised(cls, error: Exception) -> NotCached:
        """For what the model's own code raised, in one line."""
        if isinstance(error, GuardOnDataDependentSymNode):
            own = raised_at(error)
            place = "" if own is None else f" ({Path(own.filename).name}:{own.lineno})"
            return cls(f"what it computes{place} depends on values that are known only when it runs")
        return cls(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


@dataclass(frozen=True)
class CacheKind:
    """What mlx-lm keeps for one layer.

    Attributes:
        window: Tokens that attention sees, None for all: ``RotatingKVCache(max_size=window)``.
        chunk: Tokens that see each other alone, None for all: ``ChunkedKVCache(chunk_size=chunk)``.
        states: Arrays that are kept in the place of keys and values: ``ArraysCache(size=states)``.
        stepped: Whether a module of the layer is called for each token: it needs a cache to carry its states.
        both: Whether keys and values are kept beside states: ``CacheList`` of the states' cache and theirs.
        indexes: Whether keys of an index are kept beside keys and values: ``CacheList`` of two ``KVCache``.
    """

    window: int | None = None
    chunk: int | None = None
    states: int = 0
    both: bool = False
    stepped: bool = False
    indexes: bool = False

    @property
    def sees(self) -> str:
        """What attention sees, in words."""
        if self.chunk is not None:
            return f"those of its chunk of {self.chunk}"
        return "all tokens before" if self.window is None else f"the last {self.window} tokens"


@dataclass
class CachedStep:
    """A captured program of ``(input_ids, cache)``, or of ``(source, decoder_input_ids, cache)``.

    Attributes:
        captured: The program.
        values: Computes its parts.
        ids: Placeholder of the token ids [batch, length].
        source: Placeholder of what an encoder reads, tokens or features; None where there is no encoder.
        layers: Number of the layer to the placeholders of what its cache holds, by the name that transformers has.
        length: Symbol of the number of new tokens.
        past: Symbol of the number of tokens before, None where nothing is as long as these.
        caches: Placeholder of the list of caches.
        source_name: What the model calls what its encoder reads.
        scope: Modules, as of ``nn_module_stack``, in whose call all layers lie.
        kinds: Number of the layer to what mlx-lm keeps of it.
    """

    captured: Captured
    values: Values
    ids: Node
    source: Node | None
    layers: Mapping[int, Mapping[str, Node]]
    length: Any
    past: Any
    caches: Node
    source_name: str = ""
    scope: dict[str, Any] = field(default_factory=dict)
    kinds: dict[int, CacheKind] = field(default_factory=dict)
    _entries: dict[tuple[int, str], Node] = field(default_factory=dict)

    @property
    def first(self) -> Node:
        """The first op of the original within ``scope``: what all layers share is computed before it, in order."""
        depth = len(self.scope)
        return next(
            node
            for node in self.captured.graph.nodes
            if node.op == "call_function"
            and len(node.meta.get("nn_module_stack") or {}) >= depth
            and not is_on_cache(node)
        )

    def fake(self, sizes: tuple[Any, ...], dtype: torch.dtype) -> torch.Tensor:
        """A fake value for a node that is written."""
        like = self.ids.meta["val"]
        with like.fake_mode:
            return torch.empty(sizes, dtype=dtype, device=like.device)

    def shared(self, target: Callable[..., Any], *args: Any, val: Any, argument: str = "", variable: str = "") -> Node:
        """A new node that all layers may use.

        Args:
            target: The op.
            args: Its arguments.
            val: Its fake value.
            argument: What the modules that it is handed to call it.
            variable: What it is called where it is made, if not so.
        """
        with self.captured.graph.inserting_before(self.first):
            node = self.captured.graph.call_function(target, args)
        node.meta = {"nn_module_stack": self.scope, "stack_trace": "", "val": val}
        node.meta["stays"] = target is not cache_ops.entry  # caches move while the layers run
        if argument:
            node.meta |= {"argument": argument, "variable": variable or argument}
        return node

    def cache(self, layer: int, states: bool = False) -> Node:
        """The cache of a layer's keys and values, or that of its states, for the layer itself."""
        key = (layer, "states" if states else "keys")
        if key not in self._entries:
            self._entries[key] = self.entry(layer, states)
        return self._entries[key]

    def index_cache(self, layer: int) -> Node:
        """The cache of the keys of a layer's index."""
        place = (self.place(layer)[0], 1)  # after that of its keys and values, as in mlx-lm's models
        if (layer, "index") not in self._entries:
            value = self.fake((), torch.int64)
            made = self.shared(cache_ops.entry, self.caches, *place, val=value, argument="index_cache")
            self._entries[layer, "index"] = made
        return self._entries[layer, "index"]

    def entry(self, layer: int, states: bool = False) -> Node:
        """The cache of a layer's keys and values, or that of its states, as an expression of its own."""
        argument = "state_cache" if states and self.both(layer) else "cache"
        if states and self.source is not None:
            argument = "encoded"
        value = self.fake((), torch.int64)
        return self.shared(cache_ops.entry, self.caches, *self.place(layer, states), val=value, argument=argument)

    def place(self, layer: int, states: bool = False) -> tuple[int, ...]:
        """Where a cache lies in the list: a layer that has two has that of the states first, as mlx-lm's."""
        index = sorted(self.layers).index(layer)  # layers that remember nothing have no cache
        if self.index(layer) is not None:
            return (index, 0)
        return (index, int(not states)) if self.both(layer) else (index,)

    def both(self, layer: int) -> bool:
        """Whether a layer has states, or what an encoder gave, beside its keys and values."""
        return self.source is not None or "keys" in self.layers[layer] and bool(self.states(layer))

    def states(self, layer: int) -> dict[str, Node]:
        """The placeholders of a layer's states by name: not keys and values, nor numbers that a cache counts with."""
        held = self.layers[layer].items()
        index = self.index(layer)
        return {
            name: node
            for name, node in held
            if name not in ("keys", "values") and node is not index and len(shape(node)) > 1
        }

    def index(self, layer: int) -> Node | None:
        """The placeholder of the keys of a layer's index: beside keys and values, [batch, tokens before, width]."""
        held = self.layers[layer]
        return next(
            (
                node
                for name, node in held.items()
                if "keys" in held and name not in ("keys", "values") and len(shape(node)) == 3
                if isinstance(shape(node)[1], torch.SymInt) and _symbol(shape(node)[1]) == self.past
            ),
            None,
        )


def read_step(captured: Captured, folds: dict[str, Any], cache: Any) -> CachedStep:
    """What each input of a captured step is.

    Args:
        captured: The program, attention and rotary positions fused.
        folds: Constants that were folded before, by name.
        cache: The example's cache, of transformers.

    Raises:
        NotCached: A cache of unknown form, or sizes that came out fixed.
    """
    ids, source, named = _tokens(captured)
    layers: dict[int, dict[str, Node]] = {}
    for node, place in _places(captured, cache, (ids, source)).items():
        if place is None:
            raise NotCached(f"its cache holds {node.name}, which belongs to no layer")
        layers.setdefault(place[0], {})[place[1]] = node
    length = shape(ids)[1]
    if isinstance(length, int):
        raise NotCached("the number of new tokens came out fixed")
    keys = next((held["keys"] for held in layers.values() if "keys" in held), None)
    past = None if keys is None else shape(keys)[2]
    if isinstance(past, int):
        raise NotCached("the number of tokens before came out fixed")
    graph = captured.graph
    with graph.inserting_before(next(iter(graph.nodes))):
        caches = graph.placeholder("cache")
    values = Values(captured, folds)
    step = CachedStep(captured, values, ids, source, layers, _symbol(length), past and _symbol(past), caches, named)
    caches.meta = {"val": step.fake((), torch.int64), "argument": "cache", "variable": "cache"}
    return step


def _symbol(size: Any) -> sympy.Expr:
    return size.node.expr


def _tokens(captured: Captured) -> tuple[Node, Node | None, str]:
    """The placeholder of the new tokens, and that of what an encoder reads, with its name."""
    named = {re.sub(r"_\d+$", "", node.name): node for node in captured.inputs if node is not None}
    source = next((name for name in SOURCES if name in named), None)
    if source is None:
        raise NotCached("it takes no input_ids")
    if "decoder_input_ids" in named:
        return named["decoder_input_ids"], named[source], source
    return named[source], None, ""


def _places(captured: Captured, cache: Any, tokens: tuple[Node | None, ...]) -> dict[Node, tuple[int, str] | None]:
    """Each placeholder of the cache, with the number of its layer and its name there."""
    known: dict[int, tuple[int, str]] = {}
    for number, layer in enumerate(cache.layers):
        for name, held in vars(layer).items():
            parts = held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else [held]
            for index, tensor in enumerate(parts):
                if isinstance(tensor, torch.Tensor):
                    known[id(tensor)] = (number, name if len(list(parts)) == 1 else f"{name}_{index}")
    pairs = zip(captured.inputs, captured.values, strict=True)
    return {
        node: known.get(id(value))
        for node, value in pairs
        if node is not None and isinstance(value, torch.Tensor) and node not in tokens
    }
