"""Random chains of operations: rows of the traced graph are those of a plain run, whatever is composed."""

from __future__ import annotations

import tempfile
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored import assert_traced, store_random

DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16, "I32": mx.int32}


def factors(number: int) -> list[tuple[int, ...]]:
    """Ways to write a size as a shape of up to three axes."""
    return [
        (a, b, number // a // b)
        for a in range(1, number + 1)
        if number % a == 0
        for b in range(1, number // a + 1)
        if number // a % b == 0
    ] + [(number,)]


@st.composite
def chains(draw: Any) -> tuple[str, tuple[int, ...], list[Any]]:
    """A dtype, a shape and steps, each a name and its arguments, that fit each other."""
    shape = first = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    steps: list[Any] = []
    for _ in range(draw(st.integers(1, 6))):
        axis = draw(st.integers(0, len(shape) - 1))
        name = draw(st.sampled_from(["reshape", "transpose", "slice", "split", "concat", "stack", "pad", "broadcast",
                                     "astype", "double", "take"]))  # fmt: skip
        if name == "reshape":
            args: Any = draw(st.sampled_from(factors(prod(shape)))) if prod(shape) else shape
        elif name == "transpose":
            args = tuple(draw(st.permutations(range(len(shape)))))
        elif name == "slice":
            start = draw(st.integers(0, shape[axis]))
            args = (axis, start, draw(st.integers(start, shape[axis])), draw(st.integers(1, 3)))
        elif name == "split":
            args = (axis, draw(st.integers(0, shape[axis])), draw(st.integers(0, 1)))
        elif name == "pad":
            args = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in shape)
        elif name == "broadcast":
            args = draw(st.integers(1, 3))
        elif name == "astype":
            args = draw(st.sampled_from([*DTYPES]))
        elif name == "take":
            args = tuple(draw(st.lists(st.integers(0, shape[0] - 1), min_size=1, max_size=4))) if shape[0] else ()
        else:
            args = axis
        if prod(shape) > 400 and name in ("concat", "stack", "pad", "broadcast", "take"):
            continue
        steps.append((name, args))
        shape = tuple(apply(mx.zeros(shape), steps[-1:]).shape)
    return draw(st.sampled_from([*DTYPES])), first, steps


def apply(array: mx.array, steps: list[Any]) -> mx.array:
    for name, args in steps:
        if name == "reshape":
            array = array.reshape(args)
        elif name == "transpose":
            array = array.transpose(args)
        elif name == "slice":
            axis, *bounds = args
            array = array[(*[slice(None)] * axis, slice(*bounds))]
        elif name == "split":
            axis, at, which = args
            array = mx.split(array, [at], axis=axis)[which]
        elif name == "concat":
            array = mx.concatenate([array, array], axis=args)
        elif name == "stack":
            array = mx.stack([array, array], axis=args)
        elif name == "pad":
            array = mx.pad(array, args, constant_values=2)
        elif name == "broadcast":
            array = mx.broadcast_to(array, (args, *array.shape))
        elif name == "astype":
            array = array.astype(DTYPES[args])
        elif name == "double":
            array = array + array
        elif name == "take" and args:
            array = array[mx.array(args)]
    return array


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(chains())
def test_any_chain(chain: tuple[str, tuple[int, ...], list[Any]]):
    dtype, shape, steps = chain
    with tempfile.TemporaryDirectory() as folder:
        refs = store_random(Path(folder), a=(dtype, shape))
        assert_traced(refs, lambda t: {"out": apply(t["a"], steps)})
