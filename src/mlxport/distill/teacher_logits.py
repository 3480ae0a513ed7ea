"""What the original predicts: its most likely tokens at each position, kept on disk, and the divergence from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxport.output.atomic_files import replace_arrays

__all__ = ["Targets", "divergence"]

_KEPT = 512  # most likely tokens of a position; the rest counts as one token more
_TINY = 1e-9  # probability of that rest, at least


class Targets:
    """Log-probabilities of sequences, one file each.

    Args:
        folder: Where they are kept; files that are there are used again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"target-{number:05d}.safetensors"

    def __contains__(self, number: int) -> bool:
        return self._path(number).is_file()

    def save(self, number: int, logits: mx.array) -> None:
        """Keep the logits [tokens, vocabulary] of a sequence."""
        logs = _log_softmax(logits)
        count = min(_KEPT, logs.shape[-1])
        places = mx.argpartition(-logs, kth=count - 1, axis=-1)[..., :count]
        arrays = {"logs": mx.take_along_axis(logs, places, axis=-1), "places": places.astype(mx.uint32)}
        replace_arrays(self._path(number), arrays)

    def load(self, numbers: Sequence[int]) -> tuple[mx.array, mx.array]:
        """Log-probabilities and tokens of some sequences, [sequences, tokens, kept]."""
        found: list[Any] = [mx.load(str(self._path(number))) for number in numbers]
        return mx.stack([item["logs"] for item in found]), mx.stack([item["places"] for item in found])


def divergence(target: tuple[mx.array, mx.array], logits: mx.array) -> mx.array:
    """Mean KL divergence of a target from logits [sequences, tokens, vocabulary], nats a token."""
    logs, places = target
    ours = mx.take_along_axis(_log_softmax(logits), places, axis=-1)
    likely = mx.exp(logs)
    total = (likely * (logs - ours)).sum(axis=-1)
    if places.shape[-1] < logits.shape[-1]:
        rest = mx.maximum(1 - likely.sum(axis=-1), _TINY)
        ours_rest = mx.maximum(1 - mx.exp(ours).sum(axis=-1), _TINY)
        total = total + rest * (mx.log(rest) - mx.log(ours_rest))
    return total.mean()


def _log_softmax(logits: mx.array) -> mx.array:
    wide = logits.astype(mx.float32)
    return wide - mx.logsumexp(wide, axis=-1, keepdims=True)
