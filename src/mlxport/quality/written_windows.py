"""What a model that reads with an encoder is measured on: texts that it reads, and what the original writes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.model.both_texts import beginnings, copied, has_encoder
from mlxport.model.self_written import sample_sequences
from mlxport.quality.opened import Opened

__all__ = ["written_windows"]

Array = np.ndarray[Any, Any]
_LEAST = 4  # tokens of a window that is measured: of two that are written one is predicted
_TOGETHER = 8


def written_windows(original: Opened, ids: Sequence[Array]) -> tuple[list[Array], tuple[str, ...]]:
    """Windows of a text as both models are given them; those of language models stay as they are.

    Args:
        original: Placed: in memory it writes, each token drawn as it predicts, the same ones each time.
        ids: Windows of the text.

    Returns:
        Rows of which half is read and half is written, and a remark that says so.
    """
    if not has_encoder(original.model):
        return list(ids), ()
    made: list[Array] = []
    writes = original.placed == "memory"
    for length in sorted({len(piece) for piece in ids if len(piece) >= _LEAST}, reverse=True):
        rows = mx.array(np.stack([piece for piece in ids if len(piece) == length]).astype(np.int32))
        if writes:
            begun = beginnings(rows, original.start)
            rows = sample_sequences(original.model, begun, length, mx.random.key(length), _TOGETHER)
        else:
            rows = copied(rows, original.start)
        made.extend(np.array(rows, dtype=np.int64))
    how = "what the original writes of it" if writes else "the same text, because the original does not fit in memory"
    return made, (f"predictions are those of the second half of each window: the first is read, and {how} is written",)
