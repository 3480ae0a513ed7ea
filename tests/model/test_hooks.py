"""Modules get other classes in one way, and have their own again whatever happens."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxport.model.hooks import answering, hooked, swap_classes, swapped, watching


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.layers = [nn.Linear(4, 4), nn.Linear(4, 4)]

    def __call__(self, ids: mx.array) -> mx.array:
        x = self.table(ids)
        for layer in self.layers:
            x = layer(x)
        return self.table.as_linear(x)


@pytest.fixture
def model() -> Model:
    mx.random.seed(3)
    return Model()


def kinds(model: nn.Module) -> list[type]:
    return [type(module) for _, module in model.named_modules()]


def double(_, __, call, args, kwargs):
    return 2 * call(*args, **kwargs)


def test_calls_are_answered_while_the_context_lasts(model):
    ids = mx.array([[1, 5]])
    plain, before = model(ids), kinds(model)
    with hooked(model.layers, double):
        assert isinstance(model.layers[0], nn.Linear) and type(model.layers[0]).__name__ == "Linear"
        # a layer doubled, then the next one of that: without biases, the whole is four times as large
        for layer in model.layers:
            layer.bias = mx.zeros_like(layer.bias)
        inside = model(ids)
    assert kinds(model) == before
    assert mx.allclose(inside, 4 * model(ids), atol=1e-5) and not mx.allclose(inside, plain)


@pytest.mark.parametrize("way", ["swapped", "hooked", "watching"])
def test_classes_are_restored_after_an_exception(model, way):
    before = kinds(model)
    contexts = {
        "swapped": lambda: swapped([(layer, answering(nn.Linear, double)) for layer in model.layers]),
        "hooked": lambda: hooked([*model.layers, model.table], double),
        "watching": lambda: watching(model, lambda _: True, lambda *_: None),
    }
    with pytest.raises(ZeroDivisionError), contexts[way]():
        assert kinds(model) != before
        model(mx.array([[0]]))
        raise ZeroDivisionError
    assert kinds(model) == before


def test_one_within_the_other_and_one_module_twice(model):
    layer, before = model.layers[0], kinds(model)
    x = mx.ones((1, 4))
    plain = layer(x)
    with hooked([layer], double), hooked([layer, layer], double):
        assert mx.allclose(layer(x), 4 * plain)
    assert kinds(model) == before
    one, other = answering(nn.Linear, double), answering(nn.Linear, lambda *_: None)
    undo = swap_classes([(layer, other), (layer, one)])
    assert type(layer) is one and mx.allclose(layer(x), 2 * plain)
    undo()
    assert type(layer) is nn.Linear


def test_watching_names_paths_a_head_and_what_was_given(model):
    found = []
    with watching(model, lambda path: path != "layers.1", lambda *call: found.append(call)):
        result = model(mx.array([[2, 3]]))
    assert [(path, kind) for path, kind, _, _ in found] == [
        ("table", "Embedding"), ("layers.0", "Linear"), ("table.as_linear", "Embedding"), ("", "Model"),
    ]  # fmt: skip
    assert found[-1][3] is result and mx.array_equal(found[0][2][0][0], mx.array([[2, 3]]))


def test_a_shared_module_has_the_first_of_its_paths(model):
    model.layers[1] = model.layers[0]
    paths = []
    with watching(model, bool, lambda path, *_: paths.append(path)):
        model(mx.array([[2]]))
    first = next(path for path, module in model.named_modules() if module is model.layers[0])
    assert paths == ["table", first, first, "table.as_linear"] and type(model.layers[0]) is nn.Linear
