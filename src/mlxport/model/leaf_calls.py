"""The calls of the layers that hold weights, computed elsewhere: linear, embeddings and experts.

``leaf_class`` gives a layer's calls to a ``LeafCalls``, which reads weights where they are, rounds them, measures what
they are given, or whatever else it is there for. The arithmetic that all of them need is in the functions below: blocks
of rows and experts come one at a time, and what is done with each is the caller's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

__all__ = [
    "MATRICES",
    "LeafCalls",
    "by_expert",
    "expert_products",
    "is_leaf",
    "leaf_class",
    "row_products",
    "table_rows",
]

MATRICES = (nn.Linear, SwitchLinear)  # layers that are a matrix, not packed

Rows = TypeVar("Rows")


class LeafCalls:
    """What computes the calls of one layer, without its bias."""

    def linear(self, x: mx.array) -> mx.array:
        """``x`` [..., columns] by the transpose of the weight: of a linear layer, or of embeddings as a head."""
        raise NotImplementedError

    def lookup(self, ids: mx.array) -> mx.array:
        """Rows of a table of embeddings."""
        raise NotImplementedError

    def experts(self, x: mx.array, indices: mx.array, ordered: bool) -> mx.array:
        """What ``mx.gather_mm`` computes; ``ordered`` says that the indices ascend."""
        raise NotImplementedError

    def done(self, output: mx.array) -> mx.array:
        """The result of a call, its bias added, on its way out."""
        return output


def _linear(calls: LeafCalls) -> dict[str, Callable[..., Any]]:
    def call(self: Any, x: mx.array) -> mx.array:
        output = calls.linear(x)
        return calls.done(output + self["bias"] if "bias" in self else output)

    return {"__call__": call}


def _table(calls: LeafCalls) -> dict[str, Callable[..., Any]]:
    return {
        "__call__": lambda self, ids: calls.done(calls.lookup(ids)),
        "as_linear": lambda self, x: calls.done(calls.linear(x)),
    }


def _experts(calls: LeafCalls) -> dict[str, Callable[..., Any]]:
    def call(self: Any, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        output = calls.experts(x, indices, sorted_indices)
        return calls.done(output + mx.expand_dims(self["bias"][indices], -2) if "bias" in self else output)

    return {"__call__": call}


_METHODS: Mapping[type, Callable[[LeafCalls], dict[str, Callable[..., Any]]]] = {
    nn.Linear: _linear,
    nn.QuantizedLinear: _linear,
    nn.Embedding: _table,
    nn.QuantizedEmbedding: _table,
    SwitchLinear: _experts,
    QuantizedSwitchLinear: _experts,
}


def is_leaf(module: Any) -> bool:
    """Whether the calls of a module can be handed over: it is one of these layers, not a class derived from them."""
    return type(module) in _METHODS


def leaf_class(module: Any, calls: LeafCalls) -> type:
    """A class for ``module`` that hands its calls to ``calls``."""
    cls = type(module)
    return type(cls.__name__, (cls,), _METHODS[cls](calls))


def row_products(blocks: Iterable[Rows], product: Callable[[Rows], mx.array]) -> mx.array:
    """The products by blocks of a matrix's rows, side by side; each core of a CPU works on one, on a GPU one is alive.

    Blocks are read where they are iterated over, so that what is done to one belongs to the core that multiplies it.
    """
    streams, waiting = _streams(), iter(blocks)
    parts: list[mx.array] = []
    while True:
        with mx.stream(streams[len(parts) % len(streams)]):
            block = next(waiting, None)
            if block is None:
                break
            parts.append(product(block))
            del block
            mx.async_eval(parts[-1])  # type: ignore[no-untyped-call]
        if len(parts) >= len(streams):
            mx.eval(parts[-len(streams)])
    if len(parts) > 1:
        mx.eval(parts)
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)


_local = threading.local()


def _streams() -> list[mx.Stream]:
    """This thread's: one a core, since MLX computes each stream of the CPU on one; of a GPU the default one."""
    if mx.default_device() != mx.Device(mx.cpu):
        return [mx.default_stream(mx.default_device())]
    if not hasattr(_local, "streams"):
        # The default one first: a matrix of one block has nothing to wait for on another thread.
        others = range(1, os.cpu_count() or 1)
        _local.streams = [mx.default_stream(mx.cpu), *(mx.new_stream(mx.cpu) for _ in others)]
    streams: list[mx.Stream] = _local.streams
    return streams


def table_rows(ids: mx.array, read: Callable[[int], mx.array]) -> tuple[mx.array, mx.array]:
    """The rows that are asked for, each read once, and where in them each id finds its own."""
    used, place = np.unique(np.array(ids), return_inverse=True)
    return mx.concatenate([read(int(row)) for row in used]), mx.array(place.reshape(ids.shape))


def by_expert(indices: mx.array, batch: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """Each expert that is used, and which entries of the flattened batch are its."""
    chosen = np.broadcast_to(np.array(indices), batch).reshape(-1)
    yield from ((int(expert), np.flatnonzero(chosen == expert)) for expert in np.unique(chosen))


def expert_products(
    x: mx.array, indices: mx.array, product: Callable[[int, mx.array, np.ndarray[Any, Any]], mx.array]
) -> mx.array:
    """What ``mx.gather_mm`` computes, one expert at a time: each entry of ``x`` by the matrix that its index names.

    Args:
        x: Inputs [..., rows, columns].
        indices: Experts, of a shape that broadcasts with the leading one of ``x``.
        product: Given an expert, its inputs [entries, rows, columns], and which of the flattened batch these are.
    """
    batch = np.broadcast_shapes(tuple(x.shape[:-2]), tuple(indices.shape))
    flat = mx.broadcast_to(x, (*batch, *x.shape[-2:])).reshape(-1, *x.shape[-2:])
    parts, places = [], []
    for expert, entries in by_expert(indices, batch):
        parts.append(product(expert, flat[mx.array(entries)], entries))
        mx.eval(parts[-1])
        places.append(entries)
    result = mx.concatenate(parts)[mx.array(np.argsort(np.concatenate(places)))]
    return result.reshape(*batch, *result.shape[-2:])
