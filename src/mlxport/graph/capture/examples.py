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
from torch.utils import _pytree as pytree

from mlxport.errors import UsageError
from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.dataclass_inputs import register_dataclasses
from mlxport.graph.capture.guards import size_rules

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


def leaf_names(signature: inspect.Signature, example: Example) -> dict[str, Any]:
    """Leaves of the inputs by the name of their parameter and, where it is nested, their place in it."""
    bound = signature.bind(*example.args, **example.kwargs)
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            for key, inner in value.items():
                found.update(_named(key, inner))
        else:
            found.update(_named(name, value))
    return found


def _named(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    leaves, _ = pytree.tree_flatten_with_path(value)
    for path, leaf in leaves:
        parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
        yield ".".join([name, *parts]), leaf


def output_leaves(value: Any) -> dict[str, Any]:
    """Arrays or tensors of an output by their place: ``last_hidden_state``, ``1``, ``output`` for a single one."""
    return {name.removeprefix("output."): leaf for name, leaf in _named("output", value)}


def output_arrays(value: Any) -> dict[str, mx.array]:
    """The arrays of a port's output by their place."""
    return {name: leaf for name, leaf in output_leaves(value).items() if isinstance(leaf, mx.array)}


def other_sizes(captured: Captured) -> Iterator[Example]:
    """Inputs of other sizes and values, one candidate after the other; at last of the example's own sizes."""
    symbols = _symbols(captured)
    rules = size_rules(captured, list(symbols))
    generator = torch.Generator().manual_seed(1)
    for change in (*(_CHANGES if symbols else ()), None):
        sizes = {symbol: rules[symbol].nearest(change(size)) for symbol, size in symbols.items()} if change else {}
        shapes = _shapes(captured, sizes)
        if shapes is None:
            continue
        pairs = list(zip(captured.values, shapes, strict=True))
        scaled = {old: new for value, shape in pairs if shape for old, new in zip(value.shape, shape, strict=True)}
        leaves = [value if shape is None else _values(value, shape, generator, scaled) for value, shape in pairs]
        args, kwargs = pytree.tree_unflatten(leaves, captured.in_spec)
        yield Example("other sizes" if sizes else "other values", args, kwargs)


def _symbols(captured: Captured) -> dict[sympy.Symbol, int]:
    found: dict[sympy.Symbol, int] = {}
    for node in captured.inputs:
        value = node.meta["val"] if node is not None else None
        for size in value.shape if isinstance(value, torch.Tensor) else ():
            if isinstance(size, torch.SymInt):
                environment = size.node.shape_env
                for symbol in size.node.expr.free_symbols:
                    hints = getattr(environment, "backed_var_to_val", None) or environment.var_to_val
                    if symbol in hints:
                        found[symbol] = int(hints[symbol])
    return found


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


def _values(
    example: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator, scaled: Mapping[int, int]
) -> torch.Tensor:
    """Values like the example's: noise for floats, a sequence for a sequence, otherwise values that occur in it.

    Ascending integers are taken for places in another input: they stay so, up to its length if they went that far.
    """
    count = int(torch.Size(shape).numel())
    if example.numel() == 0 or count == 0:
        return example.new_zeros(shape)
    if example.is_floating_point():
        wide = example.float()
        if not torch.isfinite(wide).all() or (wide.unique().numel() == 2 and wide.numel() > 2):  # a mask
            return _resampled(example, shape, generator)
        spread = wide.std() if example.numel() > 1 else torch.tensor(1.0)
        noise = torch.randn(shape, generator=generator) * (spread if spread > 0 else 0.1)
        return (noise + wide.mean()).to(example.dtype)  # also where all were equal, as a state of zeros is
    if example.ndim and example.dtype is torch.int64 and example.shape[-1] > 1:
        steps = torch.arange(example.shape[-1])
        if torch.equal(example - example[..., :1], steps.expand(example.shape)):
            return (torch.arange(shape[-1]) + example.reshape(-1)[0]).expand(shape).contiguous()
        if example.ndim == 1 and (example.diff() >= 0).all():
            places = _resampled(example, shape, generator).sort().values
            last = int(example[-1])
            places[0], places[-1] = example[0], scaled.get(last, last)
            return places.clamp(max=int(places[-1]))
    return _resampled(example, shape, generator)


def _resampled(example: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    count = int(torch.Size(shape).numel())
    index = torch.randint(0, example.numel(), (count,), generator=generator)
    return example.reshape(-1)[index].reshape(shape)
