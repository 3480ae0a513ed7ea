"""Models that read their parameters when they use them: the same results, and one parameter in memory at a time."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlxport.model.memory import uncached
from mlxport.model.read_when_used import Unkept, read_when_used
from mlxport.parity.port_bisect import wrong_weights

WIDTH, LAYERS = 512, 6


class Stack(nn.Module):
    """Layers, a table that its owner looks into, and an embedding that is the head too."""

    def __init__(self):
        super().__init__()
        self.table, self.embed = nn.Embedding(8, WIDTH), nn.Embedding(32, WIDTH)
        self.layers = [nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
        self.shift = mx.ones((WIDTH,))

    def __call__(self, ids):
        x = self.embed(ids) + self.table.weight[ids % 8] + self.shift
        for layer in self.layers:
            x = layer(x)
        return self.embed.as_linear(x)


@pytest.fixture
def stored(tmp_path):
    """What reads the weights of a model in bfloat16, unevaluated."""
    model = Stack()
    model.set_dtype(mx.bfloat16)
    file = str(tmp_path / "model.safetensors")
    mx.save_safetensors(file, dict(tree_flatten(model.parameters())))
    return lambda: mx.load(file)


def loaded(stored):
    model = Stack()
    model.load_weights(list(stored().items()))
    return model


def test_it_computes_the_same_and_keeps_nothing(stored):
    ids, whole = mx.array([[3, 20, 9]]), loaded(stored)
    whole.set_dtype(mx.float32)
    model = read_when_used(loaded(stored), Unkept(stored))
    wanted = whole(ids)
    mx.eval(wanted)
    with uncached():
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        for _ in range(3):
            assert mx.allclose(model(ids), wanted, rtol=1e-2, atol=1e-2)
        assert mx.get_active_memory() - before < WIDTH * WIDTH
        assert mx.get_peak_memory() - before < 8 * WIDTH * WIDTH  # one as it is stored, and in float32


def test_a_stored_weight_that_is_wrong_is_named(stored):
    changed = Unkept(lambda: {**stored(), "layers.2.weight": 2 * stored()["layers.2.weight"]})
    assert wrong_weights(read_when_used(loaded(stored), Unkept(stored)), Unkept(stored)) == []
    assert wrong_weights(read_when_used(loaded(stored), Unkept(stored)), changed) == ["layers.2.weight"]


def test_names_are_known_and_others_missing(stored):
    arrays = Unkept(stored)
    assert len(arrays) == len(list(arrays)) == 2 * LAYERS + 3 and "shift" in arrays
    assert arrays["shift"] is not arrays["shift"]
    with pytest.raises(KeyError):
        arrays["other"]
