"""Where an output's errors are: the weights of each module, and the hidden states after each block."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.model.hooks import first_array, watching_mlx
from mlxport.model.streaming import Tensor, Written, output_refs
from mlxport.model_config import ModelConfig
from mlxport.parity.metrics import relative_error
from mlxport.parity.parity_report import LayerError
from mlxport.parity.path_pairs import is_layer
from mlxport.quality.opened import Computed, Opened
from mlxport.transform import row_blocks
from mlxport.types import DTYPE_BITS

__all__ = ["ModuleError", "layer_errors", "weight_errors"]

Array = np.ndarray[Any, Any]
_HIDDEN_BYTES = 128 << 20  # of the original's hidden states that are kept
_TOKENS = (16, 256)
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


@dataclass(frozen=True, slots=True)
class ModuleError:
    """One matrix (or stack of matrices) of the output beside the original's.

    Attributes:
        path: Of the module.
        kind: What it is within its block: the path after the block's number; outside of blocks the whole path.
        layer: Number of its block, None outside of blocks.
        parameters: Weights that it holds.
        bits: Bits of a weight without scales: of the format, or of the dtype.
        group_size: Weights that share a scale, None where it is not quantized.
        mode: Of the quantization, or the dtype.
        bits_per_weight: Stored bits divided by weights, scales and biases included.
        error: RMS of the difference over RMS of the original's weights.
    """

    path: str
    kind: str
    layer: int | None
    parameters: int
    bits: int
    group_size: int | None
    mode: str
    bits_per_weight: float
    error: float

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return asdict(self)


def weight_errors(original: Opened, output: Opened) -> tuple[ModuleError, ...]:
    """The relative error of every matrix that the output stores, in the order of the model.

    Weights are read and compared a block of rows at a time, on both sides from disk.

    Args:
        original: Opened by ``open_original``.
        output: Opened by ``open_output``.
    """
    assert original.program is not None
    theirs = _Side({n: Computed(original.program, o) for n, o in original.program.outputs.items()}, original.packing)
    refs = output_refs(output.folder)
    ours = _Side({name: Written(ref) for name, ref in refs.items()}, output.packing)
    main = next((name[: at.start()] for name in theirs.matrices() if (at := _NUMBER.search(name))), "")
    found = []
    for name in theirs.matrices():
        if name not in refs:
            continue
        path, how = (name.removesuffix(".weight"), ours.how(name))
        stored = [refs[part] for part in ours.parts(name)]
        parameters = prod(stored[0].shape) * (32 if how else 1) // (int(how["bits"]) if how else 1)
        found.append(
            ModuleError(
                path,
                _kind(path, main),
                _layer(path),
                parameters,
                int(how["bits"]) if how else DTYPE_BITS[stored[0].dtype],
                int(how["group_size"]) if how else None,
                str(how["mode"]) if how else stored[0].dtype,
                8 * sum(ref.nbytes for ref in stored) / max(parameters, 1),
                _relative(theirs, ours, name),
            )
        )
    return tuple(found)


@dataclass(frozen=True)
class _Side:
    """The tensors of one model, dequantized as they are read."""

    tensors: Mapping[str, Tensor]
    packing: Mapping[str, Mapping[str, Any]]

    def matrices(self) -> Iterator[str]:
        """Names of what has rows and columns."""
        for name, tensor in self.tensors.items():
            packed = name.rpartition(".")[2] in ("scales", "biases") and name.rpartition(".")[0] in self.packing
            if len(tensor.shape) > 1 and not packed:
                yield name

    def how(self, name: str) -> Mapping[str, Any] | None:
        """How a weight is packed, None where it is not."""
        path, _, part = name.rpartition(".")
        return self.packing.get(path) if part == "weight" else None

    def parts(self, name: str) -> list[str]:
        """Names of the tensors that hold a weight."""
        path = name.rpartition(".")[0]
        more = [f"{path}.{part}" for part in ("scales", "biases")] if self.how(name) else []
        return [name, *(part for part in more if part in self.tensors)]

    def rows(self, name: str, start: int, stop: int) -> mx.array:
        """Rows of a weight, float32."""
        found = [self.tensors[part].rows(start, stop) for part in self.parts(name)]
        how = self.how(name)
        if how is not None:
            how_: Any = how
            return mx.dequantize(found[0], found[1], found[2] if len(found) > 2 else None, **how_).astype(mx.float32)
        return found[0].astype(mx.float32)


def _relative(theirs: _Side, ours: _Side, name: str) -> float:
    """RMS of the difference over RMS of the original, block by block."""
    lost = total = 0.0
    for start, stop in _blocks(theirs, name):
        one, two = theirs.rows(name, start, stop), ours.rows(name, start, stop)
        # Sums over the last axis in float32, the rest in float64: a matrix has too many squares for float32.
        sums = [mx.square(x).sum(axis=-1) for x in (one - two, one)]
        mx.eval(sums)
        lost += float(np.array(sums[0]).sum(dtype=np.float64))
        total += float(np.array(sums[1]).sum(dtype=np.float64))
        mx.clear_cache()
    if not np.isfinite(lost + total):
        return float("inf")
    return float((lost / total) ** 0.5) if total else (0.0 if not lost else float("inf"))


def _blocks(side: _Side, name: str) -> Iterator[tuple[int, int]]:
    """Ranges of rows that are worked on at a time."""
    tensor = side.tensors[name]
    if isinstance(tensor, Computed) and tensor.output.value is not None:
        yield from row_blocks(tensor.output.value)
        return
    yield 0, tensor.shape[0]  # what the trace could not follow is computed as a whole


def _layer(path: str) -> int | None:
    found = _NUMBER.search(path)
    return int(found[1]) if found else None


def _kind(path: str, main: str) -> str:
    """A module's place in its block; of blocks in another list than ``main``, with the name of that list."""
    found = _NUMBER.search(path)
    rest = path[found.end() + 1 :] if found else ""
    if not found or not rest:
        return path
    return rest if path[: found.start()] == main else f"{path[: found.start()]}.*.{rest}"


def layer_errors(original: Opened, output: Opened, ids: Array) -> tuple[LayerError, ...]:
    """The relative error of the hidden state after each block, both models reading the same tokens.

    Each model is fed its own activations, so errors add up from block to block.

    Args:
        original: Placed (``quality.place``).
        output: Placed.
        ids: Token ids of one sequence, of which as many are read as memory allows: 16 to 256.
    """
    blocks = [path for path, _ in original.model.named_modules() if is_layer(path)]
    hidden = ModelConfig(original.config).hidden_size or 4096
    fit = _HIDDEN_BYTES // (4 * hidden * max(len(blocks), 1))
    ids = ids[: max(_TOKENS[0], min(fit, _TOKENS[1]))]
    states: dict[str, Array] = {}
    errors: dict[str, float] = {}

    def keep(path: str, _: str, __: Any, result: Any) -> None:
        array = first_array(result)
        if array is not None:
            states[path] = np.array(array.astype(mx.float32))

    def compare(path: str, _: str, __: Any, result: Any) -> None:
        array = first_array(result)
        if array is not None and path in states and states[path].shape == tuple(array.shape):
            errors[path] = relative_error(np.array(array.astype(mx.float32)), states[path])

    for side, seen in ((original, keep), (output, compare)):
        with watching_mlx(side.model, is_layer, seen):
            side.logits(ids)
    return tuple(LayerError(path, error) for path, error in errors.items())
