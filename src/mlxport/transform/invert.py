"""From output tensors back to the checkpoint tensors that would have given them."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from mlxport.transform.evaluate import Evaluator
from mlxport.transform.program import Program, Value
from mlxport.transform.row_rules import ROW_OPS
from mlxport.types import TensorRef


class NotInvertible(ValueError):
    """The map does more than move, scale or shift elements, so no checkpoint tensors can be given for its outputs."""


def invert(program: Program, outputs: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Lazily, the float checkpoint tensors that ``program`` maps to ``outputs``.

    Holds for maps that move, scale or shift single elements (rename, stack, split, transpose, cast, ``1 + w``): such a
    map is f(x) = Jx + f(0) with at most one source element an output element, so Jᵀ(y − f(0)) divided by
    Jᵀ(f(1) − f(0)) is its inverse. Tensors that the map does not use are absent from the result; single elements that
    it drops come out as NaN.

    Raises:
        NotInvertible: An output in ``outputs`` is computed in another way.
    """
    result: dict[str, mx.array] = {}
    for names in _components(program, outputs):
        values = [program.outputs[name].value for name in names]
        first = values[0]
        if len(names) == 1 and first is not None and first.leaf is not None:
            result[first.leaf.name] = outputs[names[0]]
            continue
        checked = [_linear(name, value) for name, value in zip(names, values, strict=True)]
        result.update(_solve(checked, [outputs[name] for name in names]))
    return result


def _linear(name: str, value: Value | None) -> Value:
    """``value`` if its cone only moves, scales and shifts elements; raises NotInvertible otherwise."""
    if value is None:
        raise NotInvertible(f"{name} is computed by operations that the trace could not follow")
    for node in value.cone():
        if node.leaf is not None and not mx.issubdtype(node.dtype, mx.floating):
            raise NotInvertible(f"{name} moves elements of {node.leaf.name}, which are {node.leaf.dtype}, not floats")
        call = node.call
        if call is None:
            continue
        if not ROW_OPS[call.op].linear:
            raise NotInvertible(f"{name} goes through {call.op}")
        if call.op in ("Multiply", "Divide") and all(source.leaves() for source in call.inputs):
            raise NotInvertible(f"{name} multiplies checkpoint tensors with each other")
        if call.op == "Divide" and call.inputs[1].leaves():
            raise NotInvertible(f"{name} divides by a checkpoint tensor")
        if call.op in ("Add", "Subtract") and all(source.leaves() for source in call.inputs):
            raise NotInvertible(f"{name} adds checkpoint tensors to each other")
    return value


def _components(program: Program, outputs: Mapping[str, mx.array]) -> list[list[str]]:
    """Outputs grouped such that no two groups share a checkpoint tensor."""
    owner: dict[str, int] = {}
    groups: dict[int, list[str]] = {}
    for number, name in enumerate(outputs):
        value = program.outputs[name].value
        leaves = [ref.name for ref in value.leaves()] if value is not None else []
        members = [name]
        for other in {owner[leaf] for leaf in leaves if leaf in owner}:
            members = groups.pop(other) + members
        groups[number] = members
        for member in members:
            member_value = program.outputs[member].value
            for ref in member_value.leaves() if member_value is not None else ():
                owner[ref.name] = number
    return list(groups.values())


def _solve(values: list[Value], wanted: list[mx.array]) -> dict[str, mx.array]:
    refs: dict[str, TensorRef] = {ref.name: ref for value in values for ref in value.leaves()}

    def forward(*arrays: mx.array) -> list[mx.array]:
        evaluator = Evaluator(dict(zip(refs, arrays, strict=True)), widen=True)
        return [evaluator.full(value) for value in values]

    zeros = [mx.zeros(ref.shape) for ref in refs.values()]
    ones = [mx.ones(ref.shape) for ref in refs.values()]
    at_zero, at_one = forward(*zeros), forward(*ones)
    targets = [y.astype(mx.float32) - z for y, z in zip(wanted, at_zero, strict=True)]
    slopes = [y - z for y, z in zip(at_one, at_zero, strict=True)]
    _, numerators = mx.vjp(forward, zeros, targets)
    _, denominators = mx.vjp(forward, zeros, slopes)
    return {name: n / d for name, n, d in zip(refs, numerators, denominators, strict=True)}
