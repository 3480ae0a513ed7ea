"""MLX expressions: written like MLX code, kept as Python syntax trees beside a lazy MLX value.

A lowering of an op computes with ``Expr`` as if they were arrays: ``mx.rsqrt(x + 1)``. Each step extends a syntax
tree, which becomes a line of the emitted source, and a *shadow*: the same MLX call on lazy arrays of the right shape
and dtype. The shadow is never evaluated; it tells which dtype and shape MLX gives, and MLX's own errors show
while lowering.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as _mx
import mlx.nn as _nn

from mlxport.graph.lower.deciding import decided
from mlxport.graph.lower.unsupported import UnsupportedOp

__all__ = [
    "Expr",
    "MLXCallable",
    "most",
    "mx",
    "name",
    "nn",
    "prod",
    "same_size",
    "source",
    "surely",
    "to_ast",
    "value_of",
]

_DTYPES = {
    getattr(_mx, name): name
    for name in (
        "bool_", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
        "float16", "bfloat16", "float32", "float64", "complex64",
    )
}  # fmt: skip


class Expr:
    """A piece of emitted source with its shadow.

    Attributes:
        node: Syntax tree; arrays of the graph are ``ast.Name`` nodes whose ids start with ``%``.
        value: Shadow: a lazy ``mx.array`` of the example's shape, or the Python value (sizes: the example's).
        dynamic: Whether a size that can change from call to call took part.
        dims: For an argument: its sizes, ``int`` where fixed and ``Expr`` where dynamic. None for what was computed.
        counted: Whether its values say how large it is, so that the shadow may have other sizes.
    """

    __slots__ = ("counted", "dims", "dynamic", "node", "value")

    def __init__(
        self, node: ast.expr, value: Any, *, dynamic: bool = False, dims: tuple[int | Expr, ...] | None = None
    ) -> None:
        self.node, self.value, self.dynamic, self.dims = node, value, dynamic, dims
        self.counted = False

    # What a lowering may ask. Sizes and dtypes are Python values, so that it can decide by them.
    @property
    def shape(self) -> tuple[Any, ...]:
        """Sizes of an argument: ints, and ``Expr`` for dynamic ones (Python decides by them where that is settled)."""
        if self.dims is not None:
            return self.dims
        if self.dynamic:
            return tuple(_attribute_size(self, axis, size) for axis, size in enumerate(self.value.shape))
        return tuple(self.value.shape)

    @property
    def dtype(self) -> _mx.Dtype:
        """The MLX dtype."""
        return self.value.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return int(self.value.ndim)

    @property
    def size(self) -> Any:
        """Number of elements, an ``Expr`` where a size is dynamic."""
        return math.prod(self.shape)

    @property
    def T(self) -> Expr:
        """The transpose."""
        return Expr(ast.Attribute(self.node, "T"), self.value.T, dynamic=self.dynamic)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return MLXCallable(ast.Attribute(self.node, attribute), getattr(self.value, attribute), self.dynamic, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Expr:
        """The call of a layer: ``nn.MaxPool2d(2)(x)``."""
        return MLXCallable(self.node, self.value, self.dynamic)(*args, **kwargs)

    def __getitem__(self, index: Any) -> Expr:
        dynamic = self.dynamic or _any_dynamic([index])
        return Expr(ast.Subscript(self.node, _index_ast(index)), self.value[value_of(index)], dynamic=dynamic)

    def __bool__(self) -> bool:
        if isinstance(self.value, _mx.array):
            raise TypeError(f"Python cannot decide by {source(self)}: it is known only when the port runs")
        if (known := decided(self.node)) is not None:
            return known
        raise UnsupportedOp(
            f"what it computes depends on {_spelled(self)}, which is open as long as sizes are free; "
            "fix them with dynamic=False (--no-dynamic)"
        )

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Any:
        raise TypeError(f"{source(self)} cannot be unpacked while lowering")

    if TYPE_CHECKING:  # defined below the class, from a table

        def __add__(self, other: Any) -> Expr: ...
        def __radd__(self, other: Any) -> Expr: ...
        def __sub__(self, other: Any) -> Expr: ...
        def __rsub__(self, other: Any) -> Expr: ...
        def __mul__(self, other: Any) -> Expr: ...
        def __rmul__(self, other: Any) -> Expr: ...
        def __truediv__(self, other: Any) -> Expr: ...
        def __rtruediv__(self, other: Any) -> Expr: ...
        def __floordiv__(self, other: Any) -> Expr: ...
        def __rfloordiv__(self, other: Any) -> Expr: ...
        def __mod__(self, other: Any) -> Expr: ...
        def __rmod__(self, other: Any) -> Expr: ...
        def __pow__(self, other: Any) -> Expr: ...
        def __rpow__(self, other: Any) -> Expr: ...
        def __matmul__(self, other: Any) -> Expr: ...
        def __rmatmul__(self, other: Any) -> Expr: ...
        def __and__(self, other: Any) -> Expr: ...
        def __rand__(self, other: Any) -> Expr: ...
        def __or__(self, other: Any) -> Expr: ...
        def __ror__(self, other: Any) -> Expr: ...
        def __xor__(self, other: Any) -> Expr: ...
        def __rxor__(self, other: Any) -> Expr: ...
        def __lshift__(self, other: Any) -> Expr: ...
        def __rlshift__(self, other: Any) -> Expr: ...
        def __rshift__(self, other: Any) -> Expr: ...
        def __rrshift__(self, other: Any) -> Expr: ...
        def __lt__(self, other: Any) -> Expr: ...
        def __le__(self, other: Any) -> Expr: ...
        def __gt__(self, other: Any) -> Expr: ...
        def __ge__(self, other: Any) -> Expr: ...
        def __eq__(self, other: Any) -> Expr: ...  # type: ignore[override]
        def __ne__(self, other: Any) -> Expr: ...  # type: ignore[override]

    def __neg__(self) -> Expr:
        return Expr(ast.UnaryOp(ast.USub(), self.node), -self.value, dynamic=self.dynamic)

    def __invert__(self) -> Expr:
        return Expr(ast.UnaryOp(ast.Invert(), self.node), ~self.value, dynamic=self.dynamic)


def _attribute_size(expr: Expr, axis: int, size: int) -> Expr:
    node = ast.Subscript(ast.Attribute(expr.node, "shape"), ast.Constant(axis))
    return Expr(node, size, dynamic=True)


def _binary(operator: type[ast.operator], compute: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    def forward(self: Expr, other: Any) -> Expr:
        node = ast.BinOp(self.node, operator(), to_ast(other))
        return Expr(node, compute(self.value, value_of(other)), dynamic=_any_dynamic([self, other]))

    def reverse(self: Expr, other: Any) -> Expr:
        node = ast.BinOp(to_ast(other), operator(), self.node)
        return Expr(node, compute(value_of(other), self.value), dynamic=_any_dynamic([self, other]))

    return forward, reverse


def _comparison(operator: type[ast.cmpop], compute: Callable[[Any, Any], Any]) -> Any:
    def compare(self: Expr, other: Any) -> Expr:
        node = ast.Compare(self.node, [operator()], [to_ast(other)])
        return Expr(node, compute(self.value, value_of(other)), dynamic=_any_dynamic([self, other]))

    return compare


for _name, _operator, _compute in (
    ("add", ast.Add, lambda a, b: a + b),
    ("sub", ast.Sub, lambda a, b: a - b),
    ("mul", ast.Mult, lambda a, b: a * b),
    ("truediv", ast.Div, lambda a, b: a / b),
    ("floordiv", ast.FloorDiv, lambda a, b: a // b),
    ("mod", ast.Mod, lambda a, b: a % b),
    ("pow", ast.Pow, lambda a, b: a**b),
    ("matmul", ast.MatMult, lambda a, b: a @ b),
    ("and", ast.BitAnd, lambda a, b: a & b),
    ("or", ast.BitOr, lambda a, b: a | b),
    ("xor", ast.BitXor, lambda a, b: a ^ b),
    ("lshift", ast.LShift, lambda a, b: a << b),
    ("rshift", ast.RShift, lambda a, b: a >> b),
):
    _forward, _reverse = _binary(_operator, _compute)
    setattr(Expr, f"__{_name}__", _forward)
    setattr(Expr, f"__r{_name}__", _reverse)
for _name, _comparator, _compute in (
    ("lt", ast.Lt, lambda a, b: a < b),
    ("le", ast.LtE, lambda a, b: a <= b),
    ("gt", ast.Gt, lambda a, b: a > b),
    ("ge", ast.GtE, lambda a, b: a >= b),
    ("eq", ast.Eq, lambda a, b: a == b),
    ("ne", ast.NotEq, lambda a, b: a != b),
):
    setattr(Expr, f"__{_name}__", _comparison(_comparator, _compute))


class MLXCallable:
    """A function or method of MLX: calling it gives an ``Expr``."""

    def __init__(self, node: ast.expr, function: Any, dynamic: bool = False, owner: Expr | None = None) -> None:
        self._node, self._function, self._dynamic, self._owner = node, function, dynamic, owner

    def __call__(self, *args: Any, **kwargs: Any) -> Expr:
        """The call as source and as a shadow."""
        value = self._function(*map(value_of, args), **{key: value_of(item) for key, item in kwargs.items()})
        return self.called(value, *args, **kwargs)

    def called(self, result: Any, /, *args: Any, **kwargs: Any) -> Expr:
        """The call as source, with ``result`` for its shadow: for functions that read values on the host."""
        call = ast.Call(self._node, [to_ast(arg) for arg in args], [])
        call.keywords = [ast.keyword(key, to_ast(item)) for key, item in kwargs.items()]
        return Expr(call, result, dynamic=self._dynamic or _any_dynamic([*args, *kwargs.values()]))

    def __getitem__(self, index: Any) -> Any:  # array.at[index]
        node = ast.Subscript(self._node, _index_ast(index))
        return MLXCallable(node, self._function[value_of(index)], self._dynamic or _any_dynamic([index]), self._owner)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return MLXCallable(ast.Attribute(self._node, attribute), getattr(self._function, attribute), self._dynamic)


class _Namespace:
    """``mx`` and ``nn`` as lowerings see them: dtypes and constants are themselves, functions give ``Expr``."""

    def __init__(self, module: Any, node: ast.expr) -> None:
        self._module, self._node = module, node

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._module, attribute)
        node = ast.Attribute(self._node, attribute)
        if isinstance(value, _mx.Dtype | float):
            return value
        if type(value).__name__ == "module":
            return _Namespace(value, node)
        return MLXCallable(node, value)


mx: Any = _Namespace(_mx, ast.Name("mx"))
nn: Any = _Namespace(_nn, ast.Name("nn"))


def name(identifier: str, value: Any, **more: Any) -> Expr:
    """A variable called ``identifier`` whose shadow is ``value``."""
    return Expr(ast.Name(identifier), value, **more)


def value_of(item: Any) -> Any:
    """``item`` with every ``Expr`` in it replaced by its shadow."""
    if isinstance(item, Expr):
        return item.value
    if isinstance(item, MLXCallable):
        return item._function
    if isinstance(item, tuple | list):
        return type(item)(value_of(part) for part in item)
    if isinstance(item, slice):
        return slice(value_of(item.start), value_of(item.stop), value_of(item.step))
    return item


def _any_dynamic(items: Iterable[Any]) -> bool:
    for item in items:
        if isinstance(item, Expr) and item.dynamic:
            return True
        if isinstance(item, tuple | list) and _any_dynamic(item):
            return True
        if isinstance(item, slice) and _any_dynamic((item.start, item.stop, item.step)):
            return True
    return False


def to_ast(item: Any) -> ast.expr:
    """The syntax tree of ``item``: an Expr, number, string, dtype, slice, or a list or tuple of such.

    Raises:
        TypeError: for a value that source cannot spell.
    """
    match item:
        case Expr():
            return item.node
        case MLXCallable():
            return item._node
        case None | bool() | str():
            return ast.Constant(item)
        case int():
            return ast.Constant(item) if item >= 0 else ast.UnaryOp(ast.USub(), ast.Constant(-item))
        case float():
            return _float_ast(item)
        case complex():
            return ast.Call(ast.Name("complex"), [_float_ast(item.real), _float_ast(item.imag)], [])
        case list():
            return ast.List([to_ast(part) for part in item])
        case tuple():
            return ast.Tuple([to_ast(part) for part in item])
        case slice():
            return ast.Slice(*(None if part is None else to_ast(part) for part in (item.start, item.stop, item.step)))
        case _mx.Dtype():
            return ast.Attribute(ast.Name("mx"), _DTYPES[item])
    if item is ...:
        return ast.Constant(...)
    raise TypeError(f"{item!r} ({type(item).__name__}) has no spelling in emitted source")


def _float_ast(number: float) -> ast.expr:
    if math.isnan(number):
        return ast.Attribute(ast.Name("mx"), "nan")
    if math.copysign(1.0, number) < 0:
        return ast.UnaryOp(ast.USub(), _float_ast(-number))
    return ast.Attribute(ast.Name("mx"), "inf") if math.isinf(number) else ast.Constant(number)


def _index_ast(index: Any) -> ast.expr:
    return to_ast(index)


def source(expr: Any) -> str:
    """The expression as text."""
    return ast.unparse(ast.fix_missing_locations(ast.Expression(to_ast(expr))))


def surely(condition: Any) -> bool:
    """Whether a comparison of sizes holds whatever they are; False also where that is not known."""
    return decided(condition.node) is True if isinstance(condition, Expr) else bool(condition)


def most(*sizes: Any) -> Any:
    """The largest of some sizes, ``max(...)`` where that is not known."""
    if all(isinstance(size, int) for size in sizes):
        return max(sizes)
    return Expr(
        ast.Call(ast.Name("max"), [to_ast(size) for size in sizes], []), max(map(value_of, sizes)), dynamic=True
    )


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are surely the same."""
    return surely(a == b) or (isinstance(a, Expr) and isinstance(b, Expr) and source(a) == source(b))


def _spelled(expr: Expr) -> str:
    return source(expr).replace("$", "")


def prod(sizes: Sequence[Any]) -> Any:
    """The product of sizes, some of which may be dynamic."""
    return math.prod(sizes)
