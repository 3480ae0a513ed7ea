"""Packed sequences: recurrent networks on padded batches with lengths, right for all lengths."""

from __future__ import annotations

import pytest
import torch
from comparing import compared, randomised
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import mlxport
from mlxport.errors import MlxportError


class Recurrent(nn.Module):
    def __init__(self, kind, batch_first=False, by_length=True, whole=False, **options):
        super().__init__()
        self.rnn = getattr(nn, kind)(3, 4, batch_first=batch_first, **options)
        self.batch_first, self.by_length, self.whole = batch_first, by_length, whole

    def forward(self, x, lengths, *states):
        packed = pack_padded_sequence(x, lengths, self.batch_first, enforce_sorted=not self.by_length)
        packed, last = self.rnn(packed, *states)
        total = x.shape[1 if self.batch_first else 0] if self.whole else None
        padded, same = pad_packed_sequence(packed, self.batch_first, total_length=total)
        return padded, same, last


def batch(lengths, steps, batch_first=False):
    x = torch.randn(len(lengths), steps, 3)
    return x if batch_first else x.transpose(0, 1).contiguous(), torch.tensor(lengths)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"batch_first": True, "bidirectional": True}),
        ("LSTM", {"num_layers": 2, "proj_size": 2, "by_length": False}),
        ("GRU", {"batch_first": True, "bidirectional": True, "num_layers": 2, "whole": True}),
        ("RNN", {"nonlinearity": "relu", "bias": False}),
    ],
)
def test_networks_on_lengths(kind, options):
    module = randomised(Recurrent(kind, **options))
    first = options.get("batch_first", False)
    example = batch([6, 4, 1], 6, first)
    ported = mlxport.port(module, example)
    compared(module, ported, example)
    compared(module, ported, batch([3, 2], 5, first))  # none of them fills the batch
    if options.get("by_length", True):
        compared(module, ported, batch([2, 7, 7, 1], 7, first))


def test_first_states_are_those_of_their_sequences():
    module = randomised(Recurrent("LSTM"))
    states = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    example = (*batch([4, 6, 1], 6), states)
    ported = mlxport.port(module, example)
    compared(module, ported, (*batch([1, 2, 6], 6), states))


def test_an_example_of_one_sequence():
    """States of two rows, which torch reads beyond for packed sequences, are not tried in their place."""
    module = randomised(Recurrent("LSTM", batch_first=True))
    ported = mlxport.port(module, (*batch([6], 6, True), (torch.randn(1, 1, 4), torch.randn(1, 1, 4))))
    compared(module, ported, (*batch([2, 4], 4, True), (torch.randn(1, 2, 4), torch.randn(1, 2, 4))))


class OfRows(nn.Module):
    """What is done to the rows themselves, as PyTorch's own page on packed sequences has it."""

    def __init__(self):
        super().__init__()
        self.linear, self.rnn = nn.Linear(3, 3), nn.GRU(3, 4, batch_first=True)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        rows = torch.relu(self.linear(packed.data))
        packed = PackedSequence(rows, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        return self.rnn(packed)[0].data


def test_rows_come_in_the_order_of_torch():
    module = randomised(OfRows())
    ported = mlxport.port(module, batch([4, 6, 1], 6, True))
    compared(module, ported, batch([2, 2, 5, 3], 5, True))


class Attention(nn.Module):
    def __init__(self, own_length):
        super().__init__()
        self.rnn, self.score, self.own_length = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 1), own_length

    def forward(self, x, lengths):
        packed, _ = self.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        padded, _ = pad_packed_sequence(packed, batch_first=True)
        steps = torch.arange((padded if self.own_length else x).shape[1])
        scores = self.score(padded)[..., 0].masked_fill(steps >= lengths[:, None], -torch.inf)
        return (scores.softmax(-1)[..., None] * padded).sum(1)


@pytest.mark.parametrize("own_length", [True, False])
def test_attention_over_what_was_unpacked(own_length):
    module = randomised(Attention(own_length))
    ported = mlxport.port(module, batch([4, 6, 1], 6, True))
    compared(module, ported, batch([2, 5], 5, True))
    if own_length:
        compared(module, ported, batch([2, 3], 5, True))


def test_lengths_that_are_numbers_are_fixed():
    module = randomised(Recurrent("GRU", batch_first=True))
    x, _ = batch([5, 2], 5, True)
    compared(module, mlxport.port(module, (x, [5, 2])), (x, [5, 2]))


def test_batch_sizes_are_refused():
    class Sizes(nn.Module):
        def forward(self, x, lengths):
            return pack_padded_sequence(x, lengths).batch_sizes.cumsum(0)

    with pytest.raises(MlxportError, match=r"batch_sizes of a packed sequence.*test_packed_sequences.py"):
        mlxport.port(Sizes().eval(), batch([5, 2], 5))


def test_batch_sizes_that_are_returned_are_refused():
    class Packed(nn.Module):
        def forward(self, x, lengths):
            return {"packed": pack_padded_sequence(x, lengths)}

    with pytest.raises(MlxportError, match=r"batch_sizes of a packed sequence are returned.*pad_packed_sequence"):
        mlxport.port(Packed().eval(), batch([5, 2], 5))
