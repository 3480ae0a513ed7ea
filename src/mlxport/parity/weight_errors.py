"""Stored weights against the checkpoint's, tensor by tensor: no model is run, so no activation can hide an error."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from math import prod

import torch

from mlxport.parity.parity_report import WeightCheck
from mlxport.parity.stored import StoredLayout
from mlxport.parity.torch_rows import BLOCK_BYTES, on_all_cores, read_block
from mlxport.quant.tolerances import ROW_FACTOR, STORED_WEIGHT_BOUND, level_name, lossless
from mlxport.types import Checkpoint, TensorRef

__all__ = ["WeightDifference", "check_weights", "difference", "differences", "judge"]

_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


@dataclass(frozen=True)
class WeightDifference:
    """One stored tensor against the checkpoint's: relative RMS error, and the row that differs most."""

    name: str
    relative: float
    row: int
    bound: float
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Within its bound."""
        return not self.problem and self.relative <= self.bound


def _bound(ref: TensorRef, faith: int, stored: str, trained: bool) -> float:
    if trained:
        return max(STORED_WEIGHT_BOUND["trained"], STORED_WEIGHT_BOUND[level_name(faith)] if faith > 0 else 0.0)
    if faith > 0:
        return STORED_WEIGHT_BOUND[level_name(faith)]
    if faith == 0 and lossless(ref.dtype, stored):
        return STORED_WEIGHT_BOUND["lossless"]
    return STORED_WEIGHT_BOUND["bfloat16" if stored == "BF16" else "float16"]


def difference(ref: TensorRef, layout: StoredLayout, dtype: str, trained: Set[str] = frozenset()) -> WeightDifference:
    """One tensor, in blocks of rows.

    Args:
        ref: The checkpoint's.
        layout: The output's.
        dtype: What the output's unquantized tensors are stored in.
        trained: Paths of the output's modules that were trained after they had been converted.
    """
    faith, modules = layout.level(ref.name), {name.rpartition(".")[0] for name in layout.stored_names(ref.name)}
    bound, infinite = _bound(ref, faith, dtype, not modules.isdisjoint(trained)), float("inf")
    if layout.shape(ref.name) != ref.shape:
        problem = f"has shape {layout.shape(ref.name)} in the output, {ref.shape} in the original"
        return WeightDifference(ref.name, infinite, 0, bound, problem)
    sizes, gaps = torch.empty((2, ref.shape[0] if ref.shape else 1), dtype=torch.float64)

    def measure(rows: tuple[int, int | None]) -> None:
        place = slice(*rows)
        sizes[place], gaps[place] = _norms(ref, layout, rows, faith)

    on_all_cores(measure, _blocks(ref.shape))
    least = float(ref.size) if not modules.isdisjoint(trained) and len(ref.shape) == 1 else 0.0
    # Norms that are stored less 1 may be next to nothing, and training moves them by more.
    return judge(ref.name, sizes, gaps, bound, rows=len(ref.shape) > 1, least=least)


def judge(
    name: str, sizes: torch.Tensor, gaps: torch.Tensor, bound: float, *, rows: bool, least: float = 0.0
) -> WeightDifference:
    """Hold a tensor against its bound, as a whole and row by row.

    Args:
        name: Of the tensor.
        sizes: Norm of each row of the original, float64.
        gaps: Norm of each row of the difference, float64.
        bound: Relative RMS error that is allowed for the whole.
        rows: Whether single rows are judged.
        least: Square of the norm that the original is taken to have at least.
    """
    if not bool(torch.isfinite(gaps).all()):
        return WeightDifference(name, float("inf"), 0, bound, "has NaN or inf in the output or in the original")
    scale, error = float(sizes.square().sum()), float(gaps.square().sum())
    by_row = gaps / sizes.clamp(min=1e-3 * (scale / len(sizes)) ** 0.5 + 1e-30)
    share, row = float(by_row.max()), int(by_row.argmax())
    scale = max(scale, least)
    relative = (error / scale) ** 0.5 if scale > 0 else (0.0 if error == 0 else float("inf"))
    limit = min(ROW_FACTOR * bound, 1.2)
    problem = f"differs from the original by {share:.3g} in row {row} (bound {limit:.3g})"
    return WeightDifference(name, relative, row, bound, problem if rows and share > limit else "")


def _blocks(shape: tuple[int, ...]) -> list[tuple[int, int | None]]:
    if not shape:
        return [(0, None)]
    step = max(1, BLOCK_BYTES // (4 * max(prod(shape[1:]), 1)))
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def _norms(
    ref: TensorRef, layout: StoredLayout, rows: tuple[int, int | None], faith: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each of some rows: how large the original is, and how large the difference."""
    original = read_block(ref, *rows).to(torch.float32)
    gap = layout.rows(ref.name, *rows).to(torch.float32).sub_(original)
    # What is stored as 1 + w is rounded relative to 1, not to w.
    return _row_norms(original.add_(1) if faith < 0 else original), _row_norms(gap)


def _row_norms(block: torch.Tensor) -> torch.Tensor:
    """Norm of each row along axis 0, float64."""
    return torch.linalg.vector_norm(block.reshape(block.shape[0] if block.ndim else 1, -1), dim=-1).to(torch.float64)


def differences(
    checkpoint: Checkpoint, layout: StoredLayout, dtype: str, trained: Set[str] = frozenset()
) -> Iterator[WeightDifference]:
    """Each stored floating tensor (under its checkpoint name) against the checkpoint's."""
    for name in layout:
        ref = checkpoint.tensors.get(name)
        if ref is not None and ref.dtype in _FLOATS and ref.size:
            yield difference(ref, layout, dtype, trained)


def check_weights(found: Iterator[WeightDifference]) -> tuple[WeightCheck, bool]:
    """The worst of all differences, and whether every tensor is exactly the original's."""
    results = list(found)
    if not results:
        return WeightCheck(0, "-", 0.0, 0.0, True), False
    worst = max(results, key=lambda item: (not item.ok, item.relative / item.bound))
    failures = tuple(
        f"{item.name}: {item.problem or f'differs from the original by {item.relative:.3g} (bound {item.bound:g})'}"
        for item in results
        if not item.ok
    )
    exact = all(item.relative <= STORED_WEIGHT_BOUND["lossless"] for item in results)
    return WeightCheck(len(results), worst.name, worst.relative, worst.bound, not failures, failures[:8]), exact
