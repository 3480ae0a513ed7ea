"""Operators on padded batches and their lengths, which stand for what torch computes of packed sequences.

A packed sequence has as many rows as all lengths together, which no export knows. The padded batch that it was made of
has known sizes; rows are taken from it only where somebody asks for them. Each has its meaning in torch beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mlxport.graph.lower.whole_operator import whole_operator

__all__ = ["network_of_lengths", "packed_rows", "padded_rows"]


def _order(lengths: torch.Tensor, by_length: bool) -> torch.Tensor:
    """The sequences in the order in which torch packs them."""
    return lengths.sort(descending=True, stable=True).indices if by_length else torch.arange(len(lengths))


def _packed_rows_sizes(x: Any, lengths: Any, batch_first: bool, by_length: bool) -> Any:
    return x.new_empty((torch.library.get_ctx().new_dynamic_size(), *x.shape[2:]))


@whole_operator("(Tensor x, Tensor lengths, bool batch_first, bool by_length) -> Tensor", _packed_rows_sizes)
def packed_rows(x: torch.Tensor, lengths: torch.Tensor, batch_first: bool, by_length: bool) -> torch.Tensor:
    """The rows of ``x`` [T, B, …] within the lengths [B], step by step; ``by_length``: the longest sequence first."""
    x = x.transpose(0, 1) if batch_first else x
    order = _order(lengths, by_length)
    return x[:, order][torch.arange(len(x))[:, None] < lengths[order]]


def _padded_rows_sizes(rows: Any, lengths: Any, length: Any, batch_first: bool, by_length: bool) -> Any:
    batch = lengths.shape[0]
    return rows.new_empty((batch, length, *rows.shape[1:]) if batch_first else (length, batch, *rows.shape[1:]))


@whole_operator(
    "(Tensor rows, Tensor lengths, SymInt length, bool batch_first, bool by_length) -> Tensor", _padded_rows_sizes
)
def padded_rows(
    rows: torch.Tensor, lengths: torch.Tensor, length: int, batch_first: bool, by_length: bool
) -> torch.Tensor:
    """The batch [T, B, …] of which ``rows`` are the ``packed_rows``, zeros beyond each length."""
    order = _order(lengths, by_length)
    made = rows.new_zeros((length, len(lengths), *rows.shape[1:]))
    made[torch.arange(length)[:, None] < lengths[order]] = rows
    made = made[:, order.argsort()]
    return made.transpose(0, 1).contiguous() if batch_first else made


def _network_sizes(
    kind: str, x: Any, lengths: Any, hx: Sequence[Any], params: Any, biases: bool, layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool,
) -> Any:  # fmt: skip
    width = hx[0].shape[-1] * (2 if bidirectional else 1)
    return [x.new_empty((*x.shape[:2], width)), *(torch.empty_like(state) for state in hx)]


@whole_operator(
    "(str kind, Tensor x, Tensor lengths, Tensor[] hx, Tensor[] params, bool biases, int layers, float dropout, "
    "bool train, bool bidirectional, bool batch_first) -> Tensor[]",
    _network_sizes,
)
def network_of_lengths(
    kind: str, x: torch.Tensor, lengths: torch.Tensor, hx: list[torch.Tensor], params: list[torch.Tensor],
    biases: bool, layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool,
) -> list[torch.Tensor]:  # fmt: skip
    """Outputs and last states of ``lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu`` on sequences of these lengths.

    Zeros stand in the outputs beyond each length, and the last states are those after it.
    """
    axis = 0 if batch_first else 1
    order = _order(lengths, True)
    back = order.argsort()
    data, sizes = torch._VF._pack_padded_sequence(x.index_select(axis, order), lengths[order].cpu(), batch_first)
    states = [state.index_select(1, order) for state in hx]
    given = states if kind == "lstm" else states[0]
    options = (biases, layers, dropout, train, bidirectional)
    made, *last = getattr(torch._VF, kind)(data, sizes, given, params, *options)
    padded, _ = torch._VF._pad_packed_sequence(made, sizes, batch_first, 0.0, x.shape[1 - axis])
    return [padded.index_select(axis, back), *(state.index_select(1, back) for state in last)]
