"""Sums, means, extremes and other reductions."""

from __future__ import annotations

from typing import Any

from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.ops.common import accurate, axes, reduced, widened
from mlxport.graph.lower.registry import UnsupportedOp, op


@op("aten.sum.default", "aten.sum.dim_IntList")
def sum_(self: Expr, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Expr:
    """The sum; halves add up in float32, integers in int64."""
    return widened(self, dtype).sum(**reduced(self, dim, keepdim))


@op("aten.mean.default", "aten.mean.dim")
def mean(self: Expr, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Expr:
    """The mean; halves add up in float32."""
    return widened(self, dtype).mean(**reduced(self, dim, keepdim))


@op("aten.prod.default", "aten.prod.dim_int")
def prod(self: Expr, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Expr:
    """The product; halves multiply in float32, integers in int64."""
    return widened(self, dtype).prod(**reduced(self, dim, keepdim))


@op("aten.amax.default")
def amax(self: Expr, dim: Any = (), keepdim: bool = False) -> Expr:
    """The largest value, NaN if there is one."""
    return self.max(**reduced(self, dim, keepdim))


@op("aten.amin.default")
def amin(self: Expr, dim: Any = (), keepdim: bool = False) -> Expr:
    """The smallest value, NaN if there is one."""
    return self.min(**reduced(self, dim, keepdim))


@op("aten.max.default")
def max_all(self: Expr) -> Expr:
    """The largest value."""
    return self.max()


@op("aten.min.default")
def min_all(self: Expr) -> Expr:
    """The smallest value."""
    return self.min()


@op("aten.max.dim")
def max_dim(self: Expr, dim: int, keepdim: bool = False) -> tuple[Expr, Expr]:
    """The largest values of an axis and where they are."""
    return self.max(**reduced(self, dim, keepdim)), argmax(self, dim, keepdim)


@op("aten.min.dim")
def min_dim(self: Expr, dim: int, keepdim: bool = False) -> tuple[Expr, Expr]:
    """The smallest values of an axis and where they are."""
    return self.min(**reduced(self, dim, keepdim)), argmin(self, dim, keepdim)


@op("aten.aminmax.default")
def aminmax(self: Expr, dim: int | None = None, keepdim: bool = False) -> tuple[Expr, Expr]:
    """The smallest and the largest value."""
    arguments = reduced(self, dim, keepdim)
    return self.min(**arguments), self.max(**arguments)


@op("aten.argmax.default")
def argmax(self: Expr, dim: int | None = None, keepdim: bool = False) -> Expr:
    """Where the largest value is (the first one), in the flattened tensor without ``dim``."""
    return self.argmax(**reduced(self, dim, keepdim))


@op("aten.argmin.default")
def argmin(self: Expr, dim: int | None = None, keepdim: bool = False) -> Expr:
    """Where the smallest value is (the first one), in the flattened tensor without ``dim``."""
    return self.argmin(**reduced(self, dim, keepdim))


@op("aten.any.default", "aten.any.dim", "aten.any.dims")
def any_(self: Expr, dim: Any = None, keepdim: bool = False) -> Expr:
    """Whether one is nonzero."""
    if isinstance(dim, list | tuple) and not dim:
        return self != 0
    return self.any(**reduced(self, dim, keepdim))


@op("aten.all.default", "aten.all.dim", "aten.all.dims")
def all_(self: Expr, dim: Any = None, keepdim: bool = False) -> Expr:
    """Whether all are nonzero."""
    if isinstance(dim, list | tuple) and not dim:
        return self != 0
    return self.all(**reduced(self, dim, keepdim))


def _ddof(correction: Any) -> dict[str, Any]:
    return {} if correction == 0 else {"ddof": correction}


def _spread(self: Expr, dim: Any, correction: Any, keepdim: bool, root: bool) -> Expr:
    correction = 1 if correction is None else correction
    if isinstance(correction, float) and correction.is_integer():
        correction = int(correction)
    x, arguments = accurate(self), reduced(self, dim, keepdim)
    if isinstance(correction, float):
        count = _count(self, dim)
        variance = x.var(**arguments) * (count / mx.maximum(count - correction, 0))
        return mx.sqrt(variance) if root else variance
    arguments.update(_ddof(correction))
    return x.std(**arguments) if root else x.var(**arguments)


def _count(x: Expr, dim: Any) -> Any:
    axis = axes(x, dim)
    chosen = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    count: Any = 1
    for item in chosen:
        count = count * x.shape[item]
    return count


@op("aten.var.correction")
def var_correction(self: Expr, dim: Any = None, correction: Any = None, keepdim: bool = False) -> Expr:
    """The variance, over ``n - correction``."""
    return _spread(self, dim, correction, keepdim, root=False)


@op("aten.std.correction")
def std_correction(self: Expr, dim: Any = None, correction: Any = None, keepdim: bool = False) -> Expr:
    """The standard deviation, over ``n - correction``."""
    return _spread(self, dim, correction, keepdim, root=True)


@op("aten.var.default", "aten.var.dim")
def var(self: Expr, dim: Any = None, unbiased: bool = True, keepdim: bool = False) -> Expr:
    """The variance, over ``n - 1`` if ``unbiased``."""
    return _spread(self, dim, int(unbiased), keepdim, root=False)


@op("aten.std.default", "aten.std.dim")
def std(self: Expr, dim: Any = None, unbiased: bool = True, keepdim: bool = False) -> Expr:
    """The standard deviation, over ``n - 1`` if ``unbiased``."""
    return _spread(self, dim, int(unbiased), keepdim, root=True)


@op("aten.var_mean.correction")
def var_mean(self: Expr, dim: Any = None, correction: Any = None, keepdim: bool = False) -> tuple[Expr, Expr]:
    """The variance and the mean."""
    return _spread(self, dim, correction, keepdim, root=False), mean(self, dim, keepdim)


@op("aten.std_mean.correction")
def std_mean(self: Expr, dim: Any = None, correction: Any = None, keepdim: bool = False) -> tuple[Expr, Expr]:
    """The standard deviation and the mean."""
    return _spread(self, dim, correction, keepdim, root=True), mean(self, dim, keepdim)


@op("aten.logsumexp.default", "aten.special_logsumexp.default")
def logsumexp(self: Expr, dim: Any, keepdim: bool = False) -> Expr:
    """``log(sum(exp(self)))``, stable."""
    x = accurate(self)
    if isinstance(self.size, int) and self.size == 0:  # MLX wants a value to start from
        return mx.log(mx.exp(x).sum(**reduced(self, dim, keepdim)))
    return x.logsumexp(**reduced(self, dim, keepdim))


@op("aten.hash_tensor.default")
def hash_tensor(self: Expr, dim: Any = (), keepdim: bool = False, mode: int = 0) -> Expr:
    """Nothing: the exclusive or of the bits of the numbers as 64-bit ones."""
    raise UnsupportedOp("MLX has neither float64 on the GPU nor a reduction by exclusive or")
