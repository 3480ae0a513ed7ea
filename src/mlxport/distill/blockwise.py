"""Distillation with one block of each model in memory: hidden states to those of the original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxport.distill.block_walk import BlockCall, head, walk
from mlxport.distill.distill_settings import DistillSettings
from mlxport.distill.fit import Fitted, fit
from mlxport.distill.params import Trainable, trainables
from mlxport.distill.teacher_logits import Targets, divergence
from mlxport.distill.teacher_student import OriginalModel, QuantizedModel
from mlxport.distill.training_layers import trained
from mlxport.distill.whole import pieces
from mlxport.model.block_paths import blocks

__all__ = ["Blockwise"]

Say = Callable[[str], None]


class Blockwise:
    """One distillation, block by block.

    Args:
        original: The original; nothing of it is in memory.
        quantized: The output; nothing of it is in memory.
        ids: All sequences; the last ``held_out`` are measured on.
        held_out: See above.
        settings: How.
        work: Where finished blocks are kept.
        say: Called with a line for each block.
    """

    def __init__(
        self,
        original: OriginalModel,
        quantized: QuantizedModel,
        ids: mx.array,
        held_out: int,
        settings: DistillSettings,
        work: Path,
        say: Say,
    ) -> None:
        self.original, self.quantized, self.ids, self.settings = original, quantized, ids, settings
        self.count = ids.shape[0] - held_out
        self.work, self.say = work, say
        self.paths = [path for path, _ in blocks(original.model)]
        self.twins = dict(blocks(quantized.model))
        self.found: dict[str, mx.array] = {}

    def run(self) -> tuple[float, float, dict[str, mx.array]]:
        """Held-out divergence before and after, and the changed tensors as they are stored."""
        for model in (self.original, self.quantized):
            model.fill_outside(self.paths)
        self.ours = self._embedded(self.ids)  # of what is trained so far
        self.start = self.ours[self.count :]  # of the held-out sequences, by what was written
        self.theirs = self.ours
        walk(self.original.model, self.ids, self._visit)
        return self._heads()

    def _embedded(self, ids: mx.array) -> mx.array:
        kept: list[mx.array] = []

        def visit(call: BlockCall) -> mx.array:
            kept.append(call.hidden)
            return call.hidden

        walk(self.quantized.model, ids, visit, last=0)
        mx.eval(kept)
        return kept[0]

    def _visit(self, call: BlockCall) -> mx.array:
        """Train one block, and move all hidden states past it."""
        prefix, twin = f"{call.path}.", self.twins[call.path]
        self.original.fill(prefix)
        self.theirs = _past(call, call.block, call.hidden, 0)
        self.original.release(prefix)
        self.quantized.fill(prefix)
        parts = list(trainables(twin, self.quantized.stored, self.quantized.dtype, call.path))
        with trained(twin):
            self.start = _past(call, twin, self.start, self.count)
            fitted = self._fitted(call, twin, parts)
            self._keep(parts, fitted)
            self.ours = _past(call, twin, self.ours, 0)
        self.quantized.release(prefix)
        place = f"block {call.number + 1} of {len(self.paths)}"
        self.say(f"distilled {place}: error {fitted.before:.4g}, then {fitted.after:.4g} ({fitted.ended})")
        return self.theirs

    def _fitted(self, call: BlockCall, twin: nn.Module, parts: list[Trainable]) -> Fitted:
        def error(rows: mx.array | slice) -> mx.array:
            """Mean over tokens of the squared error relative to the hidden state: some tokens' are huge."""
            wanted = self.theirs[rows].astype(mx.float32)
            gap = call.run(twin, self.ours[rows], rows).astype(mx.float32) - wanted
            size = mx.square(wanted).sum(axis=-1)
            return (mx.square(gap).sum(axis=-1) / (size + 1e-6)).mean()

        def loss(numbers: Sequence[int]) -> mx.array:
            return error(mx.array(list(numbers)))

        def measure() -> float:
            return _mean(error, self.count, self.ids.shape[0])

        return fit(parts, loss, measure, self.count, self.settings, state=self._state(call.path))

    def _state(self, name: str) -> Path:
        return self.work / f"state-{name}.safetensors"

    def _keep(self, parts: list[Trainable], fitted: Fitted) -> None:
        if fitted.changes is not None:
            for part in parts:
                self.found |= part.stored(fitted.changes)
            mx.eval(self.found)

    def _heads(self) -> tuple[float, float, dict[str, mx.array]]:
        """Train what comes after the blocks by the divergence of logits, and say what all of it came to."""
        held = range(self.count, self.ids.shape[0])
        targets = Targets(self.work)
        for rows in pieces(self.ids.shape[0]):
            logits = head(self.original.model, self.ids[rows], self.theirs[rows])
            for place, number in enumerate(range(rows.start, rows.stop)):
                targets.save(number, logits[place])
        self.original.release()
        model = self.quantized.model
        outside = [
            part for part in trainables(model, self.quantized.stored, self.quantized.dtype) if self._outside(part)
        ]

        def error(hidden: mx.array, numbers: Sequence[int], first: int = 0) -> mx.array:
            rows = mx.array([number - first for number in numbers])
            logits = head(model, self.ids[mx.array(list(numbers))], hidden[rows])
            return divergence(targets.load(numbers), logits)

        def measured(hidden: mx.array, first: int) -> float:
            return _mean(lambda rows: error(hidden, range(rows.start, rows.stop), first), held.start, held.stop)

        with trained(model):
            before = measured(self.start, self.count)
            fitted = fit(
                outside, lambda numbers: error(self.ours, numbers), lambda: measured(self.ours, 0), self.count,
                self.settings, state=self._state("head"),
            )  # fmt: skip
        self._keep(outside, fitted)
        if fitted.after >= before:
            return before, before, {}
        return before, fitted.after, self.found

    def _outside(self, part: Trainable) -> bool:
        """Whether a module comes after the blocks: a table of embeddings comes before them too."""
        inside = any(part.path.startswith(f"{path}.") for path in self.paths)
        return not inside and not isinstance(part.module, nn.QuantizedEmbedding)


def _past(call: BlockCall, module: Any, hidden: mx.array, first: int) -> mx.array:
    """Hidden states of the sequences from ``first`` on, after a block."""
    parts = []
    for rows in pieces(hidden.shape[0]):
        parts.append(call.run(module, hidden[rows], slice(first + rows.start, first + rows.stop)))
        mx.eval(parts[-1])
    output = mx.concatenate(parts)
    mx.eval(output)
    mx.clear_cache()
    return output


def _mean(error: Callable[[slice], mx.array], start: int, stop: int) -> float:
    """The mean of an error over sequences."""
    total = 0.0
    for rows in pieces(stop - start):
        found: Any = error(slice(start + rows.start, start + rows.stop)).item()
        total += float(found) * (rows.stop - rows.start)
        mx.clear_cache()
    return total / (stop - start)
