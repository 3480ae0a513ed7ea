"""Graphs of known size: what is shared, given on, freed and held."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest

from mlxport.fit.liveness import CPU, METAL, peak_bytes
from mlxport.fit.recorded_graph import record

# One operation at a time: what is freed is freed at once.
SERIAL = replace(CPU, batch_dispatches=1, batches=0)
SIDE = 100
SIZE = 4 * SIDE**2


def peak(function, backend=SERIAL, resident=(), inputs=1):
    graph = record(function, [mx.zeros((SIDE, SIDE))] * inputs)
    return peak_bytes(graph, backend, [graph.inputs[index] for index in resident]) / SIZE


CASES = {
    "taken over": (lambda x: [mx.exp(x)], 1),
    "a chain": (lambda x: [mx.exp(mx.sin(mx.square(x)))], 1),
    "a product never is": (lambda x: [x @ x], 2),
    "the input stays": (lambda x: [mx.exp(x), x], 2),
    "two readers": (lambda x: [mx.exp(x) + mx.sin(x)], 2),
    "joined": (lambda x: [mx.concatenate([x, x])], 3),
    "another shape": (lambda x: [mx.exp(x.reshape(2 * SIDE, -1))], 1),
    "another order": (lambda x: [x.T.reshape(-1)], 2),
    "another width": (lambda x: [x.astype(mx.float16)], 1.5),
    "a part": (lambda x: [x[:50] @ x], 1.5),
    "wider by a view": (lambda x: [mx.broadcast_to(x[:1, :1], (SIDE, SIDE)) @ x], 2),
    "one step after another": (lambda x: [(x @ x) @ (x @ x.T)], 3),
}


@pytest.mark.parametrize("name", CASES)
def test_buffers(name):
    function, sizes = CASES[name]
    assert peak(function) == pytest.approx(sizes, abs=0.01)


def test_weights_are_not_counted():
    assert peak(lambda x, w: [mx.exp(x) @ w], resident=[1], inputs=2) == pytest.approx(2)
    assert peak(lambda x, w: [mx.exp(x) @ w], inputs=2) == pytest.approx(3)


def chain(x):
    for _ in range(50):
        x = x @ x
    return [x]


def test_what_is_freed_late():
    """The more batches are under way, the more is held; a batch ends by its operations or by its elements."""
    assert peak(chain) == 2
    assert [peak(chain, replace(SERIAL, batches=n)) for n in (1, 5)] == [3, 7]
    assert peak(chain, replace(SERIAL, batch_dispatches=8, batches=5)) == 6 * 4 + 1
    small = replace(METAL, batch_elements=SIDE**2)
    assert peak(chain, small) < peak(chain, METAL) == 51
