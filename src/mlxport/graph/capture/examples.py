"""Example inputs: their names, a second set of other sizes, and how they are stored."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
import sympy
import torch
from torch.nn.attention.flex_attention import BlockMask
from torch.utils import _pytree as pytree

from mlxport.errors import UsageError
from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.dataclass_inputs import register_dataclasses
from mlxport.graph.capture.example_values import values_like
from mlxport.graph.capture.guards import size_rules
from mlxport.graph.capture.input_names import input_leaves, named_leaves
from mlxport.graph.capture.sizes_of_one import input_symbols

__all__ = ["Example", "leaf_names", "other_sizes", "output_arrays", "output_leaves"]

# How each dynamic size of the second set follows from the example's; the first that the original takes is used.
_CHANGES: tuple[Any, ...] = (
    lambda size: size + 3,
    lambda size: size + 2,
    lambda size: size + 1,
    lambda size: 2 * size,
    lambda size: size + 16,
    lambda size: size + 32,
    lambda size: 3 * size,
    lambda size: size - 1,
)


@dataclass(frozen=True)
class Example:
    """Inputs of one call.

    Attributes:
        name: What distinguishes it, for reports.
        args: Positional inputs.
        kwargs: Keyword inputs.
    """

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def given(cls, *inputs: Any) -> Example:
        """The example of what a user gives: a tuple or list of arguments, a dict of keyword arguments, one argument.

        Raises:
            UsageError: There are two of a kind, or it holds arrays that are not torch's.
        """
        args: tuple[Any, ...] | None = None
        kwargs: dict[str, Any] | None = None
        for item in inputs:
            if isinstance(item, Mapping):
                _once(kwargs, "keyword arguments (a dict)")
                kwargs = dict(item)
            else:
                _once(args, "positional arguments")
                args = tuple(item) if isinstance(item, tuple | list) else (item,)
        example = cls("example", args or (), kwargs or {})
        register_dataclasses((example.args, example.kwargs))
        _check_leaves(example)
        return example.copied()

    def copied(self, dtype: torch.dtype | None = None) -> Example:
        """The same inputs in tensors and containers of their own, floating-point ones in ``dtype``."""

        def own(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return copy.deepcopy(value)
            value = value.detach().clone()
            return value.to(dtype) if dtype is not None and value.is_floating_point() else value

        return Example(self.name, *pytree.tree_map(own, (self.args, self.kwargs)))


def _once(given: Any, what: str) -> None:
    if given is not None:
        raise UsageError(
            f"the example has {what} twice", hint="give (args, kwargs): a tuple of inputs and a dict of named ones"
        )


def _check_leaves(example: Example) -> None:
    """Refuse keys that are no names, and arrays that torch.export would take for constants."""
    if strange := [key for key in example.kwargs if not isinstance(key, str)]:
        raise UsageError(
            f"the example's keyword arguments have {strange[0]!r} for a name",
            hint="give a dict argument in a tuple: (inputs,)",
        )
    for leaf in pytree.tree_leaves((example.args, example.kwargs)):
        if isinstance(leaf, mx.array | np.ndarray):
            kind = "an mx.array" if isinstance(leaf, mx.array) else "a NumPy array"
            raise UsageError(
                f"the example holds {kind} of shape {leaf.shape}, expected torch tensors",
                hint="torch.from_numpy(numpy.array(x)) makes a tensor of it",
            )
        if isinstance(leaf, BlockMask):
            raise UsageError(
                "the example holds a BlockMask, which is made of a function and cannot be an input of a port",
                hint="make it in the module: create_block_mask(...) in __init__ or in forward",
            )
        if isinstance(leaf, torch.Tensor) and leaf.is_meta:
            raise UsageError(
                f"the example holds a tensor of shape {tuple(leaf.shape)} on the meta device, which has no values",
                hint="give one with values: torch.randn(...)",
            )


def leaf_names(signature: inspect.Signature, example: Example) -> dict[str, Any]:
    """Leaves of the inputs by the name of their parameter and, where it is nested, their place in it."""
    return input_leaves(signature, example.args, example.kwargs)


def output_leaves(value: Any) -> dict[str, Any]:
    """Arrays or tensors of an output by their place: ``last_hidden_state``, ``1``, ``output`` for a single one."""
    return {name.removeprefix("output."): leaf for name, leaf in named_leaves("output", value)}


def output_arrays(value: Any) -> dict[str, mx.array]:
    """The arrays of a port's output by their place."""
    return {name: leaf for name, leaf in output_leaves(value).items() if isinstance(leaf, mx.array)}


def other_sizes(captured: Captured) -> Iterator[Example]:
    """Inputs of other sizes and values, one candidate after the other; at last of the example's own sizes."""
    symbols = input_symbols(captured.inputs)
    rules = size_rules(captured, list(symbols))
    generator = torch.Generator().manual_seed(1)
    for change in (*(_CHANGES if symbols else ()), None):
        sizes = {symbol: rules[symbol].nearest(change(size)) for symbol, size in symbols.items()} if change else {}
        shapes = _shapes(captured, sizes)
        if shapes is None:
            continue
        pairs = list(zip(captured.values, shapes, strict=True))
        scaled = {old: new for value, shape in pairs if shape for old, new in zip(value.shape, shape, strict=True)}
        leaves = [value if shape is None else values_like(value, shape, generator, scaled) for value, shape in pairs]
        args, kwargs = pytree.tree_unflatten(leaves, captured.in_spec)
        yield Example("other sizes" if sizes else "other values", args, kwargs)


def _shapes(captured: Captured, sizes: Mapping[sympy.Symbol, int]) -> list[tuple[int, ...] | None] | None:
    """The shape of each leaf (None where it is no tensor); None if a size would not be a positive whole number."""
    shapes: list[tuple[int, ...] | None] = []
    for node, value in zip(captured.inputs, captured.values, strict=True):
        if node is None or not isinstance(value, torch.Tensor):
            shapes.append(None)
            continue
        shape = []
        for size in node.meta["val"].shape:
            try:
                number = size.node.expr.subs(sizes) if isinstance(size, torch.SymInt) else sympy.Integer(size)
            except ZeroDivisionError:
                return None
            if not number.is_Integer or number < 0:
                return None
            shape.append(int(number))
        shapes.append(tuple(shape))
    return shapes
