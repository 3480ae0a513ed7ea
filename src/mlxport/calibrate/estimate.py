"""How long a calibration takes on this machine, and how much memory, from the shapes of the weights alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import prod
from typing import Any

import mlx.core as mx

from mlxport.calibrate.calibration_text import LENGTH, MOST_TOKENS, Calibration, read_calibration, written
from mlxport.calibrate.moments import column_ranges
from mlxport.calibrate.packed_matrices import BLOCK
from mlxport.calibrate.paired_batch import PairedBatch
from mlxport.model.block_paths import block_of
from mlxport.model_config import ModelConfig
from mlxport.output.plan import BASE_BYTES
from mlxport.quant import is_linear
from mlxport.transform import Program
from mlxport.types import CalibrationPlan, Checkpoint, QuantSpec

__all__ = ["estimate", "estimate_default"]

_PASSES = 3  # forward: the original, what is measured, what is fed forward
_WORK = 8  # products of a matrix with its moments while it is quantized
_STEPS = 36  # operations for each column of a block of rows
_STEP_SECONDS = 12e-6
_WRITE_SECONDS = 8e-4  # of a block, for a token, beside its arithmetic
_SQUARES = 6  # matrices as large as the moments that factoring them takes, measured
_TEMPORARIES = 9  # of a block of rows that is quantized, as float32


def estimate_default(
    checkpoint: Checkpoint, program: Program, quantized: Mapping[str, QuantSpec], context: int | None
) -> CalibrationPlan:
    """Time and memory of ``--calibrate default``, without a tokenizer: the text is taken to be as long as it may be.

    Args:
        checkpoint: The source; headers are enough.
        program: What will be written, quantized or not.
        quantized: Module path to its quantization.
        context: Most tokens that the model was made for.
    """
    calibration = read_calibration("default")
    assert calibration is not None
    length = min(LENGTH, context or LENGTH)
    sequences = max(MOST_TOKENS // length, 1)
    writes = written(calibration, checkpoint, sequences)
    return estimate(calibration, (sequences, length), writes, program, quantized, checkpoint.config)


def estimate(
    calibration: Calibration,
    read: tuple[int, int],
    writes: int,
    program: Program,
    quantized: Mapping[str, QuantSpec],
    config: Mapping[str, Any],
) -> CalibrationPlan:
    """Time and memory of a calibration.

    Args:
        calibration: The text.
        read: Sequences, and tokens of each.
        writes: Sequences of them that the model writes itself.
        program: What will be written; only names, shapes and dtypes are looked at.
        quantized: Module path to its quantization.
        config: The model's, for the experts that a token is sent to.
    """
    sequences, length = read
    count = sequences * length
    units: dict[str, list[tuple[str, tuple[int, ...], int]]] = {}
    for name, output in program.outputs.items():
        if output.part in ("scales", "biases"):
            continue
        shape = output.value.shape if output.value is not None else output.shape
        size = output.value.dtype.size if output.value is not None else output.dtype.size
        units.setdefault(block_of(name) or name.rpartition(".")[0], []).append((name, shape, size))
    chosen = _chosen(ModelConfig(config))
    hidden = min((shape[-1] for unit in units.values() for _, shape, _ in unit if len(shape) > 1), default=1)
    model = ModelConfig(config)
    hidden = model.hidden_size or hidden
    flops, steps, peak = 0.0, 0.0, 0
    batch = PairedBatch(sequences, length)
    for unit in units.values():
        more, more_steps, needed = _unit(unit, quantized, count, chosen, batch)
        flops, steps, peak = flops + more, steps + more_steps, max(peak, needed)
    flops += _attention(model, count, length)
    held = 3 * 2 * count * hidden * 4  # activations before a block, after it, and in pieces
    weights = sum(prod(shape) for unit in units.values() for _, shape, _ in unit) if writes else 0
    flops += 2 * weights * writes * length
    seconds = flops / _rate() + steps * _STEP_SECONDS + bool(writes) * length * len(units) * _WRITE_SECONDS
    # A model that writes is in memory whole.
    needed = max(peak + held, 4 * weights + writes * length * hidden * 4)
    return CalibrationPlan(calibration.name, calibration.sha256, count, sequences, seconds, BASE_BYTES + needed)


def _attention(config: ModelConfig, count: int, length: int) -> float:
    """Operations of attention as most models have it: two products, and a softmax that costs as much as forty."""
    heads, layers, hidden = (size or 0 for size in (config.heads, config.layers, config.hidden_size))
    return float(_PASSES * count * length * layers * (4 * hidden + 40 * heads))


def _unit(
    unit: list[tuple[str, tuple[int, ...], int]],
    quantized: Mapping[str, QuantSpec],
    count: int,
    chosen: int,
    batch: PairedBatch,
) -> tuple[float, float, int]:
    """Floating point operations, column steps and bytes of one unit."""
    flops, steps, widest = 0.0, 0.0, 0
    inputs: set[tuple[str, int]] = set()
    held = inside = 0
    first, last = batch.pieces()[0]
    for name, shape, _ in unit:
        spec = quantized.get(name.rpartition(".")[0])
        if len(shape) < 2 or not name.endswith(".weight"):
            continue
        rows, columns = shape[-2:]
        experts = shape[0] if len(shape) == 3 else 1
        used = min(chosen, experts)
        flops += 2 * _PASSES * used * rows * columns * count
        inside += (last - first) * batch.length * used * (rows + columns) * 4
        if spec is None or not is_linear(spec.mode):
            continue
        inputs.add((name.rpartition(".")[0].rpartition(".")[0], columns))
        ranges = column_ranges(columns)
        wide = ranges[0][1]
        flops += experts * len(ranges) * (2 * _WORK * rows * wide**2 + 6 * wide**3)
        steps += experts * -(-rows * columns // BLOCK) * wide * _STEPS
        widest = max(widest, wide)
        held += count * used * columns * 2 if experts > 1 else 0
    squares = [(stop - start) ** 2 for _, columns in inputs for start, stop in column_ranges(columns)]
    flops += 4 * count * sum(squares)
    moments = 2 * 4 * sum(squares)
    weights = sum(prod(shape) * size for _, shape, size in unit) if len(unit) > 1 else 0
    work = _SQUARES * 4 * widest**2 + _TEMPORARIES * 4 * BLOCK
    return flops, steps, 2 * weights + moments + held + max(work, inside)


def _chosen(config: ModelConfig) -> int:
    """Experts that a token is sent to."""
    names = ("num_experts_per_tok", "moe_topk", "top_k_experts", "num_experts_per_token", "moe_top_k")
    return config.count(*names) or 2


def _rate() -> float:
    """Floating point operations a second of a product of two float32 matrices here, measured."""
    size = 512
    a = mx.random.normal((size, size), key=mx.random.key(0))
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        mx.eval(a @ a)
        best = min(best, time.perf_counter() - start)
    return 0.5 * 2 * size**3 / best  # smaller and odder shapes do half of that
