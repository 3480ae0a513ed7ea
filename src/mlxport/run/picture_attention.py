"""Prompts in which the tokens of a picture attend to each other in both directions, where mlx-vlm has only one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

__all__ = ["hidden_states"]


def hidden_states(
    language_model: Any, embeddings: mx.array, tokens: mx.array, picture_token: int, cache: Sequence[Any]
) -> mx.array:
    """What the layers make of a whole prompt; the cache is filled.

    mlx-vlm's own call takes one mask for all layers, and these have two: with a window and without.

    Args:
        language_model: mlx-vlm's, whose embeddings are scaled as it begins.
        embeddings: Of tokens and pictures, (1, n, width).
        tokens: (1, n).
        picture_token: What stands for a part of a picture among them.
        cache: An empty one for each layer.
    """
    from mlx_vlm.models.cache import RotatingKVCache

    model = language_model.model
    allowed = _allowed(np.array(tokens[0]) == picture_token)
    near = _within(len(allowed), model.window_size)
    masks = {False: mx.array(allowed)[None, None], True: mx.array(allowed & near)[None, None]}
    states = embeddings * mx.array(model.config.hidden_size**0.5, mx.bfloat16).astype(embeddings.dtype)
    for layer, kept in zip(model.layers, cache, strict=True):
        states = layer(states, masks[isinstance(kept, RotatingKVCache)], kept)
    normed: mx.array = model.norm(states)
    return normed


def _allowed(pictures: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Which token attends to which: what is before it, and all of its own picture."""
    begins = pictures & ~np.concatenate([[False], pictures[:-1]])
    number = np.where(pictures, np.cumsum(begins), 0)
    same = (number[:, None] == number) & pictures[:, None]
    allowed: np.ndarray[Any, Any] = np.tri(len(pictures), dtype=bool) | same
    return allowed


def _within(length: int, window: int) -> np.ndarray[Any, Any]:
    """What is not further back than the window."""
    places = np.arange(length)
    near: np.ndarray[Any, Any] = places > places[:, None] - window
    return near
