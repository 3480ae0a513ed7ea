"""Lower a captured graph: every node to an MLX expression, checked against the shape and dtype that torch gives."""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import torch
from torch._ops import HigherOrderOperator
from torch.fx import Node

from mlxport.errors import UsageError
from mlxport.graph.lower import ops as _ops  # noqa: F401  (fills the table)
from mlxport.graph.lower import symbolic_sizes
from mlxport.graph.lower.control_flow_ops import lower_control_flow
from mlxport.graph.lower.data_dependent import example_sizes
from mlxport.graph.lower.expr import Expr, to_ast, value_of
from mlxport.graph.lower.layer_specs import LayerSpec, layer, layer_itself
from mlxport.graph.lower.registry import CHANNELS_LAST, LOWERINGS, REGISTERED, UNBACKED, UnsupportedOp, bind, registered
from mlxport.graph.lower.traits import traits_of

__all__ = ["Missing", "hint", "is_read", "lower_node", "mx_dtype", "reference", "symbolic"]

MX_DTYPES: dict[torch.dtype, mx.Dtype] = {
    torch.bool: mx.bool_,
    torch.uint8: mx.uint8,
    torch.uint16: mx.uint16,
    torch.uint32: mx.uint32,
    torch.uint64: mx.uint64,
    torch.int8: mx.int8,
    torch.int16: mx.int16,
    torch.int32: mx.int32,
    torch.int64: mx.int64,
    torch.float16: mx.float16,
    torch.bfloat16: mx.bfloat16,
    torch.float32: mx.float32,
    torch.float64: mx.float32,  # the GPU has no float64
    torch.complex64: mx.complex64,
    torch.complex128: mx.complex64,
}

# Arithmetic on sizes, as torch.export writes it.
_SIZE_OPS: dict[Any, Callable[..., Any]] = {
    getattr(operator, item): getattr(operator, item)
    for item in "add sub mul floordiv truediv mod neg pow lt le gt ge eq ne and_ or_".split()
}


def mx_dtype(dtype: torch.dtype) -> mx.Dtype:
    """The dtype that a torch dtype becomes; float64 becomes float32.

    Raises:
        UnsupportedOp: if MLX has none.
    """
    if dtype not in MX_DTYPES:
        raise UnsupportedOp(f"MLX has no dtype for {dtype}")
    return MX_DTYPES[dtype]


def hint(size: Any) -> int:
    """The example's value of a size; ``UNBACKED`` stands for one that depends on data."""
    if isinstance(size, int):
        return size
    node = size.node
    if node.has_hint():
        return int(node.hint)
    known = example_sizes(node.shape_env)
    return int(node.expr.subs({symbol: known.get(symbol, UNBACKED) for symbol in node.expr.free_symbols}))


def _example(value: Any) -> int | float | bool:
    """The example's value of a size or of a number computed from sizes; one read out of an array has none."""
    if isinstance(value, torch.SymInt):
        return hint(value)
    if isinstance(value, torch.SymFloat):
        return float(value.node.hint) if value.node.has_hint() else 1.5
    return True


def reference(node: Node) -> Expr | tuple[Any, ...]:
    """How other nodes see ``node``: a variable with the shape and dtype that torch knows."""
    function = _function(node)
    return function if function is not None else _reference(ast.Name("%" + node.name), node.meta["val"])


def _function(node: Node) -> Expr | None:
    """The name of the function that a graph has become; None for what is no graph."""
    return Expr(ast.Name(node.meta["function"]), None) if "function" in node.meta else None


def _reference(syntax: ast.expr, value: Any, symbolic_sizes: bool = False) -> Any:
    match value:
        case torch.Tensor():
            shape = tuple(map(hint, value.shape))
            expr = Expr(syntax, mx.zeros(shape, mx_dtype(value.dtype)))
            if not all(isinstance(size, int) for size in value.shape):
                expr.dynamic = True
                expr.dims = tuple(
                    size
                    if isinstance(size, int)
                    else _symbol(size)
                    if symbolic_sizes
                    else Expr(_size(syntax, axis), shape[axis], dynamic=True)
                    for axis, size in enumerate(value.shape)
                )
            return expr
        case torch.SymInt():
            return Expr(syntax, hint(value), dynamic=True)
        case torch.SymFloat():
            return Expr(syntax, _example(value), dynamic=True)
        case torch.SymBool():
            return Expr(syntax, True, dynamic=True)
        case tuple() | list():
            shadows = [_reference(syntax, item, symbolic_sizes) for item in value]
            return Expr(syntax, [value_of(item) for item in shadows])
    return value


def _size(syntax: ast.expr, axis: int) -> ast.expr:
    return ast.Subscript(ast.Attribute(syntax, "shape"), ast.Constant(axis))


def symbolic(node: Node) -> Any:
    """Like ``reference``, with dynamic sizes as stand-ins that the scope of their use resolves."""
    if (function := _function(node)) is not None:
        return function
    value = node.meta["val"]
    if isinstance(value, torch.SymInt | torch.SymBool | torch.SymFloat) and not is_read(node):
        return _symbol(value)
    return _reference(ast.Name("%" + node.name), value, symbolic_sizes=True)


