"""Where an output's errors are: the weights of each module, and the hidden states after each block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.model.block_paths import block_number, block_of, is_block
from mlxport.model.both_texts import shortened
from mlxport.model.hooks import state_after, watching
from mlxport.model.streaming import StreamedMatrix
from mlxport.model_config import ModelConfig
from mlxport.parity.metrics import relative_error
from mlxport.parity.parity_report import LayerError
from mlxport.quality.opened import Opened
from mlxport.transform import st_dtype
from mlxport.types import DTYPE_BITS

__all__ = ["ModuleError", "layer_errors", "output_errors", "weight_errors"]

Array = np.ndarray[Any, Any]
_HIDDEN_BYTES = 128 << 20  # of the original's hidden states that are kept
_TOKENS = (16, 256)


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
        output_error: The same of what the module makes of the original's own inputs; None where it was not called.
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
    output_error: float | None = None

    @property
    def shown(self) -> float:
        """The error to judge by: of the outputs, where they were compared.

        A quantizer that looks at inputs moves weights away from the original's where no input reaches: no loss.
        """
        return self.error if self.output_error is None else self.output_error

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return asdict(self)


def output_errors(original: Opened, output: Opened, ids: Array) -> dict[str, float]:
    """The relative error of what each linear layer, expert or table makes of the original's inputs, by module path.

    The original reads a text, and each of its layers' inputs is given to the output's layer too. A table of embeddings
    that is also the head is compared as the head.

    Args:
        original: Placed (``quality.place``).
        output: Placed.
        ids: Token ids of one sequence, of which at most 256 are read.
    """
    matrices = {name.removesuffix(".weight") for name, tensor in original.tensors.items() if len(tensor.shape) > 1}
    ours = dict(output.model.named_modules())
    lost: dict[str, list[float]] = {}

    def compare(path: str, _: str, given: Any, result: Any) -> None:
        path, head = path.removesuffix(".as_linear"), path.endswith(".as_linear")
        if path not in ours or not isinstance(result, mx.array):
            return
        args, kwargs = given
        other = (ours[path].as_linear if head else ours[path])(*args, **kwargs)
        if other.shape != result.shape:
            return
        sums = [mx.square(x.astype(mx.float32)).sum(axis=-1) for x in (other - result, result)]
        mx.eval(sums)
        found = [float(np.array(value).sum(dtype=np.float64)) for value in sums]
        if head:
            lost[path] = [0.0, 0.0]
        lost[path] = [before + now for before, now in zip(lost.get(path, [0.0, 0.0]), found, strict=True)]

    with watching(original.model, matrices.__contains__, compare), output.bounded():
        original.logits(shortened(original.model, ids, _TOKENS[1]))
    return {path: (error / power) ** 0.5 for path, (error, power) in lost.items() if power > 0}


def weight_errors(
    original: Opened, output: Opened, outputs: Mapping[str, float] = MappingProxyType({})
) -> tuple[ModuleError, ...]:
    """The relative error of every matrix that the output stores, in the order of the model.

    Weights are read and compared a block of rows at a time, on both sides from disk.

    Args:
        original: Opened by ``open_original``.
        output: Opened by ``open_output``.
        outputs: What ``output_errors`` found.
    """
    theirs, ours = _Matrices(original), _Matrices(output)
    main = next((_list_of(name) for name in theirs.names() if block_of(name)), "")
    found = []
    for name in theirs.names():
        if name not in ours.tensors:
            continue
        path, how = (name.removesuffix(".weight"), ours.how(name))
        stored = [ours.tensors[part] for part in ours.parts(name).values()]
        parameters = prod(stored[0].shape) * (32 if how else 1) // (int(how["bits"]) if how else 1)
        dtype = st_dtype(stored[0].dtype)
        found.append(
            ModuleError(
                path,
                _kind(path, main),
                block_number(path),
                parameters,
                int(how["bits"]) if how else DTYPE_BITS[dtype],
                int(how["group_size"]) if how else None,
                str(how["mode"]) if how else dtype,
                8 * sum(tensor.nbytes for tensor in stored) / max(parameters, 1),
                _relative(theirs, ours, name),
                outputs.get(path),
            )
        )
    return tuple(found)


class _Matrices:
    """What has rows and columns in one model, dequantized as it is read."""

    def __init__(self, side: Opened) -> None:
        self.tensors = side.tensors
        self.packing = side.packing

    def names(self) -> Iterator[str]:
        """Of the weights."""
        for name, tensor in self.tensors.items():
            path, _, part = name.rpartition(".")
            if len(tensor.shape) > 1 and not (part in ("scales", "biases") and path in self.packing):
                yield name

    def how(self, name: str) -> Mapping[str, Any] | None:
        """How a weight is packed, None where it is not."""
        path, _, part = name.rpartition(".")
        return self.packing.get(path) if part == "weight" else None

    def parts(self, name: str) -> dict[str, str]:
        """Names of the tensors that hold a weight, by what they are of it."""
        path = name.rpartition(".")[0]
        more = {part: f"{path}.{part}" for part in ("scales", "biases")} if self.how(name) else {}
        return {"weight": name, **{part: full for part, full in more.items() if full in self.tensors}}

    def matrix(self, name: str) -> StreamedMatrix:
        """The weight itself."""
        return StreamedMatrix({part: self.tensors[full] for part, full in self.parts(name).items()}, self.how(name))


def _relative(theirs: _Matrices, ours: _Matrices, name: str) -> float:
    """RMS of the difference over RMS of the original, block by block."""
    lost = total = 0.0
    original, output = theirs.matrix(name), ours.matrix(name)
    for start, stop in theirs.tensors[name].blocks():
        one, two = original.rows(start, stop), output.rows(start, stop)
        # Sums over the last axis in float32, the rest in float64: a matrix has too many squares for float32.
        sums = [mx.square(x).sum(axis=-1) for x in (one - two, one)]
        mx.eval(sums)
        lost += float(np.array(sums[0]).sum(dtype=np.float64))
        total += float(np.array(sums[1]).sum(dtype=np.float64))
        mx.clear_cache()
    if not np.isfinite(lost + total):
        return float("inf")
    return float((lost / total) ** 0.5) if total else (0.0 if not lost else float("inf"))


def _list_of(path: str) -> str:
    """The path of the list that holds the block of a module."""
    return (block_of(path) or "").rpartition(".")[0]


def _kind(path: str, main: str) -> str:
    """A module's place in its block; of blocks in another list than ``main``, with the name of that list."""
    block = block_of(path)
    if block is None or block == path:
        return path
    rest = path[len(block) + 1 :]
    return rest if _list_of(path) == main else f"{_list_of(path)}.*.{rest}"


