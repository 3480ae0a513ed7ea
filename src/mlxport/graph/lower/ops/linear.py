"""Linear and bilinear maps, embeddings and one-hot vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import linear as helper
from mlxport.graph.lower.registry import call, op, refuse


def is_integer(array: Expr) -> bool:
    """Whether the array holds integers or truth values."""
    return not mx.issubdtype(array.dtype, mx.inexact).value


@op("aten.linear.default")
def linear(input: Expr, weight: Expr, bias: Expr | None = None) -> Expr:
    """``input @ weight.T + bias``."""
    if is_integer(input):
        return call(helper.integer_linear, input, weight, *[] if bias is None else [bias])
    matrix = weight.T if weight.ndim == 2 else weight
    if bias is None:
        return input @ matrix
    return mx.addmm(bias, input, matrix) if bias.ndim < 2 and input.dtype != mx.complex64 else input @ matrix + bias


@op("aten.bilinear.default")
def bilinear(input1: Expr, input2: Expr, weight: Expr, bias: Expr | None = None) -> Expr:
    """``x1 @ weight[o] @ x2`` for every output feature ``o``."""
    function = helper.integer_bilinear if is_integer(input1) else helper.bilinear
    result = call(function, input1, input2, weight)
    return result if bias is None else result + bias


@op("aten._trilinear.default")
def trilinear(
    i1: Expr,
    i2: Expr,
    i3: Expr,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> Expr:
    """The product of three, each with axes of one put in, summed; ``unroll_dim`` is about speed."""
    places = zip((i1, i2, i3), (expand1, expand2, expand3), strict=True)
    a, b, c = (mx.expand_dims(x, tuple(axes)) if axes else x for x, axes in places)
    product = a * b * c
    return product.sum(axis=tuple(sumdim)) if sumdim else product


@op("aten.embedding.default")
def embedding(
    weight: Expr, indices: Expr, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Expr:
    """Rows of ``weight``; the other arguments are about gradients."""
    return weight[indices]


@op("aten.one_hot.default")
def one_hot(self: Expr, num_classes: int = -1) -> Expr:
    """Ones where the class equals the index; the number of classes must be given."""
    refuse(isinstance(num_classes, int) and num_classes < 0, "num_classes=-1: the size depends on the data")
    return self[..., None] == mx.arange(num_classes)


@op("aten.embedding_renorm.default")
def embedding_renorm(self: Expr, indices: Expr, max_norm: float, norm_type: float) -> Expr:
    """``self`` with the rows that the indices name scaled down to ``max_norm``."""
    return call(helper.embedding_renorm, self, indices, max_norm, *[] if norm_type == 2 else [norm_type])


def _embedding_bag(
    weight: Expr,
    indices: Expr,
    offsets: Expr,
    mode: int,
    weights: Expr | None,
    include_last_offset: bool,
    padding_idx: int | None,
) -> tuple[Expr | None, ...]:
    """The bags; as torch's CPU has it: the bag of each index, the bags' sizes, what was the largest in them."""
    counted: dict[str, Any] = {} if padding_idx is None else {"padding_idx": padding_idx}
    options: dict[str, Any] = ({"mode": ("sum", "mean", "max")[mode]} if mode else {}) | counted
    if weights is not None:
        options["weights"] = weights
    if include_last_offset:
        options["include_last_offset"] = True
    bags = call(helper.embedding_bag, weight, indices, offsets, **options)
    if include_last_offset:
        return bags, None, None, None  # of which torch says other sizes than it gives
    quick = not mode and padding_idx is None and weight.dtype in (mx.float32, mx.float16)
    bag = mx.zeros(0, dtype=offsets.dtype) if quick else call(helper.bag_of_each, indices, offsets)
    sizes = call(helper.bag_sizes, indices, offsets, **counted) if mode else mx.zeros_like(offsets)
    largest = call(helper.largest_in_bags, weight, indices, offsets, **counted) if mode == 2 else sizes
    return bags, bag, sizes, largest


@op("aten.embedding_bag.padding_idx")
def embedding_bag(
    weight: Expr,
    indices: Expr,
    offsets: Expr,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Expr | None,
    include_last_offset: bool,
    padding_idx: int | None,
) -> tuple[Any, ...]:
    """Sums (0), means (1) or maxima (2) of bags of rows; rows of ``padding_idx`` do not count."""
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    return _embedding_bag(weight, indices, offsets, mode, per_sample_weights, include_last_offset, padding_idx)


@op("aten.embedding_bag.default", "aten._embedding_bag.default", "aten._embedding_bag_forward_only.default")
def embedding_bag_unpadded(
    weight: Expr,
    indices: Expr,
    offsets: Expr,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Expr | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Any, ...]:
    """``embedding_bag`` where a negative ``padding_idx`` is none."""
    padding = padding_idx if padding_idx >= 0 else None
    return _embedding_bag(weight, indices, offsets, mode, per_sample_weights, include_last_offset, padding)
