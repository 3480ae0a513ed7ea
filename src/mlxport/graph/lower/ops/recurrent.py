"""Recurrent networks and their cells; of packed sequences in ``packed``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlxport.graph.lower.expr import Expr
from mlxport.graph.lower.helpers import recurrent as helper
from mlxport.graph.lower.registry import call, op, refuse


def network_options(
    has_biases: bool, num_layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool
) -> dict[str, Any]:
    """Keywords of a network's helper: those that are not its defaults."""
    refuse(train and dropout > 0 and num_layers > 1, "dropout between layers in training mode: the result is random")
    options: dict[str, Any] = {} if num_layers == 1 else {"layers": num_layers}
    if not has_biases:
        options["biases"] = False
    if bidirectional:
        options["bidirectional"] = True
    if batch_first:
        options["batch_first"] = True
    return options


def _states(hx: Expr | Sequence[Expr]) -> Sequence[Expr]:
    """An LSTM has two, of which torch makes one argument."""
    return [hx] if isinstance(hx, Expr) else hx


def _register(key: str, function: Callable[..., Any], **fixed: Any) -> None:
    """A network of several layers; an LSTM's projections are known by the number of parameters."""

    def network(
        input: Expr,
        hx: Expr | Sequence[Expr],
        params: Sequence[Expr],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Expr:
        options = network_options(has_biases, num_layers, dropout, train, bidirectional, batch_first)
        return call(function, input, *_states(hx), list(params), **fixed, **options)

    op(key)(network)


_register("aten.lstm.input", helper.lstm)
_register("aten.gru.input", helper.gru)
_register("aten.rnn_tanh.input", helper.rnn)
_register("aten.rnn_relu.input", helper.rnn, activation="relu")


def _register_cell(key: str, function: Callable[..., Any], **fixed: Any) -> None:
    """One step."""

    def cell(
        input: Expr,
        hx: Expr | Sequence[Expr],
        w_ih: Expr,
        w_hh: Expr,
        b_ih: Expr | None = None,
        b_hh: Expr | None = None,
    ) -> Expr:
        biases = [] if b_ih is None or b_hh is None else [b_ih, b_hh]
        return call(function, input, *_states(hx), w_ih, w_hh, *biases, **fixed)

    op(key)(cell)


_register_cell("aten.lstm_cell.default", helper.lstm_cell)
_register_cell("aten.gru_cell.default", helper.gru_cell)
_register_cell("aten.rnn_tanh_cell.default", helper.rnn_cell)
_register_cell("aten.rnn_relu_cell.default", helper.rnn_cell, activation="relu")
