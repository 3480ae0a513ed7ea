"""The table of ops: what it takes, and what it passes over."""

from __future__ import annotations

from typing import Any

import pytest

from mlxport.graph.lower import registry


def test_an_op_that_torch_dropped_is_passed_over_and_another_is_not(monkeypatch):
    """Programs that an older torch captures have it; a newer one must not fail for its absence."""
    key = "aten.no_such_op.default"

    def lowering(self: Any) -> Any:
        return self

    with pytest.raises(ValueError, match="has no operator"):
        registry.op(key)(lowering)
    monkeypatch.setattr(registry, "DROPPED", frozenset({key}))
    assert registry.op(key)(lowering) is lowering and key not in registry.LOWERINGS
