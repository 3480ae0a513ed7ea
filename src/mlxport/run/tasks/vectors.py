"""Vectors of a model: out of its outputs, onto the screen, into a file, beside those of the original."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mlxport.errors import UsageError
from mlxport.run.tasks.array_files import write_arrays
from mlxport.run.tasks.pipeline import Array, Difference, as_numpy
from mlxport.run.tasks.text_inputs import Batch
from mlxport.run.tasks.written_files import target_file

__all__ = ["compare_vectors", "mask_of", "similarities", "states_of", "vector_lines", "write_vectors"]

_STATES = ("last_hidden_state", "encoder_last_hidden_state", "logits")
_SHOWN = 6  # numbers of a vector


def states_of(batch: Batch) -> Array:
    """The states of the last layer, float32, [texts, tokens, width]."""
    name = next((name for name in _STATES if name in batch.outputs), None)
    if name is None or batch.outputs[name].ndim != 3:
        found = ", ".join(f"{key} {list(value.shape)}" for key, value in batch.outputs.items())
        raise UsageError(f"this model gives no vector for each token, but {found}", hint="call it with mlxport.load")
    return as_numpy(batch.outputs[name])


def mask_of(batch: Batch) -> Array:
    """1 where a token is not padding, [texts, tokens]."""
    ids = batch.inputs["input_ids"]
    return batch.inputs.get("attention_mask", np.ones_like(ids))


def similarities(vectors: Array) -> Array:
    """Cosines of all pairs, [vectors, vectors]."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return np.asarray(unit @ unit.T)


def vector_lines(inputs: Sequence[Any], results: Sequence[Any], similarity: bool) -> Iterator[str]:
    """Vectors as lines: their size and first numbers, or a matrix of how alike they are."""
    if similarity:
        for row in similarities(np.array(results)):
            yield "  ".join(f"{value:7.4f}" for value in row)
        return
    for given, result in zip(inputs, results, strict=True):
        array = np.array(result)
        numbers = " ".join(f"{value:.5f}" for value in array.ravel()[:_SHOWN])
        more = " …" if array.size > _SHOWN else ""
        yield f"{list(array.shape)}  {numbers}{more}  {str(given)[:40]}"


def compare_vectors(ours: Any, theirs: Any) -> Difference:
    """How far numbers are from the original's, relative to the largest of these."""
    mine, other = np.array(ours, np.float64), np.array(theirs, np.float64)
    if mine.shape != other.shape:
        return Difference("vectors", 0.0, f"shape {list(mine.shape)} where the original has {list(other.shape)}")
    return Difference("vectors", float(np.abs(mine - other).max() / max(np.abs(other).max(), 1e-12)))


def write_vectors(results: Sequence[Any], output: str | None) -> list[str]:
    """Write vectors to a file that appears when it is whole: float32, [inputs, width], as NumPy's .npy.

    Args:
        results: A list of numbers for each input.
        output: The file, None for none.

    Returns:
        The names of what was written.

    Raises:
        UsageError: It cannot be there, or the vectors have no common shape.
    """
    if output is None:
        return []
    path = target_file("--output", output, "vectors.npy")
    try:
        array = np.array(results, np.float32)
    except ValueError as error:
        hint = "add --pooling mean, or give one text"
        raise UsageError("--output: texts of several lengths have no common shape", hint=hint) from error
    write_arrays(path, [array])
    return [output]
