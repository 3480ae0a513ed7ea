"""Distillation with the whole quantized model in memory: its logits to those of the original."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
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
from mlxport.model.block_paths import blocks
from mlxport.model.both_texts import called_apart, has_encoder
from mlxport.model.hooks import hooked, map_arrays

__all__ = ["predict", "predict_in_parts", "train_whole"]

_PIECE = 4  # sequences of a forward pass


def pieces(count: int, size: int = _PIECE) -> Iterator[slice]:
    """Ranges of sequences that are computed at once."""
    yield from (slice(start, min(start + size, count)) for start in range(0, count, size))


def predict(original: OriginalModel, ids: mx.array, targets: Targets) -> None:
    """Targets of all sequences that have none yet, by the whole model, whose parameters are in memory."""
    for rows in pieces(ids.shape[0]):
        if all(number in targets for number in range(rows.start, rows.stop)):
            continue
        output: Any = original.model(ids[rows])
        _save(targets, rows, getattr(output, "logits", output))


def predict_in_parts(original: OriginalModel, ids: mx.array, targets: Targets, say: Callable[[str], None]) -> None:
    """The same with one block in memory at a time."""
    if all(number in targets for number in range(ids.shape[0])):
        return
    paths = [path for path, _ in blocks(original.model)]
    hidden: list[mx.array] = []

    def visit(call: BlockCall) -> mx.array:
        say(f"running the original: block {call.number + 1} of {len(paths)}")
        original.fill(f"{call.path}.")
        parts = []
        for rows in pieces(ids.shape[0]):
            parts.append(call.run(call.block, call.hidden[rows], rows))
            mx.eval(parts[-1])
        original.release(f"{call.path}.")
        output = mx.concatenate(parts)
        mx.eval(output)
        hidden[:] = [output]
        return output

    original.fill_outside(paths)
    if has_encoder(original.model):  # what a decoder asks of the encoder's output is asked before its blocks are called
        for path in called_apart(original.model, ids[:1]):
            original.fill(f"{path}.")
    walk(original.model, ids, visit)
    for rows in pieces(ids.shape[0]):
        _save(targets, rows, head(original.model, ids[rows], hidden[0][rows]))


def _save(targets: Targets, rows: slice, logits: mx.array) -> None:
    for place, number in enumerate(range(rows.start, rows.stop)):
        targets.save(number, logits[place])
    mx.clear_cache()


def train_whole(
    quantized: QuantizedModel,
    ids: mx.array,
    held_out: int,
    targets: Targets,
    settings: DistillSettings,
    *,
    checkpoint: bool,
    state: Path,
    say: Callable[[str], None],
) -> tuple[Fitted, list[Trainable]]:
    """Train all of a model at once.

    Args:
        quantized: The model, its parameters in memory.
        ids: All sequences; the last ``held_out`` are measured on.
        held_out: See above.
        targets: What the original predicts.
        settings: How.
        checkpoint: Whether activations inside blocks are computed again instead of kept.
        state: Where an interrupted training is kept.
        say: Called with a line at each measurement.
    """
    model, count = quantized.model, ids.shape[0] - held_out
    parts = list(trainables(model, quantized.stored, quantized.dtype))

    def loss(numbers: Sequence[int]) -> mx.array:
        output: Any = model(ids[mx.array(list(numbers))])
        return divergence(targets.load(numbers), getattr(output, "logits", output))

    def measure() -> float:
        total = 0.0
        for rows in pieces(held_out):
            numbers = range(count + rows.start, count + rows.stop)
            found: Any = loss(numbers).item()
            total += float(found) * len(numbers)
            mx.clear_cache()
        return total / held_out

    with trained(model), _checkpointed(model, parts) if checkpoint else contextlib.nullcontext():
        return fit(parts, loss, measure, count, settings, state=state, say=say), parts


@contextlib.contextmanager
def _checkpointed(model: nn.Module, parts: Sequence[Trainable]) -> Iterator[None]:
    """Have the blocks of a model compute their activations again where gradients need them."""
    model.freeze()
    for part in parts:
        part.module.unfreeze(keys=list(part.start), recurse=False)

    def again(module: Any, _: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # What other arguments hold (biases of distances, what an encoder gave) is trained too: all of it is an input.
        given: list[mx.array] = []
        map_arrays((args, kwargs), lambda array: given.append(array) if _floats(array) else None)

        def inner(parameters: Any, *arrays: mx.array) -> Any:
            module.update(parameters)
            left = iter(arrays)
            inputs, named = map_arrays((args, kwargs), lambda array: next(left) if _floats(array) else array)
            return call(*inputs, **named)

        return mx.checkpoint(inner)(module.trainable_parameters(), *given)

    with hooked([module for _, module in blocks(model)], again):
        yield


def _floats(array: mx.array) -> bool:
    return bool(mx.issubdtype(array.dtype, mx.floating))
