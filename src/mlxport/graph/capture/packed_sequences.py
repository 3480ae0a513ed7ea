"""Packed sequences while a forward is captured: the padded batches and lengths that they were made of.

How many rows a packed sequence has depends on the lengths, and so does everything that torch computes of it. Recurrent
networks get the padded batch with its lengths instead; rows are taken from it where the forward reads them itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import rnn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from mlxport.graph.capture.replaced_calls import forward_replaced, replaced
from mlxport.graph.lower import packed_ops

__all__ = ["FittingStates", "PackedSequences"]

_NETWORKS = frozenset(["lstm", "gru", "rnn_tanh", "rnn_relu"])
_ARGUMENTS = 9  # rows, batch sizes, states, parameters, biases, layers, dropout, train, bidirectional


class FittingStates(TorchFunctionMode):  # type: ignore[misc]
    """While it is entered, states of wrong sizes are an error: torch, for packed sequences, reads other memory."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Look at the states of a network, and make the call."""
        if getattr(func, "__name__", "") in _NETWORKS and len(args) == _ARGUMENTS and _are_sizes(args[1]):
            states = [args[2]] if isinstance(args[2], torch.Tensor) else args[2]
            _check_states(func.__name__, states, args[3], (args[5] * (2 if args[8] else 1), int(args[1][0])))
        return func(*args, **(kwargs or {}))


@dataclass
class _Batch:
    """Of which sequences the steps of a packed sequence are: their lengths, the padded one, and torch's order."""

    lengths: torch.Tensor
    length: Any
    count: Any
    by_length: bool


@dataclass
class _Padded:
    """A padded batch, and whether zeros stand beyond the lengths."""

    x: torch.Tensor
    batch_first: bool
    clean: bool


