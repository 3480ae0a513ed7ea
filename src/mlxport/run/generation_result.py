"""What a generation gives: the text, its tokens and how it went."""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["GenerationResult", "peak_rss", "reset_peak_memory"]


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """One answer and how it went.

    Attributes:
        text: Generated text.
        tokens: Its token ids, without the one that ends it.
        prompt_tokens: Number of prompt tokens that were computed.
        cached_tokens: Number of tokens before them that were in the cache already (chat).
        generation_tokens: Number of tokens generated, the ending one included.
        prompt_tps: Prompt tokens per second.
        generation_tps: Generated tokens per second.
        peak_memory: Most bytes that MLX arrays took, the weights included.
        peak_rss: Most bytes of memory that the whole process has held (Python and libraries included).
        finish_reason: ``"stop"`` (the model ended it), ``"length"`` (max_tokens) or ``"interrupted"``.
        end_token: Id of the token that ended it, where the reason is ``"stop"``.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    generation_tokens: int
    prompt_tps: float
    generation_tps: float
    peak_memory: int
    peak_rss: int
    finish_reason: str
    end_token: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {**asdict(self), "tokens": list(self.tokens)}

    def summary(self) -> str:
        """Lines for a terminal, in mlx-lm's words."""
        cached = f" ({self.cached_tokens} more in the cache)" if self.cached_tokens else ""
        return (
            f"Prompt: {self.prompt_tokens} tokens{cached}, {self.prompt_tps:.3f} tokens-per-sec\n"
            f"Generation: {self.generation_tokens} tokens, {self.generation_tps:.3f} tokens-per-sec\n"
            f"Peak memory: {self.peak_memory / 1e9:.3f} GB in MLX arrays, {self.peak_rss / 1e9:.3f} GB in the process"
        )


def reset_peak_memory() -> None:
    """Start MLX's peak anew, so that it tells of this model."""
    import mlx.core as mx

    mx.reset_peak_memory()


def peak_rss() -> int:
    """Return the most bytes that this process has held in memory (getrusage counts KiB on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
