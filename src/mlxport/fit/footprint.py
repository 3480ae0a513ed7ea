"""What a model needs besides its weights to generate: caches, and the most memory that a step holds at once.

mlx-lm's own model runs on placeholders, its own caches say how large they are, and the recorded graph says what
evaluating it takes (``liveness``). Nothing is computed, so the weights need not be there.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxport.errors import UnsupportedError
from mlxport.fit.caches import PREFILL_STEP, arrays, filled, placed, quantize_caches, quantized_from
from mlxport.fit.liveness import VIEWS, Backend, peak_bytes
from mlxport.fit.recorded_graph import Graph, Node, record
from mlxport.fit.stand_ins import recordable
from mlxport.model.both_texts import has_encoder
from mlxport.run.kv import KVQuant, prompt_cache

__all__ = ["Footprint", "Need"]

# Where a graph grows with the number of tokens (a recurrence without a kernel of its own), that of a whole piece would
# take minutes; two short ones tell the slope.
_PROBES = (8, 16)
_SHORT = (16, 32)


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes besides the weights.

    Attributes:
        cache: What the caches hold once the context is full.
        peak: The most that is held at once, the caches included.
    """

    cache: int
    peak: int


@dataclass
class Footprint:
    """The needs of one model on one backend.

    Attributes:
        model: mlx-lm's model; its parameters may be unevaluated.
        backend: What it runs on.
        kv_bits: Bits of a quantized cache, None for none.
        kv_group_size: Its group size.
        prefill_step: Tokens of a prompt that are read at once.
        source: Tokens that an encoder has read; by default as many as the context that is asked for.
    """

    model: Any
    backend: Backend
    kv_bits: int | None = None
    kv_group_size: int = 64
    prefill_step: int = PREFILL_STEP
    source: int | None = None
    _needs: dict[int, Need] = field(default_factory=dict)
    _read: dict[int, Footprint] = field(default_factory=dict)
    _step: tuple[int, Graph] | None = None

    def __post_init__(self) -> None:
        self._names = [name for name, _ in tree_flatten(self.model.parameters())]
        self._values = [value for _, value in tree_flatten(self.model.parameters())]
        if self.source is None and has_encoder(self.model):
            return  # each context has needs of its own
        self._seen = self._caches()
        self._record(self._seen, 1, True)
        placed(self._seen, iter([mx.zeros(value.shape, value.dtype) for value in arrays(self._seen)]))

    @functools.cached_property
    def _loops(self) -> bool:
        """Whether the graph grows with the number of tokens."""
        few, more = (len(self._record(self._caches(), tokens, False).nodes) for tokens in _PROBES)
        return more > few

    def _having_read(self, context: int) -> Footprint:
        """The needs where an encoder has read as many tokens as are written; these ones where there is none."""
        if self.source is not None or not has_encoder(self.model):
            return self
        if context not in self._read:
            given = {name: getattr(self, name) for name in ("kv_bits", "kv_group_size", "prefill_step")}
            self._read[context] = Footprint(self.model, self.backend, **given, source=context)
        return self._read[context]

    def at(self, context: int) -> Need:
        """Needs of a prompt of ``context`` tokens, read in pieces, and of the tokens that follow it."""
        if (other := self._having_read(context)) is not self:
            return other.at(context)
        if context not in self._needs:
            cache, peak = self._decoding(context)
            if self.source is not None:  # the decoder itself begins with one token
                peaks = [self._peak(self._encoder)]
            else:
                peaks = [self._reading(*piece) for piece in self._pieces(context)]
            self._needs[context] = Need(cache, max([peak, *peaks]))
        return self._needs[context]

    def cache_at(self, context: int) -> int:
        """Bytes of the caches once the context is full; of ``at`` the part that takes no prompt to be read."""
        if (other := self._having_read(context)) is not self:
            return other.cache_at(context)
        return self._needs[context].cache if context in self._needs else self._decoding(context)[0]

    def read_shares(self, context: int) -> dict[str, float]:
        """Parameter name to the share of it that one token reads: of experts and embeddings not all."""
        graph = self._having_read(context)._decode_step(context)
        readers = _readers(graph)
        return {
            name: min(1.0, _bytes_read(graph, readers, key) / max(graph.nbytes(key), 1))
            for name, key in zip(self._names, graph.inputs[1:], strict=False)
        }

    def operations(self, context: int) -> int:
        """Operations of the step that fills the context, those that only make a view apart."""
        return sum(node.op not in VIEWS for node in self._having_read(context)._decode_step(context).nodes)

    def _decode_step(self, context: int) -> Graph:
        if self._step is None or self._step[0] != context:  # the last one only: a large model's takes megabytes
            self._step = (context, self._record(self._at(context - 1), 1, True))
        return self._step[1]

    def _pieces(self, context: int) -> list[tuple[int, int]]:
        """Offset and length of the pieces of a prompt that can need the most: the last, and the last unquantized."""
        whole, rest = divmod(context - 1, self.prefill_step)
        pieces = [((whole - 1) * self.prefill_step, self.prefill_step)] if whole else []
        pieces += [(whole * self.prefill_step, rest)] if rest else []
        start = quantized_from()
        if self.kv_bits is not None and context - 1 > start:
            offset = (start - 1) // self.prefill_step * self.prefill_step
            pieces.append((offset, min(self.prefill_step, context - 1 - offset)))
        return list(dict.fromkeys(pieces))

    def _reading(self, offset: int, tokens: int) -> int:
        if not self._loops or tokens <= max(_SHORT):
            return self._peak(self._record(self._at(offset), tokens, False))
        low, high = (self._peak(self._record(self._at(offset), short, False)) for short in _SHORT)
        return low + (high - low) * (tokens - _SHORT[0]) // (_SHORT[1] - _SHORT[0])

    def _decoding(self, context: int) -> tuple[int, int]:
        """Bytes of the caches after, and the peak of, the step that fills the context."""
        graph = self._decode_step(context)
        return sum(graph.nbytes(key) for key in graph.outputs[1:]), self._peak(graph)

    def _peak(self, graph: Graph) -> int:
        return peak_bytes(graph, self.backend, graph.inputs[1 : 1 + len(self._names)])

    def _caches(self) -> list[Any]:
        caches = prompt_cache(self.model, None if self.kv_bits is None else KVQuant(self.kv_bits, self.kv_group_size))
        if self.source is not None:
            self._encode(mx.zeros((1, self.source), mx.int32), caches)
        return caches

    def _encode(self, ids: mx.array, caches: list[Any]) -> None:
        with self._recordable():
            self.model.encode(ids, caches)

    @functools.cached_property
    def _encoder(self) -> Graph:
        """The graph of what an encoder reads."""
        from mlx_lm.models.cache import make_prompt_cache

        def step(ids: mx.array, *given: mx.array) -> list[mx.array]:
            self._load(list(given))
            caches = make_prompt_cache(self.model)
            self.model.encode(ids, caches)
            return arrays(caches)

        try:
            with self._recordable():
                return record(step, [mx.zeros((1, self.source or 0), mx.int32), *self._values])
        finally:
            self._load(self._values)

    def _at(self, tokens: int) -> list[Any]:
        caches = self._caches()
        if tokens:
            caches = filled(caches, self._seen, tokens)
            with self._recordable():
                quantize_caches(caches, self.kv_bits, self.kv_group_size)
            placed(caches, iter([mx.zeros(value.shape, value.dtype) for value in arrays(caches)]))
        return caches

    @contextlib.contextmanager
    def _recordable(self) -> Iterator[None]:
        """Third-party model code under placeholders: whatever it raises means that it cannot be planned for."""
        try:
            with recordable(self.backend.fused):
                yield
        except Exception as error:
            modules = (kind.__module__ for kind in type(self.model).__mro__)
            kind = next((name for name in modules if name.startswith("mlx_lm.models.")), "").rpartition(".")[2]
            quantized = "" if self.kv_bits is None else f" with a cache of {self.kv_bits} bits"
            reason = " ".join(str(error).split())[:300]
            raise UnsupportedError(
                f"mlx-lm's {kind} cannot be planned for{quantized}: {type(error).__name__}: {reason}",
                hint="`mlxport convert --dry-run` tells its size" if not quantized else "leave out --kv-bits",
            ) from error

    def _record(self, caches: list[Any], tokens: int, with_logits: bool) -> Graph:
        """The graph of reading ``tokens`` more: what mlx-lm evaluates of it."""
        count = len(self._names)

        def step(ids: mx.array, *given: mx.array) -> list[mx.array]:
            self._load(list(given[:count]))
            placed(caches, iter(given[count:]))
            logits = self.model(ids, cache=caches)
            quantize_caches(caches, self.kv_bits, self.kv_group_size)
            return [*([logits[:, -1, :]] if with_logits else []), *arrays(caches)]

        ids = mx.zeros((1, tokens), mx.int32)
        held = [mx.zeros(value.shape, value.dtype) for value in arrays(caches)]
        try:
            with self._recordable():
                return record(step, [ids, *self._values, *held])
        finally:
            self._load(self._values)

    def _load(self, values: list[mx.array]) -> None:
        self.model.load_weights(list(zip(self._names, values, strict=True)), strict=False)


def _bytes_read(graph: Graph, readers: Mapping[str, Sequence[Node]], parameter: str) -> int:
    """Bytes of an input that a graph reads, through any views of it: of tables and experts those that are chosen."""
    total, views = 0, [parameter]
    while views:
        key = views.pop()
        for node in readers.get(key, ()):
            if node.op in VIEWS and node.op != "Broadcast":
                views.extend(node.outputs)
            elif node.op == "Gather" and node.inputs[0] == key:
                total += sum(graph.nbytes(output) for output in node.outputs)
            elif node.op in ("GatherMM", "GatherQMM") and node.inputs[0] != key:
                experts = max(graph.shapes[key][0], 1)
                chosen = prod(graph.shapes[node.inputs[-1]])
                total += graph.nbytes(key) * min(chosen, experts) // experts
            else:
                total += graph.nbytes(key)
    return total


def _readers(graph: Graph) -> dict[str, list[Node]]:
    """Array to the operations that read it."""
    found: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for key in dict.fromkeys(node.inputs):
            found.setdefault(key, []).append(node)
    return found
