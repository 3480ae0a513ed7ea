"""What torch computes of packed sequences, from padded batches and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as _mx

from mlxport.graph.lower import packed_ops as _packed_ops  # noqa: F401  (torch knows the operators)
from mlxport.graph.lower.expr import Expr
from mlxport.graph.lower.helpers import packed as helper
from mlxport.graph.lower.helpers import recurrent
from mlxport.graph.lower.ops.recurrent import network_options
from mlxport.graph.lower.registry import UNBACKED, call, call_host, op

_NETWORKS: dict[str, tuple[Any, dict[str, str]]] = {
    "lstm": (recurrent.lstm, {}),
    "gru": (recurrent.gru, {}),
    "rnn_tanh": (recurrent.rnn, {}),
    "rnn_relu": (recurrent.rnn, {"activation": "relu"}),
}


def _order(batch_first: bool, by_length: bool) -> dict[str, bool]:
    return ({"batch_first": True} if batch_first else {}) | ({"by_length": True} if by_length else {})


@op("mlxport.packed_rows.default")
def packed_rows(x: Expr, lengths: Expr, batch_first: bool, by_length: bool) -> Expr:
    """Waits for the lengths."""
    made = _mx.zeros((UNBACKED, *x.value.shape[2:]), dtype=x.dtype)
    return call_host(helper.packed_rows, made, x, lengths, **_order(batch_first, by_length))


@op("mlxport.padded_rows.default")
def padded_rows(rows: Expr, lengths: Expr, length: Any, batch_first: bool, by_length: bool) -> Expr:
    """Zeros beyond each length."""
    return call(helper.padded_rows, rows, lengths, length, **_order(batch_first, by_length))


@op("mlxport.network_of_lengths.default")
def network_of_lengths(
    kind: str,
    x: Expr,
    lengths: Expr,
    hx: Sequence[Expr],
    params: Sequence[Expr],
    biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Expr:
    """As the network without lengths, with ``lengths=…``."""
    function, fixed = _NETWORKS[kind]
    options = network_options(biases, layers, dropout, train, bidirectional, batch_first)
    return call(function, x, *hx, list(params), **fixed, **options, lengths=lengths)
