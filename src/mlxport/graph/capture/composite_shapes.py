"""Shapes of composite ops that torch finds by computing: sizes are fixed on the way (an LSTM unrolls), or wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["known_shapes"]

_KEYS = (torch._C.DispatchKey.CompositeImplicitAutograd, torch._C.DispatchKey.Autograd)


def _sequence(input: torch.Tensor, state: torch.Tensor, bidirectional: bool) -> torch.Tensor:
    """What a recurrent network gives for every step."""
    return input.new_empty(*input.shape[:-1], state.shape[-1] * (2 if bidirectional else 1))


def _lstm(
    input: torch.Tensor,
    hx: Sequence[torch.Tensor],
    params: Sequence[torch.Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, ...]:
    return _sequence(input, hx[0], bidirectional), hx[0].clone(), hx[1].clone()


def _rnn(
    input: torch.Tensor,
    hx: torch.Tensor,
    params: Sequence[torch.Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, ...]:
    return _sequence(input, hx, bidirectional), hx.clone()


def _take_along_dim(input: torch.Tensor, indices: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    if dim is None:
        return input.new_empty(indices.numel())
    lists = [list(input.shape), list(indices.shape)]
    for sizes in lists:
        sizes[dim] = 1
    shape = list(torch.broadcast_shapes(*lists))
    shape[dim] = indices.shape[dim]
    return input.new_empty(shape)


def _nll_loss_nd(
    self: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
) -> torch.Tensor:
    return self.new_empty(() if reduction else target.shape)  # torch: () for a dynamic number of rows


def _multilabel_margin_loss(self: torch.Tensor, target: torch.Tensor, reduction: int = 1) -> torch.Tensor:
    return self.new_empty(() if reduction else target.shape[:-1])  # torch: (1,) for one row


def _cdist(x1: torch.Tensor, x2: torch.Tensor, p: float = 2.0, compute_mode: int | None = None) -> torch.Tensor:
    lead = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
    return x1.new_empty(*lead, x1.shape[-2], x2.shape[-2])  # torch: one formula up to 25 rows, another beyond


def _shapes() -> dict[Any, Callable[..., Any]]:
    aten = torch.ops.aten
    return {
        aten.lstm.input: _lstm,
        aten.gru.input: _rnn,
        aten.rnn_tanh.input: _rnn,
        aten.rnn_relu.input: _rnn,
        aten.cdist.default: _cdist,
        aten.take_along_dim.default: _take_along_dim,
        aten.nll_loss_nd.default: _nll_loss_nd,
        aten.multilabel_margin_loss.default: _multilabel_margin_loss,
    }


@contextmanager
def known_shapes() -> Iterator[None]:
    """While it lasts, these ops give tensors of the right shapes and compute nothing."""
    shapes = _shapes()
    table = torch._decomp.decomposition_table
    saved = [(operator, operator.py_kernels.copy(), table.get(operator)) for operator in shapes]
    for operator, function in shapes.items():
        operator.py_kernels.update(dict.fromkeys(_KEYS, function))
        operator._dispatch_cache.clear()
        table[operator] = function
    try:
        yield
    finally:
        for operator, kernels, rule in saved:
            operator.py_kernels.clear()
            operator.py_kernels.update(kernels)
            operator._dispatch_cache.clear()
            if rule is None:
                del table[operator]
            else:
                table[operator] = rule