class PackedSequences(TorchFunctionMode):  # type: ignore[misc]
    """While it is entered, packed sequences are padded batches with lengths."""

    def __init__(self) -> None:
        """Nothing packed yet."""
        super().__init__()
        self._batches = WeakTensorKeyDictionary()  # what stands for the batch sizes of a packed sequence
        self._padded = WeakTensorKeyDictionary()  # of its rows

    @contextmanager
    def of(self, module: torch.nn.Module) -> Iterator[None]:
        """Follow the calls within; batch sizes among what ``module`` returns raise NotImplementedError."""
        with (
            forward_replaced(module, lambda forward, *args, **kwargs: self._given(forward(*args, **kwargs))),
            replaced(rnn.pack_padded_sequence, self._pack),
            replaced(rnn.pad_packed_sequence, self._pad),
            replaced(torch.nn.RNNBase.get_expected_hidden_size, self._states_wanted),
            self,
        ):
            yield

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Make a call, or what it stands for."""
        name = getattr(func, "__name__", "")
        if len(args) == _ARGUMENTS and name in _NETWORKS and _is_in(args[1], self._batches):
            return self._network(name, *args)
        if args and _is_in(args[0], self._batches):
            return self._asked(func, *args)
        return func(*args, **(kwargs or {}))

    def _pack(
        self,
        original: Callable[..., Any],
        input: torch.Tensor,
        lengths: Any,
        batch_first: bool = False,
        enforce_sorted: bool = True,
    ) -> Any:
        if not torch.compiler.is_exporting():
            return original(input, lengths, batch_first, enforce_sorted)
        lengths = torch.as_tensor(lengths).to(torch.int64)
        steps, count = (input.shape[1], input.shape[0]) if batch_first else (input.shape[0], input.shape[1])
        if lengths.shape[0] != count:  # which also says that the two sizes are one
            raise ValueError(f"{count} sequences are packed by {lengths.shape[0]} lengths")
        batch = _Batch(lengths, steps, count, not enforce_sorted)
        return self._packed(_Padded(input, batch_first, False), batch, lengths.clone())

    def _packed(self, padded: _Padded, batch: _Batch, sizes: torch.Tensor) -> Any:
        self._batches[sizes] = batch
        return rnn.PackedSequence(self._rows(padded, batch), sizes)

    def _rows(self, padded: _Padded, batch: _Batch) -> torch.Tensor:
        rows = packed_ops.packed_rows(padded.x, batch.lengths, padded.batch_first, batch.by_length)
        self._padded[rows] = padded
        return rows  # type: ignore[no-any-return]

    def _spread(self, rows: torch.Tensor, batch: _Batch, batch_first: bool | None = None) -> _Padded:
        """The padded batch of some rows: that which they were taken from, where it is known."""
        padded = self._padded.get(rows)
        if padded is None:
            axes = bool(batch_first)
            x = packed_ops.padded_rows(rows, batch.lengths, batch.length, axes, batch.by_length)
            padded = _Padded(x, axes, True)
        if batch_first is not None and padded.batch_first is not batch_first:
            padded = _Padded(padded.x.transpose(0, 1), batch_first, padded.clean)
        return padded

    def _network(self, kind: str, rows: torch.Tensor, sizes: torch.Tensor, hx: Any, params: Any, *options: Any) -> Any:
        batch = self._batches[sizes]
        padded = self._spread(rows, batch)
        states = [hx] if isinstance(hx, torch.Tensor) else list(hx)
        _check_states(kind, states, params, (options[1] * (2 if options[4] else 1), batch.count))
        if rows.shape[-1] != params[0].shape[1]:
            raise ValueError(f"rows have {rows.shape[-1]} features, the {kind.upper()} takes {params[0].shape[1]}")
        given = (kind, padded.x, batch.lengths, states, list(params), *options, padded.batch_first)
        x, *last = packed_ops.network_of_lengths(*given)
        return self._rows(_Padded(x, padded.batch_first, True), batch), *last

    def _states_wanted(self, original: Callable[..., Any], layer: Any, rows: torch.Tensor, sizes: Any) -> Any:
        """The sizes of a layer's states; torch makes a number of that of the batch."""
        if not _is_in(sizes, self._batches):
            return original(layer, rows, sizes)
        count = layer.num_layers * (2 if layer.bidirectional else 1)
        return count, self._batches[sizes].count, layer.proj_size or layer.hidden_size

    def _pad(
        self,
        original: Callable[..., Any],
        sequence: Any,
        batch_first: bool = False,
        padding_value: float = 0.0,
        total_length: int | None = None,
    ) -> Any:
        batch = self._batches.get(sequence.batch_sizes)
        if batch is None:
            return original(sequence, batch_first, padding_value, total_length)
        padded = self._spread(sequence.data, batch, batch_first)
        x, axis = padded.x, 1 if batch_first else 0
        if not padded.clean or padding_value:
            steps = torch.arange(batch.length)
            within = (steps[None] < batch.lengths[:, None]) if batch_first else (steps[:, None] < batch.lengths)
            x = torch.where(within.reshape(*within.shape, *[1] * (x.ndim - 2)), x, padding_value)
        if total_length is None:
            x = _to_longest(x, batch.lengths, axis)
        elif total_length is not batch.length:
            x = torch.constant_pad_nd(x, [0, 0] * (x.ndim - 1 - axis) + [0, total_length - batch.length], padding_value)
        return x, batch.lengths.clone()

    def _given(self, output: Any) -> Any:
        """What a forward returns, which may not hold what stands for batch sizes."""
        if any(_is_in(leaf, self._batches) for leaf in pytree.tree_leaves(output)):
            raise NotImplementedError(
                "the batch_sizes of a packed sequence are returned, and no export knows them: "
                "return what pad_packed_sequence gives, or only its data"
            )
        return output

    def _asked(self, func: Callable[..., Any], sizes: torch.Tensor, *args: Any) -> Any:
        """What is asked of the batch sizes of a packed sequence."""
        batch, name = self._batches[sizes], getattr(func, "__name__", "")
        if func is torch.Tensor.__getitem__ and args == (0,):
            return batch.count
        if name in ("cpu", "to", "contiguous"):
            return sizes
        if name == "__get__":  # its device, its dtype
            return func(sizes, *args)
        raise NotImplementedError(
            "the batch_sizes of a packed sequence are read, and no export knows them: use the lengths it was made of"
        )


def _is_in(item: Any, known: WeakTensorKeyDictionary) -> bool:
    return isinstance(item, torch.Tensor) and item in known


def _are_sizes(item: Any) -> bool:
    """Whether these are batch sizes: in calls for padded batches, states stand in their place."""
    return isinstance(item, torch.Tensor) and not item.is_floating_point()


def _check_states(kind: str, states: Any, params: Any, rows: tuple[Any, Any]) -> None:
    """Raise ValueError for states that are not of these rows, and as wide as the network's parameters say."""
    widths = [params[1].shape[1], params[1].shape[0] // 4][: len(states)]
    for state, width in zip(states, widths, strict=True):
        for size, wanted in zip(state.shape, (*rows, width), strict=True):
            if size != wanted:
                raise ValueError(f"the {kind.upper()} takes states {[*rows, width]}, got {list(state.shape)}")


def _to_longest(x: torch.Tensor, lengths: torch.Tensor, axis: int) -> torch.Tensor:
    longest = lengths.max().item()
    torch._check(longest >= 1)
    torch._check(longest <= x.shape[axis])
    return x.narrow(axis, 0, longest)  # type: ignore[arg-type]
