"""A quantized port taken apart: its packed weights against the original's, and the port without packed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlxport.parity.parity_report import WeightCheck
from mlxport.parity.weight_errors import WeightDifference, check_weights, judge
from mlxport.quant import level
from mlxport.quant.tolerances import STORED_WEIGHT_BOUND, level_name
from mlxport.transform import float32

__all__ = ["PlainPorts", "computing_in_float32", "plain_ports"]


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
) -> PlainPorts:
    """Take a quantized port apart.

    Args:
        quantized: The port with its weights.
        empty: Makes the same port with nothing quantized; its weights do not matter.
        wanted: The port's weights before any was quantized, by path.
        trained: Paths of the modules that were trained after that: theirs need only resemble the original's.
    """
    packed = {f"{path}.weight": module for path, module in quantized.named_modules() if "scales" in module}
    parts = {f"{name.removesuffix('weight')}{part}" for name in packed for part in ("weight", "scales", "biases")}
    kept = {name: array for name, array in tree_flatten(quantized.parameters()) if name not in parts}
    values: dict[str, mx.array] = {}
    originals: dict[str, mx.array] = {}

    def compared() -> Iterator[WeightDifference]:
        for name, module in packed.items():
            original = wanted.get(name)
            values[name] = _dequantized(module)
            fits = original is not None and original.shape == values[name].shape
            originals[name] = original if original is not None and fits else values[name]
            bound = STORED_WEIGHT_BOUND[level_name(level(module.mode, module.bits))]
            if name.rpartition(".")[0] in trained:
                bound = max(bound, STORED_WEIGHT_BOUND["trained"])
            yield _difference(name, values[name], original, bound)
        for name in kept:
            if name.rpartition(".")[0] in trained and (original := wanted.get(name)) is not None:
                originals[name] = original
                yield _difference(name, kept[name], original, STORED_WEIGHT_BOUND["trained"])

    weights, _ = check_weights(compared())
    dequantized = {name: float32(array) for name, array in {**kept, **values}.items()}
    return PlainPorts(_filled(empty(), {**kept, **originals}), _filled(empty(), dequantized), weights)


@contextmanager
def computing_in_float32(port: nn.Module) -> Iterator[nn.Module]:
    """The port with float32 in place of its floating parameters, those of packed weights too, while this lasts."""
    state = port.parameters()
    try:
        port.update(tree_map(float32, state))
        yield port
    finally:
        port.update(state)


def _filled(model: nn.Module, weights: Mapping[str, mx.array]) -> nn.Module:
    model.update(tree_unflatten(list(weights.items())))
    return model.eval()


def _dequantized(module: Any) -> mx.array:
    settings = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode, "dtype": mx.float32}
    biases = module.get("biases")
    return mx.dequantize(module.weight, float32(module.scales), None if biases is None else float32(biases), **settings)


def _difference(name: str, values: mx.array, original: mx.array | None, bound: float) -> WeightDifference:
    """One stored weight against the original's, by rows: one that is wrong would vanish among many."""
    if original is None or original.shape != values.shape:
        held = "none" if original is None else f"{original.shape}"
        return WeightDifference(name, float("inf"), 0, bound, f"has shape {values.shape}, in the original {held}")
    rows, theirs = (array.astype(mx.float32) for array in (values, original))
    if original.ndim > 1:
        rows, theirs = rows.flatten(0, -2), theirs.flatten(0, -2)
    else:
        rows, theirs = rows[:, None], theirs[:, None]
    sizes, gaps = (
        torch.from_numpy(np.array(mx.linalg.norm(block, axis=-1))).to(torch.float64)
        for block in (theirs, rows - theirs)
    )
    # Norms that are stored less 1 may be next to nothing, and training moves them by more.
    least = float(original.size) if original.ndim == 1 else 0.0
    return judge(name, sizes, gaps, bound, rows=original.ndim > 1, least=least)
