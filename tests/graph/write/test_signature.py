"""What a port is called with: as Python takes the original's arguments, and no more than the example had."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import pytest
import torch
from torch import nn

import mlxport

T, X = torch.ones(3, 4), mx.ones((3, 4))


class Sum(nn.Module):
    def forward(self, *xs):
        return sum(xs)


class Joined(nn.Module):
    def forward(self, xs):
        return torch.cat(xs, -1)


class Looked(nn.Module):
    def forward(self, batch):
        return batch["x"] * batch.get("scale", 1)


class Nested(nn.Module):
    def forward(self, batch):
        return batch["x"] + sum(part for pair in batch["pairs"] for part in pair)


class Options(nn.Module):
    def forward(self, x, mask=None, shift=None, *, scale=1, **more):
        return (x if mask is None else x * mask) * scale + (0 if shift is None else shift) + sum(more.values())


class Named(nn.Module):
    def forward(self, x, *rest, scale=1, **more):
        return (x + sum(rest)) * scale + sum(more.values())


class ByPlace(nn.Module):
    def forward(self, x, y, /, z=None):
        return x - y if z is None else x - y * z


class Listed(nn.Module):
    def forward(self, x, **more):
        return x + more["a"] + sum(more["b"])


class Extended(nn.Module):
    def forward(self, x, others, named=None):
        return x + sum(others) + sum((named or {}).values())


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


@dataclass
class Bag:
    x: torch.Tensor
    items: list


class Unpacked(nn.Module):
    def forward(self, bag):
        return bag.x + sum(bag.items)


# Module, example, calls that it takes, calls that it refuses.
CALLS = {
    "*xs": (Sum(), ((T, T), {}), [((X, X), {})], [((X, X, X), {}), ((X,), {}), ((X, X), {"y": X})]),
    "no *xs": (Named(), ((T,), {}), [((X,), {})], [((X, X), {}), ((X,), {"scale": 2}), ((X,), {"other": X})]),
    "*xs and more": (
        Named(), ((T, T), {"scale": T, "extra": T}), [((X, X), {"scale": X, "extra": X})],
        [((X, X, X), {"scale": X, "extra": X}), ((X, X), {"scale": X}), ((X, X), {"scale": X, "extra": X, "last": X})],
    ),
    "a list": (
        Joined(), (([T, T],), {}), [(([X, X],), {}), (((X, X),), {})],
        [(([X] * 3,), {}), (([X],), {}), ((mx.ones((2, 3, 4)),), {})],
    ),
    "a long list": (Joined(), (([T] * 9,), {}), [(([X] * 9,), {})], [(([X] * 10,), {}), (([X] * 8,), {})]),
    "a list in *xs": (Unpacked(), ((Bag(T, [T, T]),), {}), [((Bag(X, [X, X]),), {})], [((Bag(X, [X, X, X]),), {})]),
    "a named tuple": (Joined(), ((Pair(T, T),), {}), [((Pair(X, X),), {}), (((X, X),), {})], [(((X, X, X),), {})]),
    "a dict": (
        Looked(), (({"x": T},), {}), [(({"x": X},), {}), ((OrderedDict(x=X),), {})],
        [(({"x": X, "scale": X},), {}), (({"scale": X},), {}), (({},), {}), ((X,), {})],
    ),
    "nested": (
        Nested(), (({"x": T, "pairs": [(T, T), [T]]},), {}), [(({"pairs": [[X, X], (X,)], "x": X},), {})],
        [(({"x": X, "pairs": [(X, X, X), [X]]},), {}), (({"x": X, "pairs": [(X, X), [X], [X]]},), {}),
         (({"x": X, "pairs": [(X, X), [X, X]]},), {}), (({"x": X, "pairs": {"a": X}},), {})],
    ),
    "nothing in a list": (Options(), ((T,), {"scale": 2, "mask": None}), [((X,), {}), ((X, None), {"scale": 2})],
                          [((X, X), {}), ((X,), {"mask": X}), ((X,), {"scale": 3}), ((X,), {"shift": X})]),
    "one left out before": (
        Options(), ((T,), {"shift": T}), [((X,), {"shift": X})],
        [((X, X), {}), ((X, X, X), {}), ((X,), {}), ((X,), {"shift": X, "scale": 2})],
    ),
    "by keyword only": (
        Options(), ((T, T, T), {"scale": T}), [((X, X, X), {"scale": X})], [((X, X, X, X), {}), ((X, X, X), {})],
    ),
    "by place only": (
        ByPlace(), ((T, T), {}), [((X, X), {})], [((X, X, X), {}), ((X,), {"y": X}), ((), {"x": X, "y": X})],
    ),
    "**more": (
        Listed(), ((T,), {"a": T, "b": [T, T]}), [((X,), {"a": X, "b": [X, X]})],
        [((X,), {"a": X, "b": [X]}), ((X,), {"a": X, "b": [X, X], "c": X}), ((X, X), {"b": [X, X]})],
    ),
    "empty": (
        Extended(), ((T, [], {}), {}), [((X, [], {}), {}), ((X, (), {}), {})],
        [((X, [X], {}), {}), ((X, [], {"a": X}), {}), ((X, []), {})],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    module, (args, kwargs), taken, refused = CALLS[name]
    port = mlxport.port(module.eval(), args, kwargs)
    wanted = module(*args, **kwargs)
    for given, named in taken:
        assert (port(*given, **named) == mx.array(wanted.numpy())).all()
    for given, named in refused:
        with pytest.raises((TypeError, ValueError)):
            port(*given, **named)


def test_what_is_said():
    port = mlxport.port(Nested().eval(), ({"x": T, "pairs": [(T, T), [T]]},))
    assert 'check_parts("batch", batch, {"x": ..., "pairs": [[..., ...], [...]]})' in port.source
    with pytest.raises(ValueError, match=r"batch\['pairs'\]\[1\] has the length 2: this port was made with 1"):
        port({"x": X, "pairs": [(X, X), [X, X]]})
    with pytest.raises(ValueError, match=r"batch has the keys \['x', 'y'\]: this port was made with \['x', 'pairs'\]"):
        port({"x": X, "y": X})
    with pytest.raises(TypeError, match="batch must be a dict, as this port was made with, not array"):
        port(X)
