"""Sums of products of integers, which MLX's matrix products do not take."""

from __future__ import annotations

import mlx.core as mx


def integer_einsum(equation: str, *arrays: mx.array) -> mx.array:
    """``einsum`` of integers: the product of all arrays over all letters, summed."""
    inputs, output = equation.split("->")
    letters = output + "".join(sorted(set(inputs) - set(output) - {","}))
    result = mx.ones((1,) * len(letters), dtype=mx.int64)
    for term, array in zip(inputs.split(","), arrays, strict=True):
        array = array.astype(mx.int64)
        kept = list(term)
        for letter in sorted(set(term)):
            while kept.count(letter) > 1:  # a letter twice: the diagonal, which mx.diagonal puts last
                first, second = [place for place, item in enumerate(kept) if item == letter][:2]
                array = mx.diagonal(array, axis1=first, axis2=second)
                kept = [item for place, item in enumerate(kept) if place not in (first, second)] + [letter]
        array = array.transpose(*[kept.index(letter) for letter in letters if letter in kept]) if kept else array
        shape = iter(array.shape)
        result = result * array.reshape([next(shape) if letter in kept else 1 for letter in letters])
    axes = tuple(range(len(output), len(letters)))
    return (result.sum(axis=axes) if axes else result).astype(arrays[0].dtype)


def integer_inner(a: mx.array, b: mx.array) -> mx.array:
    """Sums of products of the last axes of integer arrays."""
    left = a.reshape(a.shape[:-1] + (1,) * (b.ndim - 1) + a.shape[-1:]).astype(mx.int64)
    return (left * b).sum(axis=-1).astype(a.dtype)
