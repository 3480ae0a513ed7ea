"""Losses. Those that torch itself composes (margin ranking, triplets, cosine embedding ...) come taken apart."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mlxport.graph.lower.expr import Expr, mx, nn
from mlxport.graph.lower.helpers import losses as helper
from mlxport.graph.lower.ops.linear import linear
from mlxport.graph.lower.registry import call, op, refuse

_REDUCTIONS = ("none", "mean", "sum")


def reduced(loss: Expr, reduction: int) -> Expr:
    """``loss`` as it is (0), its mean (1) or its sum (2)."""
    if reduction == 0:
        return loss
    return loss.mean() if reduction == 1 else loss.sum()


@op("aten.mse_loss.default")
def mse_loss(self: Expr, target: Expr, reduction: int = 1) -> Expr:
    """``(x - target) ** 2``."""
    return reduced(mx.square(self - target), reduction)


@op("aten.l1_loss.default")
def l1_loss(self: Expr, target: Expr, reduction: int = 1) -> Expr:
    """``|x - target|``."""
    return reduced(mx.abs(self - target), reduction)


@op("aten.smooth_l1_loss.default")
def smooth_l1_loss(self: Expr, target: Expr, reduction: int = 1, beta: float = 1.0) -> Expr:
    """Quadratic below ``beta``, linear above."""
    if beta == 0:
        return l1_loss(self, target, reduction)
    return reduced(call(helper.smooth_l1, self - target, *[] if beta == 1 else [beta]), reduction)


@op("aten.huber_loss.default")
def huber_loss(self: Expr, target: Expr, reduction: int = 1, delta: float = 1.0) -> Expr:
    """``delta`` times the smooth L1 loss."""
    loss = call(helper.smooth_l1, self - target, *[] if delta == 1 else [delta])
    return reduced(loss if delta == 1 else delta * loss, reduction)


@op("aten.soft_margin_loss.default")
def soft_margin_loss(self: Expr, target: Expr, reduction: int = 1) -> Expr:
    """``log(1 + exp(-target * x))``."""
    return reduced(nn.softplus(-target * self), reduction)


@op("aten.binary_cross_entropy.default")
def binary_cross_entropy(self: Expr, target: Expr, weight: Expr | None = None, reduction: int = 1) -> Expr:
    """Cross entropy of probabilities, whose logarithms torch bounds at -100."""
    loss = call(helper.binary_cross_entropy, self, target)
    return reduced(loss if weight is None else loss * weight, reduction)


@op("aten.binary_cross_entropy_with_logits.default")
def binary_cross_entropy_with_logits(
    self: Expr, target: Expr, weight: Expr | None = None, pos_weight: Expr | None = None, reduction: int = 1
) -> Expr:
    """Cross entropy of logits."""
    likelihood = nn.log_sigmoid(self)
    if pos_weight is not None:
        likelihood = ((pos_weight - 1) * target + 1) * likelihood
    loss = (1 - target) * self - likelihood
    return reduced(loss if weight is None else loss * weight, reduction)


@op("aten.kl_div.default")
def kl_div(self: Expr, target: Expr, reduction: int = 1, *, log_target: bool = False) -> Expr:
    """``target * (log(target) - x)``, zero where the target is."""
    if log_target:
        return reduced(mx.exp(target) * (target - self), reduction)
    return reduced(call(helper.kl_divergence, self, target), reduction)


def _options(weight: Expr | None, reduction: int, ignore_index: int) -> dict[str, Any]:
    options: dict[str, Any] = {} if weight is None else {"weight": weight}
    if reduction != 1:
        options["reduction"] = _REDUCTIONS[reduction]
    if ignore_index != -100:
        options["ignore_index"] = ignore_index
    return options


@op("aten.nll_loss.default", "aten.nll_loss_nd.default", "aten.nll_loss2d.default")
def nll_loss(
    self: Expr, target: Expr, weight: Expr | None = None, reduction: int = 1, ignore_index: int = -100
) -> Expr:
    """Minus the log-probability of the target class, which ``self`` has in axis 1."""
    return call(helper.nll_loss, self, target, **_options(weight, reduction, ignore_index))


@op("aten.nll_loss_forward.default", "aten.nll_loss2d_forward.default")
def nll_loss_forward(
    self: Expr, target: Expr, weight: Expr | None, reduction: int, ignore_index: int
) -> tuple[Expr, Expr]:
    """``nll_loss`` with the sum of the weights that it divides by."""
    loss = nll_loss(self, target, weight, reduction, ignore_index)
    if reduction == 0:
        return loss, mx.array(0.0)
    counts = mx.ones_like(target) if weight is None else weight[mx.maximum(target, 0)]
    return loss, mx.where(target == ignore_index, 0, counts).sum()


@op("aten.cross_entropy_loss.default")
def cross_entropy_loss(
    self: Expr,
    target: Expr,
    weight: Expr | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Expr:
    """Cross entropy of logits with class numbers or with probabilities."""
    options = _options(weight, reduction, ignore_index)
    if label_smoothing:
        options["label_smoothing"] = label_smoothing
    if mx.issubdtype(target.dtype, mx.floating).value:
        options.pop("ignore_index", None)
        return call(helper.soft_cross_entropy, self, target, **options)
    return call(helper.cross_entropy, self, target, **options)


def _linear_cross_entropy(
    input: Expr,
    linear_weight: Expr,
    target: Expr,
    linear_bias: Expr | None,
    weight: Expr | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    **chunking: Any,
) -> tuple[Expr | None, ...]:
    """Cross entropy of ``linear(x)``; how torch chunks it and the gradients beside it do not concern the value."""
    logits = linear(input, linear_weight, linear_bias)
    number = _REDUCTIONS.index(reduction)
    return cross_entropy_loss(logits, target, weight, number, ignore_index, label_smoothing), None, None, None


def _linear_cross_entropy_unreduced(
    input: Expr,
    linear_weight: Expr,
    target: Expr,
    linear_bias: Expr | None,
    weight: Expr | None,
    ignore_index: int,
    **chunking: Any,
) -> Expr:
    """``_linear_cross_entropy`` for each sample."""
    return cross_entropy_loss(linear(input, linear_weight, linear_bias), target, weight, 0, ignore_index)


if find_spec("torch.nn.modules.linear_cross_entropy"):  # since torch 2.13; importing it makes the two ops known
    import_module("torch.nn.modules.linear_cross_entropy")
    op("torch_nn._linear_cross_entropy_batch_chunked.default")(_linear_cross_entropy)
    op("torch_nn._linear_cross_entropy_batch_chunked_no_reduction.default")(_linear_cross_entropy_unreduced)


@op("aten.multi_margin_loss.default")
def multi_margin_loss(
    self: Expr,
    target: Expr,
    p: float = 1,
    margin: float = 1,
    weight: Expr | None = None,
    reduction: int = 1,
) -> Expr:
    """Hinge loss of every class against the target class."""
    options: dict[str, Any] = {} if p == 1 else {"p": p}
    if margin != 1:
        options["margin"] = margin
    if weight is not None:
        options["weight"] = weight
    return reduced(call(helper.multi_margin_loss, self, target, **options), reduction)


@op("aten.multilabel_margin_loss.default")
def multilabel_margin_loss(self: Expr, target: Expr, reduction: int = 1) -> Expr:
    """Hinge loss of every class against each of the target classes."""
    if self.ndim == 0:
        self, target = self[None], target[None]
    return reduced(call(helper.multilabel_margin_loss, self, target), reduction)


@op("aten.multilabel_margin_loss_forward.default")
def multilabel_margin_loss_forward(self: Expr, target: Expr, reduction: int) -> tuple[Expr, None]:
    """``multilabel_margin_loss``; the other result serves the backward pass."""
    return multilabel_margin_loss(self, target, reduction), None


@op("aten.cosine_similarity.default")
def cosine_similarity(x1: Expr, x2: Expr, dim: int = 1, eps: float = 1e-8) -> Expr:
    """The cosine of the angle between vectors along ``dim``."""
    options: dict[str, Any] = {} if eps == 1e-8 else {"eps": eps}
    if x1.ndim == x2.ndim == 0:
        x1, x2 = x1[None], x2[None]
    return call(helper.cosine_similarity, x1, x2, dim, **options)


@op("aten.pairwise_distance.default")
def pairwise_distance(x1: Expr, x2: Expr, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Expr:
    """The p-norm of ``x1 - x2 + eps`` over the last axis."""
    options: dict[str, Any] = {} if p == 2 else {"p": p}
    distance = call(helper.last_axis_norm, x1 - x2 + eps, **options)
    return distance[..., None] if keepdim else distance


@op("aten.pdist.default", "aten._pdist_forward.default")
def pdist(self: Expr, p: float = 2.0) -> Expr:
    """Distances of all pairs of rows."""
    refuse(not isinstance(self.shape[0], int), "a dynamic number of rows: the number of pairs is not linear in it")
    return call(helper.pdist, self, **{} if p == 2 else {"p": p})


@op("aten.dropout.default", "aten.feature_dropout.default")
def dropout(input: Expr, p: float, train: bool) -> Expr:
    """The identity, unless in training."""
    refuse(train and p > 0, "dropout in training mode: the result is random")
    return input


@op("aten.alpha_dropout.default", "aten.feature_alpha_dropout.default")
def alpha_dropout(input: Expr, p: float, train: bool) -> Expr:
    """The identity, unless in training."""
    refuse(train and p > 0, "dropout in training mode: the result is random")
    return input


@op("aten.native_dropout.default")
def native_dropout(input: Expr, p: float, train: bool | None) -> tuple[Expr, Expr]:
    """The identity with a mask of ones, unless in training."""
    refuse(train is not False and p > 0, "dropout in training mode: the result is random")
    return input, mx.ones(input.shape, dtype=mx.bool_)


@op("aten.cdist.default", "aten._cdist_forward.default")
def cdist(x1: Expr, x2: Expr, p: float = 2.0, compute_mode: int | None = None) -> Expr:
    """Distances of all pairs of rows; ``compute_mode`` 2 rules out the formula by products, 1 asks for it."""
    if p == 2 and compute_mode != 2:
        return call(helper.euclidean_cdist, x1, x2, *[True] if compute_mode == 1 else [])
    return call(helper.cdist, x1, x2, *[] if p == 2 else [p])
