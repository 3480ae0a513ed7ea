"""A quantized port taken apart: its packed weights against the original's, and the port without packed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlxport.model.read_when_used import Unkept, read_when_used
from mlxport.parity.parity_report import WeightCheck
from mlxport.parity.torch_rows import BLOCK_BYTES
from mlxport.parity.weight_errors import WeightDifference, check_weights, judge
from mlxport.quant import level
from mlxport.quant.tolerances import STORED_WEIGHT_BOUND, level_name
from mlxport.transform import float32

__all__ = ["PlainPorts", "computing_in_float32", "plain_ports"]

Rows = Callable[[slice], mx.array]


@dataclass(frozen=True)
class PlainPorts:
    """What shows that a quantized port is right, however coarse its weights are.

    Attributes:
        original: The port with the original's weights in place of the packed ones: it must compute what the original
            does.
        dequantized: The port in float32, with the values that the packed weights stand for: the quantized one must
            compute the same, in float32 too, where rounding cannot be taken for a difference.
        weights: The packed weights against the original's.
    """

    original: nn.Module
    dequantized: nn.Module
    weights: WeightCheck


def plain_ports(
    quantized: nn.Module,
    empty: Callable[[], nn.Module],
    wanted: Mapping[str, mx.array],
    trained: Set[str] = frozenset(),
    *,
    unkept: bool = False,
) -> PlainPorts:
    """Take a quantized port apart.

    Args:
        quantized: The port with its weights.
        empty: Makes the same port with nothing quantized; its weights do not matter.
        wanted: The port's weights before any was quantized, by path.
        trained: Paths of the modules that were trained after that: theirs need only resemble the original's.
        unkept: Whether no weight may stay in memory; then ``quantized`` and ``wanted`` keep none either.
    """
    packed = {f"{path}.weight": module for path, module in quantized.named_modules() if "scales" in module}
    parts = {f"{name.removesuffix('weight')}{part}" for name in packed for part in ("weight", "scales", "biases")}
    unfit: set[str] = set()

    def kept() -> dict[str, mx.array]:
        return {name: array for name, array in tree_flatten(quantized.parameters()) if name not in parts}

    def replaced() -> Iterator[str]:
        yield from packed
        yield from (name for name in kept() if name.rpartition(".")[0] in trained and name in wanted)

    def compared() -> Iterator[WeightDifference]:
        for name in replaced():
            module, original = packed.get(name), wanted.get(name)
            values = _unpacked(module) if module is not None else kept()[name].__getitem__
            bound = STORED_WEIGHT_BOUND[level_name(level(module.mode, module.bits))] if module is not None else 0.0
            if name.rpartition(".")[0] in trained:
                bound = max(bound, STORED_WEIGHT_BOUND["trained"])
            if original is None or original.shape != values(slice(None)).shape:
                unfit.add(name)
            yield _difference(name, values, original, bound)

    def dequantized() -> dict[str, mx.array]:
        values = {name: _unpacked(module)(slice(None)) for name, module in packed.items()}
        return {name: float32(array) for name, array in {**kept(), **values}.items()}

    def original() -> dict[str, mx.array]:
        own = {name: wanted[name] for name in replaced() if name not in unfit}
        return {**kept(), **{name: _unpacked(packed[name])(slice(None)) for name in unfit if name in packed}, **own}

    weights, _ = check_weights(compared())
    return PlainPorts(_filled(empty(), original, unkept), _filled(empty(), dequantized, unkept), weights)


@contextmanager
def computing_in_float32(port: nn.Module) -> Iterator[nn.Module]:
    """The port with float32 in place of its floating parameters, those of packed weights too, while this lasts."""
    state = port.parameters()
    try:
        port.update(tree_map(float32, state))
        yield port
    finally:
        port.update(state)


def _filled(model: nn.Module, weights: Callable[[], Mapping[str, mx.array]], unkept: bool) -> nn.Module:
    model.update(tree_unflatten(list(weights().items())))
    return (read_when_used(model, Unkept(weights)) if unkept else model).eval()


def _unpacked(module: Any) -> Rows:
    """What packed weights stand for, float32, by rows."""
    settings = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode, "dtype": mx.float32}
    weight, scales, biases = module["weight"], float32(module["scales"]), module.get("biases")
    biases = None if biases is None else float32(biases)

    def rows(place: slice) -> mx.array:
        return mx.dequantize(weight[place], scales[place], None if biases is None else biases[place], **settings)

    return rows


def _difference(name: str, values: Rows, original: mx.array | None, bound: float) -> WeightDifference:
    """One stored weight against the original's, by rows: one that is wrong would vanish among many."""
    shape = values(slice(None)).shape
    if original is None or original.shape != shape:
        held = "none" if original is None else f"{original.shape}"
        return WeightDifference(name, float("inf"), 0, bound, f"has shape {shape}, in the original {held}")
    norms = [_norms(original[place], values(place)) for place in _blocks(shape)]
    sizes, gaps = (torch.from_numpy(np.concatenate(part)).to(torch.float64) for part in zip(*norms, strict=True))
    # Norms that are stored less 1 may be next to nothing, and training moves them by more.
    least = float(original.size) if original.ndim == 1 else 0.0
    return judge(name, sizes, gaps, bound, rows=original.ndim > 1, least=least)


def _blocks(shape: tuple[int, ...]) -> list[slice]:
    step = max(1, BLOCK_BYTES // (4 * max(prod(shape[1:]), 1)))
    return [slice(start, start + step) for start in range(0, shape[0], step)]


def _norms(theirs: mx.array, ours: mx.array) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Of each of some rows: how large the original is, and how large the difference."""
    ours, theirs = (array.astype(mx.float32) for array in (ours, theirs))
    ours, theirs = (x.flatten(0, -2) if x.ndim > 1 else x[:, None] for x in (ours, theirs))
    sizes, gaps = mx.linalg.norm(theirs, axis=-1), mx.linalg.norm(ours - theirs, axis=-1)
    mx.eval(sizes, gaps)
    return np.array(sizes), np.array(gaps)
