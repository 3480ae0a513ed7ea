"""How fast a Mac generates: by the bytes that a token reads, and by the operations that computing it takes.

Reading weights and cache is bound by the memory's bandwidth; each operation takes a few microseconds besides, which is
most of the time of a small model and of a mixture that reads few of its weights. The figures are fitted to published
runs (``chips.json``), which ``tests/fit/published_runs.json`` holds with their sources.
"""

from __future__ import annotations

from mlxport.fit.hardware import Machine, decoding

__all__ = ["tokens_per_second", "usual_rate"]


def tokens_per_second(machine: Machine, nbytes: float, operations: int) -> tuple[float, float] | None:
    """Least and most of the rate of generating, None for a chip whose bandwidth is not known.

    Args:
        machine: The machine.
        nbytes: Bytes of weights and cache that one token reads.
        operations: Operations of the step that makes it.
    """
    rates = _rates(machine, nbytes, operations)
    return None if rates is None else (rates[2], rates[0])


def usual_rate(machine: Machine, nbytes: float, operations: int) -> float | None:
    """Tokens a second as most runs have it."""
    rates = _rates(machine, nbytes, operations)
    return None if rates is None else rates[1]


def _rates(machine: Machine, nbytes: float, operations: int) -> list[float] | None:
    if machine.bandwidth_gb_s is None:
        return None
    costs, read = decoding(machine.chip), nbytes / (machine.bandwidth_gb_s * 1e9)
    pairs = zip(costs.bandwidth_factor, costs.operation_seconds, strict=True)
    return [1 / (read * factor + operations * seconds) for factor, seconds in pairs]
