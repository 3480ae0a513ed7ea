"""Tokens a second: measured where this runs, predicted for a Mac."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlxport.errors import UnsupportedError, VerificationError
from mlxport.fit.caches import PREFILL_STEP
from mlxport.fit.fit_report import rate_in_words
from mlxport.fit.footprint import Footprint
from mlxport.fit.generation_rate import tokens_per_second
from mlxport.fit.hardware import Machine
from mlxport.fit.liveness import METAL
from mlxport.fit.planning import DEFAULT_CONTEXT, longest_context
from mlxport.model.both_texts import has_encoder
from mlxport.model.loaded import load_output
from mlxport.run.kv import KVQuant, prompt_cache

__all__ = ["Predicted", "Speed", "measured", "predicted"]

_TOKENS, _WARM, _SECONDS = 64, 4, 10.0


@dataclass(frozen=True, slots=True)
class Speed:
    """A short run of mlx-lm's generation in the stored precision, once warm.

    Attributes:
        device: What MLX ran on.
        prompt_tokens: Tokens of the prompt.
        prompt_tps: Tokens of the prompt read a second.
        tokens: Tokens generated.
        tps: Tokens generated a second.
        peak_bytes: Most bytes that MLX arrays took.
    """

    device: str
    prompt_tokens: int
    prompt_tps: float
    tokens: int
    tps: float
    peak_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a Mac would do with the output, as ``mlxport plan`` reckons.

    Attributes:
        machine: Its name.
        context: Tokens of prompt and answer.
        memory_bytes: Weights, cache and workspace.
        gpu_bytes: What the GPU may use of the memory.
        longest_context: Most tokens that fit, 0 where none do.
        tokens_per_second: Least and most of the rate of generating, None for an unknown chip.
    """

    machine: str
    context: int
    memory_bytes: int
    gpu_bytes: int
    longest_context: int
    tokens_per_second: tuple[float, float] | None

    @property
    def answer(self) -> str:
        """The rate in words."""
        return rate_in_words(self.tokens_per_second) if self.fits else "does not fit"

    @property
    def fits(self) -> bool:
        """Whether the GPU's memory is enough."""
        return self.memory_bytes <= self.gpu_bytes

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {**asdict(self), "fits": self.fits}


def measured(
    model: Any,
    ids: np.ndarray[Any, Any],
    context: int | None = None,
    kv: KVQuant | None = None,
    start: int = 0,
) -> Speed:
    """Generate after a prompt with mlx-lm, for at most ten seconds.

    Args:
        model: mlx-lm's model in its stored precision, its weights loaded.
        ids: The prompt.
        context: Longest sequence that the model was made for.
        kv: How its key-value cache is quantized.
        start: What is written begins with this token where an encoder reads the prompt.
    """
    from mlx_lm.generate import generate_step

    def run(prompt: mx.array, count: int) -> Any:
        options, cache = kv.options() if kv is not None else {}, prompt_cache(model, kv)
        if has_encoder(model):
            model.encode(prompt[None], cache)
            prompt = mx.array([start])
        return generate_step(prompt, model, max_tokens=count, prompt_cache=cache, **options)

    length = min(_TOKENS, (context or _TOKENS * 4) // 4)
    prompt = mx.array(ids[: max(1, min(len(ids), (context or PREFILL_STEP) - length - 1))])
    for _ in run(prompt[:8], _WARM):
        pass
    mx.reset_peak_memory()
    begun = first = last = time.perf_counter()
    count = 0
    for number, _ in enumerate(run(prompt, length + 1)):
        last = time.perf_counter()
        first = last if not number else first
        count = number
        if last - first > _SECONDS:
            break
    device = mx.device_info().get("device_name") if mx.default_device() == mx.gpu else "CPU"
    rate = count / (last - first) if last > first else 0.0
    return Speed(str(device), prompt.size, prompt.size / max(first - begun, 1e-9), count, rate, mx.get_peak_memory())


def predicted(
    folder: Path,
    machine: Machine,
    context: int | None = None,
    *,
    limit: int | None = None,
    kv: KVQuant | None = None,
) -> Predicted:
    """What a machine would do with a written model; its weights are not read.

    Args:
        folder: The output.
        machine: The machine.
        context: Tokens of prompt and answer; 4,096 or the model's own limit by default.
        limit: The model's own limit.
        kv: How its key-value cache is quantized.

    Raises:
        UnsupportedError: mlx-lm's model cannot be planned for.
    """
    try:
        model = load_output(folder)
    except VerificationError as error:
        raise UnsupportedError(f"{folder}: {error.message}", hint="convert it again") from error
    tokens = context or max(2, min(DEFAULT_CONTEXT, limit or DEFAULT_CONTEXT))
    footprint = Footprint(model, METAL) if kv is None else Footprint(model, METAL, kv.bits, kv.group_size)
    need, shares = footprint.at(tokens), footprint.read_shares(tokens)
    sizes = {name: int(value.nbytes) for name, value in tree_flatten(model.parameters())}
    weights = sum(sizes.values())
    moved = sum(size * shares.get(name, 1.0) for name, size in sizes.items()) + need.cache
    speed = tokens_per_second(machine, moved, footprint.operations(tokens))
    longest = longest_context(footprint, machine.gpu_bytes - weights, limit)
    return Predicted(machine.name, tokens, weights + need.peak, machine.gpu_bytes, longest, speed)
