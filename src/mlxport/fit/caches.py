"""mlx-lm's own key-value caches at any length, of shapes alone: what grows, slides or stays is theirs to say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

__all__ = ["PREFILL_STEP", "arrays", "filled", "placed", "quantize_caches", "quantized_from"]

# mlx-lm's generation reads a prompt in pieces of this many tokens (`prefill_step_size` of `generate_step`).
PREFILL_STEP = 2048


def arrays(caches: Iterable[Any]) -> list[mx.array]:
    """The arrays of caches, in order."""
    return [value for _, value in tree_flatten(_states(caches)) if isinstance(value, mx.array)]


def _states(caches: Iterable[Any]) -> list[Any]:
    """The states; those of the parts of a ``CacheList`` without the names of their classes."""
    return [_states(cache.caches) if hasattr(cache, "caches") else cache.state for cache in caches]


def placed(caches: Iterable[Any], found: Iterator[mx.array]) -> None:
    """Put ``found`` where the arrays of ``arrays(caches)`` are."""
    for cache in caches:
        if hasattr(cache, "caches"):
            placed(cache.caches, found)
        elif tree_flatten(cache.state):
            cache.state = tree_map(lambda value: next(found) if isinstance(value, mx.array) else value, cache.state)


def filled(fresh: list[Any], seen: Sequence[Any], tokens: int) -> list[Any]:
    """``fresh`` caches once ``tokens`` were read in pieces, as arrays that nothing has evaluated.

    Args:
        fresh: Empty caches of a model.
        seen: The same after one token, which tells what each layer stores.
        tokens: Number of tokens.
    """
    for piece in _pieces(tokens):
        for cache, pattern in zip(fresh, seen, strict=True):
            _push(cache, pattern, piece)
    placed(fresh, iter([mx.zeros(value.shape, value.dtype) for value in arrays(fresh)]))
    return fresh


def _pieces(tokens: int) -> list[int]:
    """As many whole pieces as are needed for the shapes to be those of all of them, and the rest."""
    whole, rest = divmod(tokens, PREFILL_STEP)
    pieces = [(whole - 1) * PREFILL_STEP, PREFILL_STEP if whole else 0, rest]
    return [piece for piece in pieces if piece > 0]


def _push(cache: Any, pattern: Any, tokens: int) -> None:
    if hasattr(cache, "caches"):
        for part, known in zip(cache.caches, pattern.caches, strict=True):
            _push(part, known, tokens)
    elif getattr(pattern, "keys", None) is not None and hasattr(cache, "update_and_fetch"):
        if hasattr(cache, "maybe_trim_front"):
            cache.maybe_trim_front()
        known = (pattern.keys, pattern.values)
        cache.update_and_fetch(*(mx.zeros((*part.shape[:2], tokens, part.shape[3]), part.dtype) for part in known))
    else:  # a state whose size does not depend on the length
        cache.state = pattern.state


def quantized_from() -> int:
    """Tokens from which on mlx-lm quantizes a cache, where it is asked to."""
    from mlx_lm.generate import DEFAULT_QUANTIZED_KV_START

    return int(DEFAULT_QUANTIZED_KV_START)


def quantize_caches(caches: list[Any], bits: int | None, group_size: int) -> None:
    """What mlx-lm's generation does with ``kv_bits`` after each piece.

    Raises:
        NotImplementedError: A kind of cache that mlx-lm cannot quantize yet.
    """
    from mlx_lm.generate import maybe_quantize_kv_cache

    maybe_quantize_kv_cache(caches, quantized_from(), group_size, bits)
