"""A model in parts against its original: each part by itself, then what they give together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import torch

from mlxport.graph.write.port_weights import to_mlx
from mlxport.layouts.generated.parts_opening import PartsConversion
from mlxport.model.read_when_used import Unkept
from mlxport.parity.lazy_reference import lazy_parameters
from mlxport.parity.parity_report import WeightCheck
from mlxport.parity.port_bisect import wrong_weights
from mlxport.parity.port_comparison import compare_port
from mlxport.parity.port_parity import compare
from mlxport.parity.port_report import OutputComparison, PortParity

__all__ = ["compare_parts", "wrong_part_weights"]


def compare_parts(
    conversion: PartsConversion,
    parts: Any,
    *,
    dtype: str,
    bits: int | None,
    unquantized: Callable[[str], nn.Module],
    stored: Callable[[], Mapping[str, mx.array]] | None = None,
) -> PortParity:
    """Verify every part of a port, and all of them against the original's own forward.

    Args:
        conversion: What they were made by.
        parts: The parts with their weights, as attributes.
        dtype: Their main dtype.
        bits: Fewest bits of a quantized module, or None.
        unquantized: Makes a part with nothing quantized, whatever its weights.
        stored: As of ``compare_port``, of all parts: they have one set of weights.
    """
    reports: dict[str, PortParity] = {}
    for made in conversion.parts:
        name = made.part.name
        fewest = _fewest_bits(parts[name])
        reports[name] = compare_port(
            made, parts[name], dtype=dtype, bits=fewest, unquantized=functools.partial(unquantized, name), stored=stored
        )
    report = _joined(reports, dtype, bits)
    if not report.passed or conversion.known.whole is None:
        return report
    return replace(report, comparisons=(*report.comparisons, _together(conversion, parts, dtype, bits)))


def wrong_part_weights(conversion: PartsConversion, parts: Any, *, unkept: bool = False) -> list[str]:
    """The stored weights that are not what the original's become; ``unkept`` where none may stay in memory."""
    wrong: list[str] = []
    for made in conversion.parts:
        expected = Unkept(made.unquantized) if unkept else made.unquantized()
        wrong += wrong_weights(parts[made.part.name], expected)
    return wrong


def _fewest_bits(part: nn.Module) -> int | None:
    return min((int(module.bits) for _, module in part.named_modules() if "scales" in module), default=None)


def _together(conversion: PartsConversion, parts: Any, dtype: str, bits: int | None) -> OutputComparison:
    """What the last part gives, each fed with what the others give; only shown where parts are rounded."""
    given: dict[str, torch.Tensor] = {}
    for made in conversion.parts:
        given |= {name: value for name, value in made.example.kwargs.items() if name not in made.part.of_parts}
    checkpoint = conversion.parts[0].weights_of
    original = lazy_parameters(conversion.original(), checkpoint)
    with torch.no_grad():
        assert conversion.known.whole is not None, "without it there is nothing to compare with"
        wanted = conversion.known.whole(
            original, **{k: v.to(torch.float32) if v.is_floating_point() else v for k, v in given.items()}
        )
    found: dict[str, Any] = {}
    for made in conversion.parts:
        inputs = {
            name: _given(found[made.part.of_parts[name]], name) if name in made.part.of_parts else to_mlx(value)
            for name, value in made.example.kwargs.items()
        }
        last = found[made.part.name] = parts[made.part.name](**inputs)
    figures = compare(last, wanted, dtype, bits)
    judged = dtype == "float32" and bits is None
    row = OutputComparison(
        "all parts", made.part.name, tuple(last.shape), **figures._asdict(), passed=not figures.failure
    )
    return row if judged else replace(row, failure="", passed=True, warning=figures.failure)


def _given(output: Any, name: str) -> Any:
    """What a part gives for an input of another: its output, or of several the one of that name."""
    return output[name] if isinstance(output, Mapping) else output


def _joined(reports: Mapping[str, PortParity], dtype: str, bits: int | None) -> PortParity:
    """One report of all parts, in which each line names its part."""
    of_parts = [(name, report) for name, report in reports.items()]
    weights = [report.weights for _, report in of_parts if report.weights is not None and report.weights.tensors]
    return PortParity(
        dtype,
        bits,
        tuple(replace(row, inputs=f"{name}, {row.inputs}") for name, report in of_parts for row in report.comparisons),
        divergence=next((report.divergence for _, report in of_parts if report.divergence is not None), None),
        notes=tuple(dict.fromkeys(_named(of_parts, "notes"))),
        problems=tuple(_named(of_parts, "problems")),
        weights=_worst(weights),
        stale=next((report.stale for _, report in of_parts if report.stale is not None), None),
        unsteady=any(report.unsteady for _, report in of_parts),
    )


def _named(of_parts: list[tuple[str, PortParity]], kind: str) -> Iterator[str]:
    return (f"{name}, {line}" for name, report in of_parts for line in getattr(report, kind))


def _worst(found: list[WeightCheck]) -> WeightCheck | None:
    """One check of all tensors, with the figures of the worst."""
    if not found:
        return None
    worst = max(found, key=lambda check: (not check.passed, check.relative / (check.bound or 1)))
    failures = tuple(failure for check in found for failure in check.failures)
    passed = all(check.passed for check in found)
    return replace(worst, tensors=sum(check.tensors for check in found), passed=passed, failures=failures)
