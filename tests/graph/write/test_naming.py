"""Names of values: where a statement assigns several, each has the one that says what it is."""

from __future__ import annotations

import pytest
from torch.fx import Graph

from mlxport.graph.lower.fused_ops import attention
from mlxport.graph.write.naming import names_of_parts


@pytest.mark.parametrize(
    ("names", "wanted"),  # for values, then keys, as the program computes them
    [
        (("key_states", "value_states"), ["value_states", "key_states"]),
        (("k", "v"), ["k", "v"]),
        (("key_0", "key_1"), ["key_0", "key_1"]),
        (("key", "rest"), ["rest", "key"]),
        (("_", "_"), ["_", "_"]),
    ],
)
def test_values_that_leave_together(names, wanted):
    graph = Graph()
    query, value, key = (graph.placeholder(name) for name in "abc")
    graph.call_function(attention, (query, key, value))
    assert names_of_parts([value, key], names, in_order=True) == wanted