def layer_errors(original: Opened, output: Opened, ids: Array) -> tuple[LayerError, ...]:
    """The relative error of the hidden state after each block, both models reading the same tokens.

    Each model is fed its own activations, so errors add up from block to block.

    Args:
        original: Placed (``quality.place``).
        output: Placed.
        ids: Token ids of one sequence, of which as many are read as memory allows: 16 to 256.
    """
    blocks = [path for path, _ in original.model.named_modules() if is_block(path)]
    hidden = ModelConfig(original.config).hidden_size or 4096
    fit = _HIDDEN_BYTES // (4 * hidden * max(len(blocks), 1))
    ids = shortened(original.model, ids, max(_TOKENS[0], min(fit, _TOKENS[1])))
    states: dict[str, Array] = {}
    errors: dict[str, float] = {}

    def keep(path: str, _: str, given: Any, result: Any) -> None:
        array = state_after(given, result)
        if array is not None:
            states[path] = np.array(array.astype(mx.float32))

    def compare(path: str, _: str, given: Any, result: Any) -> None:
        array = state_after(given, result)
        if array is not None and path in states and states[path].shape == tuple(array.shape):
            errors[path] = relative_error(np.array(array.astype(mx.float32)), states[path])

    for side, seen in ((original, keep), (output, compare)):
        with watching(side.model, is_block, seen):
            side.logits(ids)
    return tuple(LayerError(path, error) for path, error in errors.items())
