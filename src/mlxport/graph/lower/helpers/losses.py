"""Losses and distances that take more than a line of MLX."""

from __future__ import annotations

import math

import mlx.core as mx


def smooth_l1(difference, beta=1.0):
    """Half the square over beta below beta, the distance minus beta / 2 above."""
    distance = mx.abs(difference)
    return mx.where(distance < beta, 0.5 * distance * distance / beta, distance - 0.5 * beta)


def binary_cross_entropy(x, target):
    """Cross entropy of probabilities, logarithms bounded at -100."""
    return (target - 1) * mx.maximum(mx.log1p(-x), -100) - target * mx.maximum(mx.log(x), -100)


def kl_divergence(x, target):
    """Compute target * (log(target) - x), where x is a log-probability."""
    entropy = mx.where(target == 0, 0, target * mx.log(mx.where(target == 0, 1, target)))
    return entropy - target * x


def nll_loss(x, target, weight=None, reduction="mean", ignore_index=-100):
    """Minus the log-probability of the target class; classes in axis 1, or in axis 0 of a vector."""
    axis = 1 if x.ndim > 1 else 0
    counted = target != ignore_index
    classes = mx.where(counted, target, 0)
    picked = mx.take_along_axis(x, mx.expand_dims(classes, axis), axis=axis).squeeze(axis)
    weights = counted.astype(x.dtype) if weight is None else mx.where(counted, weight[classes], 0)
    loss = mx.where(counted, -picked * weights, 0)
    if reduction == "mean":
        return loss.sum() / weights.sum()
    return loss.sum() if reduction == "sum" else loss


def cross_entropy(x, target, weight=None, reduction="mean", ignore_index=-100, label_smoothing=0.0):
    """Cross entropy of logits with class numbers; classes in axis 1, or in axis 0 of a vector."""
    axis = 1 if x.ndim > 1 else 0
    log_p = x - mx.logsumexp(x, axis=axis, keepdims=True)
    loss = nll_loss(log_p, target, weight, reduction, ignore_index)
    if label_smoothing == 0:
        return loss
    counted = target != ignore_index
    shape = [-1 if a == axis else 1 for a in range(x.ndim)]
    weighted = log_p if weight is None else log_p * weight.reshape(shape)
    smooth = mx.where(counted, -weighted.sum(axis=axis), 0)
    if reduction == "mean":
        weights = counted if weight is None else mx.where(counted, weight[mx.where(counted, target, 0)], 0)
        smooth = smooth.sum() / weights.sum()
    elif reduction == "sum":
        smooth = smooth.sum()
    return (1 - label_smoothing) * loss + label_smoothing / x.shape[axis] * smooth


def soft_cross_entropy(x, target, weight=None, reduction="mean", label_smoothing=0.0):
    """Cross entropy of logits with probabilities; classes in axis 1, or in axis 0 of a vector."""
    axis = 1 if x.ndim > 1 else 0
    log_p = x - mx.logsumexp(x, axis=axis, keepdims=True)
    if weight is not None:
        log_p = log_p * weight.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / x.shape[axis]
    loss = -(log_p * target).sum(axis=axis)
    if reduction == "mean":
        return loss.sum() / (x.size // x.shape[axis])
    return loss.sum() if reduction == "sum" else loss


def multi_margin_loss(x, target, p=1, margin=1, weight=None):
    """max(0, margin - x[target] + x[i]) ** p for every other class i, averaged over the classes."""
    rows, classes = x.reshape(-1, x.shape[-1]), target.reshape(-1)
    own = mx.take_along_axis(rows, classes[:, None], axis=1)
    loss = mx.maximum(margin - own + rows, 0) ** p
    if weight is not None:
        loss = loss * weight[classes][:, None]
    loss = mx.where(mx.arange(x.shape[-1]) == classes[:, None], 0, loss)
    return loss.sum(axis=1).reshape(target.shape) / x.shape[-1]


def multilabel_margin_loss(x, target):
    """max(0, 1 - x[j] + x[i]) for targets j and other classes i, averaged; targets end at a negative."""
    width = x.shape[-1] if x.ndim else 1
    rows, classes = x.reshape(-1, width), target.reshape(-1, width)
    listed = mx.cumprod((classes >= 0).astype(mx.int32), axis=1) == 1
    number = mx.arange(width)
    is_target = (listed[:, :, None] & (classes[:, :, None] == number)).any(axis=1)
    own = mx.take_along_axis(rows, mx.maximum(classes, 0), axis=1)
    loss = mx.maximum(1 - own[:, :, None] + rows[:, None, :], 0)
    loss = mx.where(listed[:, :, None] & ~is_target[:, None, :], loss, 0)
    return loss.sum(axis=(1, 2)).reshape(target.shape[:-1]) / width


def cosine_similarity(x1, x2, axis=1, eps=1e-8):
    """The cosine of the angle between vectors along an axis; norms count as eps at least."""
    x1, x2 = mx.broadcast_arrays(x1, x2)
    norm1 = mx.maximum(mx.sqrt(mx.square(x1).sum(axis=axis, keepdims=True)), eps)
    norm2 = mx.maximum(mx.sqrt(mx.square(x2).sum(axis=axis, keepdims=True)), eps)
    return ((x1 / norm1) * (x2 / norm2)).sum(axis=axis)


def last_axis_norm(x, p=2.0):
    """The p-norm over the last axis."""
    x = mx.abs(x)
    if p == 2:
        return mx.sqrt(mx.square(x).sum(axis=-1))
    if p == 0:
        return (x != 0).sum(axis=-1).astype(x.dtype)
    if math.isinf(p):
        return x.max(axis=-1) if p > 0 else x.min(axis=-1)
    return x.sum(axis=-1) if p == 1 else (x**p).sum(axis=-1) ** (1 / p)


def pdist(x, p=2.0):
    """Distances of all pairs of rows, in the order (0, 1), (0, 2), ..."""
    n = x.shape[0]
    if n < 2:
        return mx.zeros((0,), dtype=x.dtype)
    if x.shape[1] == 0:
        return mx.zeros((n * (n - 1) // 2,), dtype=x.dtype)
    first = mx.concatenate([mx.full((n - 1 - i,), i) for i in range(n - 1)])
    second = mx.concatenate([mx.arange(i + 1, n) for i in range(n - 1)])
    return last_axis_norm(x[first] - x[second], p)


def euclidean_cdist(x1, x2, products=False):
    """The distance of every row of x1 to every row of x2: by products where there are more than 25, as torch does."""
    if not products and max(x1.shape[-2], x2.shape[-2]) <= 25:
        return cdist(x1, x2)
    squares = mx.square(x1).sum(axis=-1)[..., :, None] + mx.square(x2).sum(axis=-1)[..., None, :]
    return mx.sqrt(mx.maximum(squares - 2 * x1 @ x2.swapaxes(-2, -1), 0))


def cdist(x1, x2, p=2.0):
    """The p-norm distance of every row of x1 to every row of x2."""
    return last_axis_norm(mx.expand_dims(x1, -2) - mx.expand_dims(x2, -3), p)
