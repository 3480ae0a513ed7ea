"""The batch is taken apart and put together again, wherever its axis is."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import pytest

from mlxport.calibrate.paired_batch import PairedBatch, arrays_in, make_batch


class Named(NamedTuple):
    hidden: mx.array
    state: mx.array


@pytest.mark.parametrize(("sequences", "length"), [(3, 512), (3, 16), (7, 512), (25, 512), (32, 256), (61, 2048)])
def test_pieces_cover_each_half_and_differ_in_size(sequences, length):
    pieces = PairedBatch(sequences, length).pieces()
    assert [a for a, _ in pieces] == [0, *(b for _, b in pieces[:-1])] and pieces[-1][1] == sequences
    sizes = [b - a for a, b in pieces]
    assert min(sizes) >= 1 and len(set(sizes)) > 1


@pytest.mark.parametrize("sequences", [3, 7, 23])
def test_apart_and_together(sequences):
    batch = PairedBatch(sequences, 5)
    total = batch.total
    tree = (
        mx.random.normal((total, 5, 8)),
        {"second axis": mx.random.normal((4, total, 5, 8)), "flat": mx.random.normal((total * 5, 8))},
        [None, "causal", 3],
        Named(mx.random.normal((total, 8)), mx.random.normal((8, total))),
    )
    assert batch.splits(tree) and not batch.splits((mx.zeros((5, 5)), None))
    parts = [batch.cut(tree, half + a, half + b) for half in (0, sequences) for a, b in batch.pieces()]
    joined = batch.join(parts)
    assert isinstance(joined[3], Named) and joined[2] == [None, "causal", 3]
    for before, after in zip(arrays_in(tree), arrays_in(joined), strict=True):
        assert mx.array_equal(before, after).item()


def test_a_mask_is_left_alone():
    mask = mx.zeros((5, 5))
    assert PairedBatch(7, 5).cut(mask, 0, 3) is mask


def test_the_number_of_sequences_is_no_size_of_the_model():
    batch = make_batch(32, 256, {64, 62, 60 * 256})
    assert batch.sequences == 29 and batch.total not in {64, 62, 256}