def _symbol(size: Any) -> Any:
    if isinstance(size, int):
        return size
    syntax = symbolic_sizes.placeholder(size)
    return Expr(syntax, _example(size), dynamic=True)


def is_read(node: Node) -> bool:
    """Whether the node reads a number out of an array."""
    return traits_of(node).read


@dataclass
class Missing:
    """An op that has no lowering, with the places that call it."""

    key: str
    reason: str
    nodes: list[Node] = field(default_factory=list)


def lower_node(node: Node, resolve: Callable[[Node], Any] = reference) -> Any:
    """The expression that computes ``node`` from the variables of its arguments (a tuple for several results).

    Raises:
        UnsupportedOp: if there is no lowering for the op, or for an argument of this call.
    """
    args, kwargs = _resolved(node.args, resolve), _resolved(node.kwargs, resolve)
    if node.target in _SIZE_OPS:
        return _SIZE_OPS[node.target](*args)
    if node.target is operator.getitem:
        return args[0][args[1]]
    if node.target is layer_itself:
        return _reference(ast.Name("@" + node.meta["layer"].path), node.meta["val"])
    if node.target is layer:
        return _checked(node, lower_layer(node, *args), node.meta["val"])
    if isinstance(node.target, torch._ops.OpOverload):
        key = str(node.target)
        function = CHANNELS_LAST[key].function if node.meta.get("channels_last") else LOWERINGS.get(key)
        if function is None:
            raise UnsupportedOp("")
        bound = bind(node.target, args, kwargs)
        if "node" in inspect.signature(function).parameters:  # a lowering that asks where an argument comes from
            bound["node"] = node
        if function.__module__.endswith(".linalg"):
            bound = {name: _wide(item) for name, item in bound.items()}
        result = function(**bound)
        try:
            return _checked(node, result, node.meta.get("val"))
        except (AssertionError, TypeError, ValueError) as error:
            if key not in REGISTERED:
                raise
            raise UsageError(
                f"{registered(key)} does not give what torch gives: {error}",
                hint="it returns what the op returns: mx.arrays of the same shapes, a tuple where there are several",
            ) from error
    if isinstance(node.target, HigherOrderOperator):
        return lower_control_flow(node, args, value_of(_reference(ast.Name(""), node.meta["val"])))
    function = LOWERINGS.get(getattr(node.target, "__name__", str(node.target)))
    if function is None:
        raise UnsupportedOp("")
    return _checked(node, function(*args, **kwargs), node.meta.get("val"))


def _wide(item: Any) -> Any:
    """MLX decomposes matrices of float32; others are cast, and the result back."""
    half = isinstance(item, Expr) and isinstance(item.value, mx.array) and item.dtype in (mx.float16, mx.bfloat16)
    return item.astype(mx.float32) if half else item


def lower_layer(node: Node, *inputs: Any) -> Any:
    """A call of a layer."""
    spec: LayerSpec = node.meta["layer"]
    callee: ast.expr = ast.Name("@" + spec.path)
    if spec.method:
        callee = ast.Attribute(callee, spec.method)
    result = _reference(callee, node.meta["val"], symbolic_sizes=True)
    options = [ast.keyword(name, to_ast(value)) for name, value in spec.options.items()]
    return Expr(ast.Call(callee, [to_ast(item) for item in inputs], options), result.value, dynamic=True)


def _resolved(item: Any, resolve: Callable[[Node], Any]) -> Any:
    match item:
        case Node():
            return resolve(item)
        case list() | tuple():
            return type(item)([_resolved(part, resolve) for part in item])
        case dict():
            return {key: _resolved(part, resolve) for key, part in item.items()}
        case torch.dtype():
            return mx_dtype(item)
        case torch.SymInt():
            return _symbol(item)
    return item


def _checked(node: Node, result: Any, wanted: Any) -> Any:
    """``result`` with the dtype that torch gives; a wrong shape is a bug of the lowering."""
    if isinstance(result, tuple) and isinstance(wanted, tuple | list):
        for user in node.users:
            if user.target is operator.getitem and user.users and result[user.args[1]] is None:  # type: ignore[index]
                raise UnsupportedOp(f"result {user.args[1]}, which serves the backward pass only, is used")
        return tuple(item if item is None else _checked(node, item, w) for item, w in zip(result, wanted, strict=True))
    if not isinstance(wanted, torch.Tensor):
        return result
    if not isinstance(result, Expr) or not isinstance(result.value, mx.array):
        given = type(result.value if isinstance(result, Expr) else result).__name__
        raise TypeError(f"the lowering of {node.target} gave {given}, not an array")
    sizes = tuple(map(hint, wanted.shape))
    if result.counted and result.ndim == wanted.ndim and tuple(result.value.shape) != sizes:
        result.value = mx.zeros(sizes, result.dtype)  # what is computed from it says how large it must be
    if tuple(result.value.shape) != sizes and not _data_dependent(wanted.shape):
        raise AssertionError(f"the lowering of {node.target} gives shape {result.value.shape}, torch gives {sizes}")
    dtype = mx_dtype(wanted.dtype)
    return result if result.dtype == dtype else result.astype(dtype)


def _data_dependent(shape: Sequence[Any]) -> bool:
    return any(not isinstance(size, int) and not size.node.has_hint() for size in shape)
