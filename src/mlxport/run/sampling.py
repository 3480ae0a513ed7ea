"""How the next token is chosen: the options of ``mlx_lm.generate``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mlxport.errors import UsageError

__all__ = ["MAX_TOKENS", "Sampling"]

MAX_TOKENS = 256  # where nothing says how many


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

    max_tokens: int = MAX_TOKENS
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
