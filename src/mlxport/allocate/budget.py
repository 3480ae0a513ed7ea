"""What a limit leaves for the weights of the modules, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_reduce

from mlxport.allocate.limits import Target
from mlxport.errors import QuantizationError
from mlxport.fit import Machine, chosen_context
from mlxport.fit.footprint import Footprint, Need
from mlxport.fit.liveness import METAL
from mlxport.layouts.conversion import Conversion
from mlxport.layouts.quantizing import Built, quantize
from mlxport.output.plan import make_shards, parse_size
from mlxport.output.shards import header
from mlxport.progress import format_bytes
from mlxport.quant import QuantRequest
from mlxport.types import Checkpoint

__all__ = ["Budget", "make_budget", "tensor_bytes"]


@dataclass(frozen=True)
class Budget:
    """A limit in bytes, and how to count an output against it.

    Attributes:
        target: What was asked for, in words.
        measure: What is counted.
        limit: Most bytes of it.
        count: Bytes that an output, made with a request, takes of it.
        memory: For a machine: its name, the context, and what the memory of an output consists of.
        hint: What to do where nothing is small enough.
    """

    target: str
    measure: str
    limit: int
    count: Callable[[Conversion, QuantRequest | None], int]
    memory: Callable[[Conversion, QuantRequest | None], dict[str, Any]] = lambda output, request: {}
    hint: str = ""

    def impossible(self, least: int) -> QuantizationError:
        """That even the smallest output, which takes ``least`` bytes, is over the limit."""
        return QuantizationError(
            f"{self.target} is {format_bytes(self.limit)} of {self.measure}, and the least possible is "
            f"{format_bytes(least)} ({least:,} bytes): 2 bits wherever the group size allows",
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
        return _of_machine(target.machine, target.context, checkpoint, model)
    if target.size is not None:
        most = parse_size(max_shard_size)

        def file_bytes(output: Conversion, _: QuantRequest | None) -> int:
            return sum(len(header(shard)) + shard.nbytes for shard in make_shards(output.tensors(), most, by))

        name = f"--target-size {format_bytes(target.size)}"
        return Budget(name, "weight files", target.size, file_bytes, hint="give a larger size, or a smaller model")
    assert target.bits_per_weight is not None
    buffers = _buffer_bytes(model)
    # a product of floats may be a hair short
    limit = int(target.bits_per_weight * conversion.parameters / 8 + 1e-6)
    name = f"--target-bpw {target.bits_per_weight:g}"
    return Budget(name, "tensors", limit, lambda output, _: tensor_bytes(output) + buffers, hint="give more bits")


def _of_machine(machine: Machine, asked: int | None, checkpoint: Checkpoint, model: nn.Module) -> Budget:
    context = chosen_context(asked, checkpoint.model_config.context_length)
    needs: dict[QuantRequest | None, Need] = {}

    def need(request: QuantRequest | None) -> Need:
        """Of the model as it is quantized: reading packed embeddings, for one, takes a little more workspace."""
        if request not in needs:
            leaves = model.leaf_modules()
            try:
                if request is not None:
                    quantize(model, {}, request, Built({}))
                needs[request] = Footprint(model, METAL).at(context)
            finally:
                model.update_modules(leaves)
        return needs[request]

    def memory(output: Conversion, request: QuantRequest | None) -> dict[str, Any]:
        return {
            "machine": machine.name,
            "context": context,
            "gpu_bytes": machine.gpu_bytes,
            "weight_bytes": tensor_bytes(output),
            "cache_bytes": need(request).cache,
            "workspace_bytes": need(request).peak - need(request).cache,
        }

    return Budget(
        f"--fit {machine.name!r} with {context:,} tokens of context",
        "memory for the GPU",
        machine.gpu_bytes,
        lambda output, request: tensor_bytes(output) + need(request).peak,
        memory,
        f"give a shorter --context or a larger machine: `mlxport plan SRC --device {machine.name!r}` says what would",
    )


def tensor_bytes(output: Conversion) -> int:
    """Bytes of all tensors of an output, in files and in memory."""
    return sum(tensor.nbytes for tensor in output.tensors())


def _buffer_bytes(model: nn.Module) -> int:
    """Bytes of arrays of the model that are no parameters; mlx-lm counts them where it reports bits per weight."""
    everything: int = tree_reduce(lambda total, x: total + x.nbytes if isinstance(x, mx.array) else total, model, 0)
    parameters: int = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    return everything - parameters
