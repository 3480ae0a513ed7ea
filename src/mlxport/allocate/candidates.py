"""The modules that can be quantized, and the settings of each with the bytes that they take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxport.allocate.probe import Calls, watched
from mlxport.errors import UnsupportedError
from mlxport.model.both_texts import has_encoder
from mlxport.quant import MODES
from mlxport.transform import Program
from mlxport.types import QuantSpec

__all__ = ["Candidate", "find_candidates", "reachable"]

_FEW_TOKENS = 4
_ROWS = 3  # of a batch, another number than tokens of either text


@dataclass(frozen=True)
class Candidate:
    """A module that can be quantized.

    Attributes:
        path: Module path.
        module: mlx-lm's module, its weight a placeholder.
        shape: Of the weight.
        itemsize: Bytes of an element of the weight as it is stored unquantized, and of a scale.
        specs: Settings that fit its columns.
    """

    path: str
    module: Any
    shape: tuple[int, ...]
    itemsize: int
    specs: tuple[QuantSpec, ...]

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    def nbytes(self, spec: QuantSpec | None) -> int:
        """Bytes of the weight with its scales and biases."""
        if spec is None:
            return self.size * self.itemsize
        return int(self.size * MODES[spec.mode].bits_per_weight(spec.bits, spec.group_size, 8 * self.itemsize) / 8)


def find_candidates(model: nn.Module, program: Program) -> dict[str, Candidate]:
    """Every module that ``convert`` could quantize, by path, in the model's order.

    Left out are modules that mlx-lm keeps for this architecture, and those whose columns no group size divides.

    Args:
        model: mlx-lm's model on placeholders.
        program: To its parameters.
    """
    own = getattr(model, "quant_predicate", None)
    every = [spec for mode in MODES.values() if mode.linear for spec in mode.specs()]
    modules, found = dict(model.named_modules()), {}
    for name, output in program.outputs.items():
        path, _, part = name.rpartition(".")
        module = modules.get(path)
        if part != "weight" or not hasattr(module, "to_quantized") or not mx.issubdtype(output.dtype, mx.floating):
            continue
        if len(output.shape) < 2 or (own is not None and not own(path, module)):
            continue
        specs = tuple(spec for spec in every if output.shape[-1] % spec.group_size == 0)
        if specs:
            found[path] = Candidate(path, module, output.shape, output.dtype.size, specs)
    return found


def reachable(model: nn.Module, candidates: Mapping[str, Candidate]) -> tuple[dict[str, Candidate], Calls]:
    """The candidates without those whose weight other code reads, and how the rest are called.

    Code that reads ``module.weight`` by itself (in some architectures a head that is tied to the embeddings) would
    read packed integers once the module is quantized. Nothing is evaluated.

    Raises:
        UnsupportedError: mlx-lm's code does not run.
    """
    modules = {path: candidate.module for path, candidate in candidates.items()}
    rows = _ROWS if has_encoder(model) else 1
    try:
        with watched(modules) as calls:
            model(mx.zeros((rows, _FEW_TOKENS), mx.int32))
    except Exception as error:  # third-party model code on placeholders: whatever it raises is about this model
        raise not_running(error) from error
    if rows > 1:  # tables of distances are looked up once for all texts: parts of a batch cannot differ in them
        calls.looked |= {path for path, sizes in calls.sizes.items() if len(sizes) == 2 and sizes[0] not in (1, rows)}
    calls.order = [path for path in calls.order if path not in calls.looked]
    return {path: given for path, given in candidates.items() if path not in calls.looked}, calls


def not_running(error: Exception) -> UnsupportedError:
    """That mlx-lm's code for a model cannot be run here."""
    reason = " ".join(str(error).split())[:300]
    return UnsupportedError(
        f"mlx-lm cannot run this model here, so damage cannot be measured: {type(error).__name__}: {reason}",
        hint="choose bits with -q, or a recipe with --recipe",
    )
