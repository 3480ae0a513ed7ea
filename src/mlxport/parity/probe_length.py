"""How much of a verification this machine can afford."""

from __future__ import annotations

from typing import Any

from mlxport.model_config import ModelConfig

__all__ = ["affordable_length", "probe_length"]

# Multiply-adds that MLX's slowest build (the Linux CPU wheel: 4 GFLOP/s) does in about 15 s.
_FLOPS = 60e9
_LENGTHS = (16, 512)


def affordable_length(parameters: int, stated: ModelConfig, config: Any) -> tuple[int, list[str]]:
    """What :func:`probe_length` says of an original.

    Args:
        parameters: Of the model.
        stated: Its config.json.
        config: The same as transformers reads it: where the file is silent, the defaults of its class hold.
    """
    theirs = ModelConfig(config.to_dict())
    return probe_length(parameters, stated.context_length or theirs.context_length, theirs.sliding_window)


def probe_length(parameters: int, limit: int | None, window: int | None) -> tuple[int, list[str]]:
    """Tokens of the long sequence, by the cost of running them, and what so many tokens cannot show.

    Args:
        parameters: Of the model.
        limit: Tokens that it was made for, None where nothing says.
        window: Tokens of its sliding window, None where it has none.
    """
    limit, window = limit or _LENGTHS[1], window or 0
    affordable = int(_FLOPS / (2 * max(parameters, 1)))
    wanted = max(_LENGTHS[1], window + 64 if window <= 1024 else 0)
    length = max(min(wanted, affordable, limit), min(_LENGTHS[0], limit))
    notes = []
    if length < 128:
        notes.append(
            f"{length} tokens only, the model is large: further positions are seen as far as attention is proven"
        )
    if window and length <= window:
        notes.append(f"the sliding window ({window} tokens) is longer than the input ({length}): its mask is not seen")
    return length, notes
