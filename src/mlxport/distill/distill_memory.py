"""What of a distillation fits in memory at once."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxport.distill.distill_settings import DistillSettings
from mlxport.distill.teacher_student import OriginalModel, QuantizedModel
from mlxport.model.block_paths import blocks
from mlxport.model.memory import available_memory

__all__ = ["Memory", "Way"]

_STATES = 6  # arrays as large as the changes: themselves, the best, gradients, Adam's two, what is installed
_INNER = 40  # numbers that a block keeps for its gradients, for each of its hidden size and token
_LOGITS = 4  # arrays as large as the logits


@dataclass(frozen=True, slots=True)
class Way:
    """What is in memory at once.

    Attributes:
        whole: The quantized model with all that its training needs; else one block of it.
        original_whole: The original, while it is run; else one block of it.
        checkpoint: Whether activations inside blocks are computed twice rather than kept.
    """

    whole: bool
    original_whole: bool
    checkpoint: bool

    def __str__(self) -> str:
        quantized = "the whole quantized model" if self.whole else "the quantized model block by block"
        original = "the original whole" if self.original_whole else "the original block by block"
        return f"{quantized}, {original}" + (", activations computed again" if self.checkpoint else "")


class Memory:
    """Estimates in bytes.

    Args:
        original: The original; only shapes are looked at.
        quantized: The output, likewise.
        settings: How it is trained.
        length: Tokens of a sequence.
        limit: What may be taken; by default half of what is available.
    """

    def __init__(
        self,
        original: OriginalModel,
        quantized: QuantizedModel,
        settings: DistillSettings,
        length: int,
        limit: int | None,
    ) -> None:
        self.limit = available_memory() // 2 if limit is None else limit
        self.original, self.quantized = original, quantized
        self.tokens = settings.batch * length
        self.blocks = [path for path, _ in blocks(original.model)]
        self.hidden = _hidden(original)

    def way(self) -> Way:
        """The fastest that fits; the last resort need not."""
        logits = _LOGITS * self.tokens * self.original.vocabulary * 4
        original_whole = self.original.nbytes + logits <= self.limit
        needed = self.quantized.nbytes + logits + self._states()
        for checkpoint in (False, True):
            if needed + self._activations(checkpoint) <= self.limit:
                return Way(True, original_whole, checkpoint)
        return Way(False, False, False)

    def _states(self) -> int:
        flat: Any = tree_flatten(self.quantized.model.parameters())
        return sum(4 * _STATES * array.size for name, array in flat if name.endswith((".scales", ".biases")))

    def _activations(self, checkpoint: bool) -> int:
        """Of a training step; on the CPU unpacked weights are kept like activations."""
        unpacked = mx.default_device() == mx.cpu
        sizes = dict.fromkeys(self.blocks, 0)
        outside = 0
        for name, shape in self.original.shapes.items():
            block = next((path for path in self.blocks if name.startswith(f"{path}.")), None)
            if block is None:
                outside += prod(shape)
            else:
                sizes[block] += prod(shape)
        inner = _INNER * self.hidden * self.tokens
        kept = [4 * (inner + (size if unpacked else 0)) for size in sizes.values()]
        ends = 4 * self.hidden * self.tokens * len(kept) + (4 * outside if unpacked else 0)
        return ends + (max(kept, default=0) if checkpoint else sum(kept))


def _hidden(original: OriginalModel) -> int:
    """Size of a hidden state: that of the norms, the most frequent vector of the model."""
    vectors = [shape[0] for _, shape in original.shapes.items() if len(shape) == 1]
    return max(set(vectors), key=vectors.count) if vectors else 1024
