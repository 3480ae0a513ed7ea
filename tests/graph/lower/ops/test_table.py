"""The table of lowerings as a whole: all of Core ATen, helpers that cannot be mistaken for each other."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest
import torch

from mlxport.graph.capture.export import export
from mlxport.graph.lower import helpers
from mlxport.graph.lower.one_function import MissingOps, flat_source
from mlxport.graph.lower.registry import LOWERINGS

# Core ops that neither have a lowering nor come apart, and why.
NOT_LOWERED = {
    "aten._adaptive_avg_pool2d_backward.default": "gradients",
    "aten.avg_pool2d_backward.default": "gradients",
    "aten.resize_.default": "in place: a captured graph is functional",
    "aten.sym_storage_offset.default": "where a view lies in memory",
}


def core_ops() -> list[torch._ops.OpOverload]:
    """Every overload that torch calls core."""
    found = []
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = name.partition("::")
        packet, _, overload = rest.partition(".")
        if namespace == "aten":
            op = getattr(getattr(torch.ops.aten, packet), overload or "default")
            if torch.Tag.core in op.tags:
                found.append(op)
    return found


def test_core_aten_is_covered():
    ops = core_ops()
    rules = {**torch._decomp.decomposition_table, **torch.export.default_decompositions()}
    missing = {str(op) for op in ops if str(op) not in LOWERINGS and op not in rules}
    assert len(ops) > 150
    assert missing == set(NOT_LOWERED)


def test_helpers_have_names_of_their_own():
    places: dict[str, set[str]] = {}
    for found in pkgutil.iter_modules(helpers.__path__):
        module = importlib.import_module(f"{helpers.__name__}.{found.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            places.setdefault(name, set()).add(function.__module__)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("function", [torch.rand_like, torch.bernoulli, lambda x: x + torch.randn(3)])
def test_random_numbers_are_refused(function):
    class Random(torch.nn.Module):
        def forward(self, x):
            return function(x)

    with pytest.raises(MissingOps, match="random: MLX draws other numbers"):
        flat_source(export(Random(), (torch.rand(3),)).graph)
