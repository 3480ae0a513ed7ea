"""Sequences that a model writes itself: what it knows best, so that no text is needed."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlxport.errors import UnsupportedError
from mlxport.model.both_texts import has_encoder
from mlxport.model.lazy_parameters import LazyModel

__all__ = ["sample_sequences", "write_sequences"]


def sample_sequences(model: Any, first: mx.array, length: int, key: mx.array, together: int | None = None) -> mx.array:
    """Sequences that a model writes, each token drawn as it predicts; the same ones from the same key.

    Args:
        model: mlx-lm's, its weights in memory.
        first: The first token of each sequence, int32 [sequences]; of a model with an encoder what it reads and
            the first token that is written, int32 [sequences, tokens].
        length: Tokens of a sequence.
        key: Of the random numbers.
        together: Most sequences that are written at once, all by default.

    Returns:
        int32 [sequences, length].
    """
    from mlx_lm.models.cache import make_prompt_cache

    if has_encoder(model):
        read, begun = first[:, :-1], first[:, -1:]
    else:
        read, begun = first[:, None][:, :0], first[:, None]
    found = []
    step = together or max(first.shape[0], 1)
    for start in range(0, first.shape[0], step):
        cache, tokens = make_prompt_cache(model), [begun[start : start + step]]
        if read.size:
            model.encode(read[start : start + step], cache)
        while len(tokens) < length - read.shape[1]:
            output: Any = model(tokens[-1], cache=cache)
            logits = getattr(output, "logits", output)[:, -1].astype(mx.float32)
            key, own = mx.random.split(key)
            tokens.append(mx.random.categorical(logits, key=own)[:, None].astype(mx.int32))
            mx.eval(tokens[-1])
        found.append(mx.concatenate([read[start : start + step], *tokens], axis=1))
        mx.eval(found[-1])
        mx.clear_cache()
    return found[0] if len(found) == 1 else mx.concatenate(found)


def write_sequences(model: LazyModel, first: mx.array, length: int, key: mx.array, hint: str) -> mx.array:
    """The same by a model whose weights are read for it, and let go of.

    Args:
        model: It must fit in memory.
        first: As of ``sample_sequences``.
        length: As there.
        key: As there.
        hint: What to do where it cannot write.

    Raises:
        UnsupportedError: mlx-lm cannot generate with this model here.
    """
    model.fill()
    try:
        return sample_sequences(model.model, first, length, key)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        message = f"mlx-lm cannot write with this model: {type(error).__name__}: {reason}"
        raise UnsupportedError(message, hint=hint) from error
    finally:
        model.release()
