"""``torch.no_grad``, ``enable_grad`` and ``set_grad_enabled`` in a forward: a port has no gradients to switch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch._export.passes import replace_set_grad_with_hop_pass as switches
from torch.fx import GraphModule

__all__ = ["gradient_switches_left_out"]


@contextmanager
def gradient_switches_left_out() -> Iterator[None]:
    """Within, torch.export makes no graph of its own of what stands between two switches."""
    with patch.object(switches, "replace_set_grad_with_hop_pass", _without_switches):
        yield


def _without_switches(module: GraphModule, signature: Any) -> tuple[GraphModule, Any]:
    for part in module.modules():
        if isinstance(part, GraphModule):
            for node in list(part.graph.nodes):
                if node.op == "call_function" and node.target is torch._C._set_grad_enabled:
                    part.graph.erase_node(node)
            part.recompile()
    return module, signature
