"""Running sums and products, histograms and counts."""

from __future__ import annotations

from typing import Any

from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import statistics
from mlxport.graph.lower.ops.common import accurate, reduced, widened
from mlxport.graph.lower.registry import UNBACKED, call, call_host, op


@op("aten.cumsum.default")
def cumsum(self: Expr, dim: int, dtype: Any = None) -> Expr:
    """The sums so far; halves add up in float32, integers in int64."""
    x = widened(self, dtype)
    return x if self.ndim == 0 else mx.cumsum(x.astype(mx.int64) if x.dtype == mx.bool_ else x, axis=dim)


@op("aten.cumprod.default")
def cumprod(self: Expr, dim: int, dtype: Any = None) -> Expr:
    """The products so far; halves multiply in float32, integers in int64."""
    x = widened(self, dtype)
    return x if self.ndim == 0 else mx.cumprod(x.astype(mx.int64) if x.dtype == mx.bool_ else x, axis=dim)


@op("aten.logcumsumexp.default")
def logcumsumexp(self: Expr, dim: int) -> Expr:
    """The logarithms of the sums of exponentials so far."""
    x = accurate(self)
    return x if self.ndim == 0 else mx.logcumsumexp(x, axis=dim)


@op("prims.sum.default")
def prims_sum(inp: Expr, dims: Any, output_dtype: Any = None) -> Expr:
    """The sum."""
    return widened(inp, output_dtype).sum(**reduced(inp, dims)) if inp.ndim else inp


@op("prims.prod.default")
def prims_prod(inp: Expr, dims: Any, output_dtype: Any = None) -> Expr:
    """The product."""
    return widened(inp, output_dtype).prod(**reduced(inp, dims)) if inp.ndim else inp


@op("aten.histc.default")
def histc(self: Expr, bins: int = 100, min: Any = 0, max: Any = 0) -> Expr:  # noqa: A002
    """How many values fall in each of ``bins`` equal parts of [min, max], of the data's range if they are equal."""
    return call(statistics.histc, self, bins, min, max)


@op("aten.histogram.bin_ct")
def histogram_count(
    self: Expr,
    bins: int = 100,
    range: Any = None,
    weight: Expr | None = None,
    density: bool = False,  # noqa: A002
) -> tuple[Expr, Expr]:
    """Counts (or weights, or densities) in ``bins`` equal parts of ``range``, and their edges."""
    edges = call(statistics.equal_edges, self.reshape(-1), bins, *(range or ()))
    return _histogram(self, edges, weight, density), edges


@op("aten.histogram.bins_tensor")
def histogram_edges(self: Expr, bins: Expr, weight: Expr | None = None, density: bool = False) -> tuple[Expr, Expr]:
    """Counts (or weights, or densities) between the edges ``bins``."""
    return _histogram(self, bins, weight, density), bins


def _histogram(x: Expr, edges: Expr, weight: Expr | None, density: bool) -> Expr:
    weights = {} if weight is None else {"weight": weight.reshape(-1)}
    return call(statistics.histogramdd, x.reshape(-1, 1), [edges], **weights, **({"density": True} if density else {}))


@op("aten._histogramdd_bin_edges.default")
def histogramdd_bin_edges(
    self: Expr,
    bins: Any,
    range: Any = None,
    weight: Expr | None = None,
    density: bool = False,  # noqa: A002
) -> Any:
    """The edges of equal parts of each coordinate's range; weights do not matter."""
    return tuple(_edges(self, bins, range))


def _edges(x: Expr, bins: Any, ends: Any) -> list[Expr]:
    rows = x.reshape(-1, x.shape[-1])
    return [
        call(statistics.equal_edges, rows[:, index], count, *(ends[2 * index : 2 * index + 2] if ends else ()))
        for index, count in enumerate(bins)
    ]


@op("aten._histogramdd_from_bin_cts.default")
def histogramdd_from_counts(
    self: Expr,
    bins: Any,
    range: Any = None,
    weight: Expr | None = None,
    density: bool = False,  # noqa: A002
) -> Expr:
    """Counts of points in a grid of equal cells."""
    return _histogramdd(self, _edges(self, bins, range), weight, density)


@op("aten._histogramdd_from_bin_tensors.default")
def histogramdd_from_edges(self: Expr, bins: Any, weight: Expr | None = None, density: bool = False) -> Expr:
    """Counts of points in a grid of cells with the given edges."""
    return _histogramdd(self, list(bins), weight, density)


def _histogramdd(x: Expr, edges: list[Expr], weight: Expr | None, density: bool) -> Expr:
    weights = {} if weight is None else {"weight": weight.reshape(-1)}
    more = {"density": True} if density else {}
    return call(statistics.histogramdd, x.reshape(-1, x.shape[-1]), edges, **weights, **more)


@op("aten.bincount.default")
def bincount(self: Expr, weights: Expr | None = None, minlength: int = 0) -> Expr:
    """How often each integer from 0 on occurs; the largest one gives the size."""
    more: dict[str, Any] = {} if weights is None else {"weights": weights}
    if minlength:
        more["minlength"] = minlength
    shadow = mx.zeros((UNBACKED,), mx.int64 if weights is None else mx.float32)
    return call_host(statistics.bincount, shadow.value, self, **more)
