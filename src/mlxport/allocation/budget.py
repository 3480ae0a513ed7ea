"""What a limit leaves for the weights of the modules, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_reduce

from mlxport.allocation.target import Target
from mlxport.errors import QuantizationError
from mlxport.fit import chosen_context
from mlxport.fit.footprint import Footprint
from mlxport.fit.liveness import METAL
from mlxport.inspection import context_length
from mlxport.plan import make_shards, parse_size
from mlxport.progress import format_bytes
from mlxport.target.assemble import Conversion
from mlxport.types import Checkpoint
from mlxport.write import header

__all__ = ["Budget", "make_budget", "tensor_bytes"]


@dataclass(frozen=True)
class Budget:
    """A limit in bytes, and how to count an output against it.

    Attributes:
        target: What was asked for, in words.
        measure: What is counted.
        limit: Most bytes of it.
        count: Bytes that an output takes of it.
        memory: For a machine: its name, the context, and bytes of cache and workspace.
        hint: What to do where nothing is small enough.
    """

    target: str
    measure: str
    limit: int
    count: Callable[[Conversion], int]
    memory: dict[str, Any] = field(default_factory=dict)
    hint: str = ""

    def impossible(self, least: int) -> QuantizationError:
        """That even the smallest output, of ``least`` bytes, is over the limit."""
        room = format_bytes(self.limit) if self.limit > 0 else "nothing"
        return QuantizationError(
            f"{self.target} leaves {room} for the weights, and the least possible is {format_bytes(least)} "
            f"({least:,} {self.measure}): 2 bits wherever the group size allows",
            hint=self.hint,
        )


def make_budget(
    target: Target, checkpoint: Checkpoint, model: nn.Module, conversion: Conversion, max_shard_size: str | int, by: str
) -> Budget:
    """The limit that a target means for this model.

    Args:
        target: What was asked for.
        checkpoint: The opened source.
        model: mlx-lm's model on placeholders, not quantized.
        conversion: To the output without quantization.
        max_shard_size: Limit of an output file, which decides how many headers there are.
        by: How tensors are put into files, as of ``make_plan``.

    Raises:
        UsageError: A context that the model was not made for.
        UnsupportedError: mlx-lm's code for this model cannot be planned for.
    """
    if target.machine is not None:
        return _of_machine(target, checkpoint, model)
    if target.size is not None:
        most = parse_size(max_shard_size)

        def file_bytes(output: Conversion) -> int:
            return sum(len(header(shard)) + shard.nbytes for shard in make_shards(output.tensors(), most, by))

        return Budget(
            f"--target-size {format_bytes(target.size)}", "bytes of weight files", target.size, file_bytes,
            hint="give a larger size, or a smaller model",
        )  # fmt: skip
    assert target.bits_per_weight is not None
    buffers = _buffer_bytes(model)
    limit = int(target.bits_per_weight * conversion.parameters / 8 + 1e-6)  # a product of floats may be a hair short
    return Budget(
        f"--target-bpw {target.bits_per_weight:g}",
        "bytes of tensors",
        limit,
        lambda output: tensor_bytes(output) + buffers,
        hint="give more bits",
    )


def _of_machine(target: Target, checkpoint: Checkpoint, model: nn.Module) -> Budget:
    assert target.machine is not None
    context = chosen_context(target.context, context_length(checkpoint.config))
    need = Footprint(model, METAL).at(context)
    name = target.machine.name
    return Budget(
        f"--fit {name!r} with {context:,} tokens of context",
        "bytes of tensors",
        target.machine.gpu_bytes - need.peak,
        tensor_bytes,
        {
            "machine": name,
            "context": context,
            "gpu_bytes": target.machine.gpu_bytes,
            "cache_bytes": need.cache,
            "workspace_bytes": need.peak - need.cache,
        },
        f"give a shorter --context or a larger machine; `mlxport plan SRC --device {name!r}` says which would do",
    )


def tensor_bytes(output: Conversion) -> int:
    """Bytes of all tensors of an output, in files and in memory."""
    return sum(tensor.nbytes for tensor in output.tensors())


def _buffer_bytes(model: nn.Module) -> int:
    """Bytes of arrays of the model that are no parameters; mlx-lm counts them where it reports bits per weight."""
    everything: int = tree_reduce(lambda total, x: total + x.nbytes if isinstance(x, mx.array) else total, model, 0)
    parameters: int = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    return everything - parameters
