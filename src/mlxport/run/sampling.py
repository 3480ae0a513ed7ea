"""How the next token is chosen: the options of ``mlx_lm.generate``, and whole batches written by a model itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlxport.errors import UsageError

if TYPE_CHECKING:
    import mlx.core as mx

__all__ = ["WRITES_UP_TO", "Sampling", "sample_sequences"]

# Bytes of a checkpoint. Writing reads all weights for each token, so they have to be in memory: where no text is asked
# for, larger models read one that others wrote. The same on every machine, as the output depends on it.
WRITES_UP_TO = 1 << 29


@dataclass(frozen=True, slots=True)
class Sampling:
    """Options of mlx-lm's sampler; the defaults choose the most likely token.

    Attributes:
        max_tokens: Most tokens to generate, at least 1.
        temp: Temperature; 0 is greedy.
        top_p: Smallest probability mass to sample from, in (0, 1]; 1 is off.
        min_p: Least probability relative to the most likely token's, in [0, 1]; 0 is off.
        top_k: Number of most likely tokens to sample from; 0 is off.
        seed: Seed of MLX's random numbers; None leaves them as they are.

    Raises:
        UsageError: An option is out of its range.
    """

    max_tokens: int = 256
    temp: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}, expected at least 1", hint="pass --max-tokens 256")
        if not (math.isfinite(self.temp) and self.temp >= 0):
            raise UsageError(f"temp is {self.temp}, expected 0 or more", hint="0 is greedy, 0.7 is a usual temperature")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}, expected more than 0 and at most 1", hint="1 turns it off")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p is {self.min_p}, expected from 0 to 1", hint="0 turns it off")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}, expected 0 or more", hint="0 turns it off")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise UsageError(f"seed is {self.seed}, expected from 0 to 2**64 - 1")

    def sampler(self, vocab_size: int | None = None) -> Any:
        """Make mlx-lm's sampler for these options; a ``top_k`` of the whole vocabulary is off."""
        from mlx_lm.sample_utils import make_sampler

        top_k = 0 if vocab_size is not None and self.top_k >= vocab_size else self.top_k
        return make_sampler(temp=self.temp, top_p=self.top_p, min_p=self.min_p, top_k=top_k)

    def seed_random(self, offset: int = 0) -> None:
        """Seed MLX's global random state, where a seed is given."""
        if self.seed is not None:
            import mlx.core as mx

            mx.random.seed((self.seed + offset) % 2**64)


def sample_sequences(
    model: Any, first: mx.array, length: int, key: mx.array, *, anything_second: bool = False
) -> tuple[mx.array, mx.array]:
    """Sequences that a model writes, each token drawn as it predicts; the same ones from the same key.

    Args:
        model: mlx-lm's, its weights in memory.
        first: The first token of each sequence, int32 [sequences, 1].
        length: Tokens of a sequence.
        key: Of the random numbers.
        anything_second: Draw the second token evenly: where ``first`` is not what texts begin with.

    Returns:
        int32 [sequences, length], and the key that comes after those that were used.
    """
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cache, tokens = make_prompt_cache(model), [first]
    while len(tokens) < length:
        output: Any = model(tokens[-1], cache=cache)
        logits = getattr(output, "logits", output)[:, -1].astype(mx.float32)
        if anything_second and len(tokens) == 1:
            logits = mx.zeros_like(logits)
        key, own = mx.random.split(key)
        tokens.append(mx.random.categorical(logits, key=own)[:, None].astype(mx.int32))
        mx.eval(tokens[-1])
    return mx.concatenate(tokens, axis=1), key
