"""How much of a verification this machine can afford."""

from __future__ import annotations

from typing import Any

__all__ = ["probe_length"]

# Multiply-adds that MLX's slowest build (the Linux CPU wheel: 4 GFLOP/s) does in about 15 s.
_FLOPS = 60e9
_LENGTHS = (16, 512)


def probe_length(parameters: int, config: Any) -> tuple[int, list[str]]:
    """Tokens of the long sequence, by the cost of running them, and what so many tokens cannot show."""
    limit = getattr(config, "max_position_embeddings", None) or _LENGTHS[1]
    affordable = int(_FLOPS / (2 * max(parameters, 1)))
    window = getattr(config, "sliding_window", None) or 0
    wanted = max(_LENGTHS[1], window + 64 if window <= 1024 else 0)
    length = max(min(wanted, affordable, int(limit)), min(_LENGTHS[0], int(limit)))
    notes = []
    if length < 128:
        notes.append(f"{length} tokens only, the model is large: errors that grow with the position may stay unseen")
    if window and length <= window:
        notes.append(f"the sliding window ({window} tokens) is longer than the input ({length}): its mask is not seen")
    return length, notes
