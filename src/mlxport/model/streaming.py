"""A model in MLX without its weights in memory: leaf modules that read blocks of rows where they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlxport.model.hooks import answering, swap_classes
from mlxport.model.leaf_calls import LeafCalls, expert_products, is_leaf, leaf_class, row_products, table_rows
from mlxport.model.tensors import Tensor, stored_tensors
from mlxport.transform import float32

__all__ = ["StreamedMatrix", "stream"]

BLOCK_BYTES = 4 << 20  # of float32 rows: what a core works on stays in its cache
SMALL_BYTES = 4 << 20  # parameters of other modules up to this size stay once they are read
FEW = 8  # inputs; more are multiplied by a packed weight once it is unpacked, as MLX's kernels for GPUs do
# Inputs from which weight @ x.T is faster than x @ weight.T: 2.4 times by the BLAS of MLX's Linux wheel, 1.3 by
# OpenBLAS.
_TURNED = 4
PARTS = ("weight", "scales", "biases")

Parts = Mapping[str, mx.array]


class StreamedMatrix(LeafCalls):
    """A weight, plain or packed, that is read where it is used and computes in float32.

    Args:
        tensors: ``weight``, and of a packed one ``scales`` and maybe ``biases``.
        how: Mode, bits and group size of a packed one, None for a plain one.
    """

    def __init__(self, tensors: Mapping[str, Tensor], how: Mapping[str, Any] | None = None) -> None:
        self.tensors = tensors
        self.how = how
        self.count = tensors["weight"].shape[0]
        row = 4 * prod(tensors["weight"].shape[1:]) * (32 // how["bits"] if how else 1)
        self.step = max(1, BLOCK_BYTES // row)

    def parts(self, start: int, stop: int) -> dict[str, mx.array]:
        """Rows as they are stored; floating ones as float32."""
        return {part: float32(tensor.rows(start, stop)) for part, tensor in self.tensors.items()}

    def rows(self, start: int, stop: int) -> mx.array:
        """Rows of the weight itself, float32."""
        return self._unpacked(self.parts(start, stop))

    def linear(self, x: mx.array) -> mx.array:
        """See ``LeafCalls``."""
        return row_products(self._blocks(), lambda parts: self._product(x, parts))

    def lookup(self, ids: mx.array) -> mx.array:
        """See ``LeafCalls``."""
        rows, places = table_rows(ids, lambda row: self.rows(row, row + 1))
        return rows[places]

    def experts(self, x: mx.array, indices: mx.array, ordered: bool) -> mx.array:
        """See ``LeafCalls``."""

        def product(expert: int, mine: mx.array, _: np.ndarray[Any, Any]) -> mx.array:
            matrix = self.parts(expert, expert + 1)
            return self._product(mine, {part: value[0] for part, value in matrix.items()})

        return expert_products(x, indices, product)

    def done(self, output: mx.array) -> mx.array:
        """Evaluated at once, so that the weight is let go of."""
        mx.eval(output)
        mx.clear_cache()
        return output

    def _blocks(self) -> Iterator[dict[str, mx.array]]:
        for start in range(0, self.count, self.step):
            yield self.parts(start, min(start + self.step, self.count))

    def _product(self, x: mx.array, parts: Parts) -> mx.array:
        """``x`` by the transpose of some rows: MLX's kernel for packed ones unpacks them anew for every input."""
        inputs = x.size // x.shape[-1]
        if self.how is not None and inputs <= FEW:
            packed: Any = {"scales": parts["scales"], "biases": parts.get("biases")}
            return mx.quantized_matmul(x, parts["weight"], transpose=True, **packed, **self.how)
        weight = self._unpacked(parts)
        if inputs < _TURNED:
            return x @ weight.swapaxes(-1, -2)
        turned = mx.contiguous(x.reshape(inputs, -1).T)
        return (weight @ turned).T.reshape(*x.shape[:-1], -1)

    def _unpacked(self, parts: Parts) -> mx.array:
        if self.how is None:
            return parts["weight"]
        return mx.dequantize(parts["weight"], parts["scales"], parts.get("biases"), **self.how).astype(mx.float32)


def _other(cls: type, tensors: Mapping[str, Tensor]) -> type:
    """A class for any other module with large parameters: evaluate its output, then put lazy arrays back."""

    def answer(module: Any, _: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = call(*args, **kwargs)
        mx.eval([array for _, array in tree_flatten(result) if isinstance(array, mx.array)])
        for name, tensor in tensors.items():
            module[name] = float32(tensor.lazy())
        mx.clear_cache()
        return result

    return answering(cls, answer)


def stream(model: Any, tensors: Mapping[str, Tensor] | Path) -> list[str]:
    """Make every leaf of ``model`` read its weight where it is used, in float32, from now on.

    Args:
        model: mlx-lm's model; what its parameters hold is read only where a module stays in memory.
        tensors: By the names of its parameters, or the written folder that holds them.

    Returns:
        Paths of modules with large parameters that stay in memory once read.
    """
    there = stored_tensors(tensors) if isinstance(tensors, Path) else tensors
    kept, changes = [], []
    model.set_dtype(mx.float32)
    for path, module in model.named_modules():
        own = {name: there[f"{path}.{name}"] for name in module if f"{path}.{name}" in there}
        if not own or any(tuple(module[name].shape) != tensor.shape for name, tensor in own.items()):
            if sum(v.nbytes for v in module.values() if isinstance(v, mx.array)) > SMALL_BYTES:
                kept.append(path)
        elif is_leaf(module) and not module.get("global_scale"):
            parts = {name: tensor for name, tensor in own.items() if name in PARTS}
            how = None
            if "scales" in parts:
                how = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
            changes.append((module, leaf_class(module, StreamedMatrix(parts, how))))
        elif sum(tensor.nbytes for tensor in own.values()) > SMALL_BYTES and callable(module):
            changes.append((module, _other(type(module), own)))
    swap_classes(changes)
    return kept
