"""A port against its original; where they differ, the first module that diverges is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch

from mlxport.graph.capture.examples import Example, other_sizes
from mlxport.graph.capture.module_copies import copied
from mlxport.layouts.generated.reference_module import OriginalCopies
from mlxport.layouts.generated.weights_trace import ComparedPort
from mlxport.model.read_when_used import Unkept, read_when_used
from mlxport.parity.lazy_reference import lazy_parameters
from mlxport.parity.plain_ports import plain_ports
from mlxport.parity.port_bisect import first_divergence
from mlxport.parity.port_parity import verify_port
from mlxport.parity.port_report import PortParity
from mlxport.parity.recording import Array

__all__ = ["compare_port", "original_logits"]

_READ = "layerwise: each weight was read where it is used, and on a CPU computed with in float32"


def compare_port(
    conversion: ComparedPort,
    model: nn.Module,
    *,
    dtype: str,
    bits: int | None,
    unquantized: Callable[[], nn.Module],
    trained: Set[str] = frozenset(),
    stored: Callable[[], Mapping[str, mx.array]] | None = None,
    on_outputs: Callable[[Example, Mapping[str, mx.array]], None] | None = None,
) -> PortParity:
    """Verify a port.

    Args:
        conversion: What it was made by.
        model: The port with its weights.
        dtype: Its main dtype.
        bits: Fewest bits of a quantized module, or None.
        unquantized: Makes the same port with nothing quantized, whatever its weights.
        trained: Paths of its modules that were trained after they had been converted.
        stored: Gives its weights, unevaluated, where none may stay in memory: it then reads each when it is used.
        on_outputs: Called with its outputs of each input set.
    """
    fresh, example, plain = _reference(conversion), conversion.example, None
    if stored is not None:
        read_when_used(model, Unkept(stored))
    wanted = conversion.unquantized() if stored is None else Unkept(conversion.unquantized)
    if bits is not None:
        plain = plain_ports(model, unquantized, wanted, trained, unkept=stored is not None)
    report = verify_port(
        model,
        fresh,
        [example],
        dtype=dtype,
        bits=bits,
        plain=plain,
        others=lambda: other_sizes(conversion.port.captured),
        on_outputs=on_outputs,
    )
    if stored is not None:
        report = replace(report, notes=(*report.notes, _READ))
    if not report.first_call_differs or (report.weights is not None and not report.weights.passed):
        return report  # a wrong packed weight is named already
    followed = model if plain is None else plain.original
    divergence = first_divergence(followed, fresh(), example, dtype=dtype, expected=wanted)
    return replace(report, divergence=divergence)


def original_logits(conversion: ComparedPort) -> Callable[[Array, Array], Array]:
    """From what an encoder reads and a text [1, length] to the original's logits [length, vocabulary], float32."""
    model = _reference(conversion)()
    name, written = conversion.example.kwargs

    def logits(source: Array, text: Array) -> Array:
        with torch.inference_mode():
            found = model(**{name: torch.from_numpy(source), written: torch.from_numpy(text)})
        return np.asarray(found[0].to(torch.float32).numpy())

    return logits


def _reference(conversion: ComparedPort) -> Callable[[], Any]:
    """What gives the original, computing in float32, as it is before its first call."""
    original = conversion.original()
    if conversion.weights_of is not None:
        lazy = lazy_parameters(original, conversion.weights_of)
        return lambda: copied(lazy)
    return OriginalCopies(original, conversion.example, conversion.port.captured.written())
