"""A captured program: what capture hands to the passes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node

__all__ = ["Captured"]


@dataclass
class Captured:
    """A captured program: the graph that the passes rewrite, and what is known of the module that it came from.

    Attributes:
        graph: Functional ATen graph; placeholders are weights (see ``weights``) and user inputs.
        weights: Placeholder to the module's name of the parameter, buffer or constant.
        state: Name to tensor, on meta where the module was.
        trainable: Names that are parameters.
        inputs: Leaf placeholders of the user's inputs in the order of ``in_spec``; None for what is no tensor or size.
        values: Leaf values of the example inputs, in the same order.
        in_spec: Structure of (args, kwargs).
        outputs: Leaf outputs: nodes, or constants.
        out_spec: Structure of what the module returns.
        mutations: Name of a buffer, or placeholder of an input, that the module writes, and the node that it becomes.
        aliases: Name of a tensor in ``state`` to all names that the module has for it, tied ones included.
        modules: Path to module, for class names and attributes.
        signature: Signature of the module's forward.
        ranges: Symbol name to the lowest and highest size that torch.export and the tables allow.
        each_token: Path of each module that was captured for one token, which is called for each, to the axis along
            which its results are put together.
        lowest: Symbol name to the least size that it was found right for, where that is not 1.
        size_names: Symbol name to what the user calls the size.
        fixed: Leaf of the inputs and axis to why its size is fixed, as far as it is known.
        limits: What else the sizes must satisfy for the tables that are looked up.
    """

    graph: Graph
    weights: dict[Node, str]
    state: dict[str, torch.Tensor]
    trainable: frozenset[str]
    inputs: list[Node | None]
    values: list[Any]
    in_spec: Any
    outputs: list[Any]
    out_spec: Any
    modules: Mapping[str, torch.nn.Module]
    signature: inspect.Signature
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    lowest: dict[str, int] = field(default_factory=dict)
    size_names: dict[str, str] = field(default_factory=dict)
    fixed: dict[tuple[int, int], str] = field(default_factory=dict)
    limits: list[Any] = field(default_factory=list)
    mutations: list[tuple[str | Node, Node]] = field(default_factory=list)
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    each_token: Mapping[str, int] = field(default_factory=dict)

    def written(self) -> frozenset[str]:
        """All names of the parameters and buffers that the module writes while it runs."""
        names = [name for name, _ in self.mutations if isinstance(name, str)]
        return frozenset(other for name in names for other in self.aliases.get(name, (name,)))
