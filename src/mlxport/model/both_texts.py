"""A model that reads with an encoder and writes with a decoder, called like a language model.

A row of tokens holds both texts: the first half is read, the second written. So whoever runs models on tokens (to
measure damage, to calibrate, to see activations) runs these, too, and gets logits of the second half.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxport.errors import ConfigError
from mlxport.model.block_paths import block_of, is_block
from mlxport.model.hooks import hooked, swap_classes
from mlxport.model.leaf_calls import MATRICES
from mlxport.source.jsonfile import read_object
from mlxport.types import Checkpoint

__all__ = [
    "beginnings",
    "called_apart",
    "called_with_both",
    "copied",
    "first_written",
    "has_encoder",
    "shortened",
    "source_size",
    "written_size",
]


def has_encoder(model: Any) -> bool:
    """Whether a model reads with an encoder."""
    return hasattr(model, "encode")


def source_size(length: int) -> int:
    """How many of a row's tokens are read."""
    return length - length // 2


def written_size(model: Any, length: int) -> int:
    """Tokens of a row that has logits: of a model with an encoder those of the second half."""
    return length - source_size(length) if has_encoder(model) else length


def called_with_both(model: nn.Module) -> nn.Module:
    """``model``, which may be called with rows of both texts from now on; as it is where it has no encoder.

    Calls with a cache, or with ``input_ids``, are its own. Layers get caches that remember nothing, so that parts of a
    batch may go through them one after the other.
    """
    if has_encoder(model):
        swap_classes([(model, _with_both(type(model)))])
    return model


def called_apart(model: nn.Module, ids: mx.array) -> list[str]:
    """The matrices in blocks that the model calls while it is in none of them; nothing is evaluated.

    Args:
        model: The model.
        ids: Tokens to call it with.
    """
    found: dict[str, None] = {}
    paths = {id(module): path for path, module in model.named_modules() if block_of(path) is not None}
    inside: list[str] = []

    def answer(module: Any, _: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = paths[id(module)]
        if is_block(path):
            inside.append(path)
            try:
                return call(*args, **kwargs)
            finally:
                inside.pop()
        if not inside:
            found[path] = None
        return call(*args, **kwargs)

    modules = dict(model.named_modules())
    watched = [modules[path] for path in paths.values() if is_block(path) or type(modules[path]) in MATRICES]
    with hooked([module for module in watched if callable(module)], answer):
        model(ids)
    return list(found)


def _with_both(cls: Any) -> type:
    def call(self: Any, ids: mx.array, cache: Any = None, input_ids: mx.array | None = None) -> Any:
        if cache is None and input_ids is None:
            size = source_size(ids.shape[1])
            cache, source, ids = [_forgetting(entry) for entry in self.make_cache()], ids[:, :size], ids[:, size:]
            self.encode(source, cache)
        return cls.__call__(self, ids, cache, input_ids)

    return type(cls.__name__, (cls,), {"__call__": call})


def _forgetting(entry: Any) -> tuple[list[Any], Any]:
    """In place of a layer's cache: a plain list for what the encoder gives, and one that keeps no keys and values."""
    encoded, own = entry.caches

    def update_and_fetch(self: Any, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    swap_classes([(own, type(type(own).__name__, (type(own),), {"update_and_fetch": update_and_fetch}))])
    return [None] * len(encoded.cache), own


def first_written(checkpoint: Checkpoint) -> int:
    """The token that what a decoder writes begins with; the first of the vocabulary where nothing says."""
    path = checkpoint.root / "generation_config.json"
    configs = [read_object(path, ConfigError, unique=False)] if Path(path).is_file() else []
    for config in (*configs, checkpoint.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if isinstance(token := config.get(name), int) and token >= 0:
                return token
    return 0


def beginnings(ids: mx.array, start: int) -> mx.array:
    """Of rows [rows, length] what is read, and the token that is written first: [rows, ``source_size`` + 1]."""
    return mx.concatenate([ids[:, : source_size(ids.shape[1])], mx.full((ids.shape[0], 1), start, ids.dtype)], axis=1)


def copied(ids: mx.array, start: int) -> mx.array:
    """Rows of the same length, in which what is written is what was read."""
    size = source_size(ids.shape[1])
    return mx.concatenate([beginnings(ids, start), ids[:, : ids.shape[1] - size - 1]], axis=1)


def shortened(model: Any, ids: Any, length: int) -> Any:
    """At most ``length`` tokens of a row [tokens]: its beginning, and of both texts the beginnings of each."""
    if not has_encoder(model) or len(ids) <= length:
        return ids[:length]
    read, size = source_size(len(ids)), source_size(length)
    return np.concatenate([np.asarray(ids)[:size], np.asarray(ids)[read : read + length - size]])
