"""Single quantized modules against the same weights dequantized in torch, where the whole model cannot be rebuilt."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import torch

from mlxport.model.tensors import StoredTensor
from mlxport.parity.metrics import compare_logits
from mlxport.parity.parity_report import Comparison
from mlxport.parity.stored import StoredWeights
from mlxport.quant.tolerances import ROWS
from mlxport.transform import float32

__all__ = ["compare_modules"]

_INPUTS, _OUTPUTS = 4, 512


def compare_modules(stored: StoredWeights) -> Comparison:
    """The worst of all quantized modules: MLX's output for random inputs against torch's for the unpacked weights.

    Of large weights the first, middle and last rows (or experts) are taken.
    """
    names = [name for name in stored.names if stored.how(name)]
    worst: Comparison | None = None
    for name in names:
        output, reference = _products(stored, name)
        title = f"quantized modules vs the same weights dequantized in torch (worst of {len(names)}: {name})"
        # One row of all outputs: the figures of a comparison are centred over a row, and a gate may have one output.
        found = compare_logits(title, output.reshape(1, -1), reference.reshape(1, -1), ROWS["same weights"])
        if worst is None or (not found.passed, found.relative) > (not worst.passed, worst.relative):
            worst = found
    assert worst is not None
    return worst


def _products(stored: StoredWeights, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    ref, how = stored.refs[name], stored.how(name)
    assert how is not None
    rows = ref.shape[0]
    step = max(1, min(rows, _OUTPUTS // int(np.prod(ref.shape[1:-1]))))
    x = np.random.default_rng(0).standard_normal((_INPUTS, stored.shape(name)[-1])).astype(np.float32)
    ours, theirs = [], []
    for start in sorted({0, (rows - step) // 2, rows - step}):
        weight = stored.rows(name, start, start + step).flatten(0, -2)
        theirs.append((torch.from_numpy(x) @ weight.T).numpy())
        parts = {p: StoredTensor(r) for p in ("scales", "biases") if (r := stored.part(name, p))}
        flat: Any = {p: float32(t.rows(start, start + step)).flatten(0, -2) for p, t in parts.items()}
        packed = StoredTensor(ref).rows(start, start + step).flatten(0, -2)
        ours.append(np.array(mx.quantized_matmul(mx.array(x), packed, transpose=True, **flat, **how)))
    return np.concatenate(ours, -1), np.concatenate(theirs, -1)
