"""What one verification works on, and what both of its modes do the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mlxport.model import loaded as out
from mlxport.parity.inverse import Invert
from mlxport.parity.parity_report import Comparison, Divergence, LayerError, ParityReport, WeightCheck
from mlxport.parity.recording import Array
from mlxport.parity.stored import Packing, StoredLayout, StoredWeights
from mlxport.parity.weight_errors import check_weights, differences
from mlxport.quant import level
from mlxport.quant.tolerances import EQUAL, ROWS, Tolerance, row_for
from mlxport.transform import NotInvertible
from mlxport.types import Checkpoint

__all__ = ["ORIGINAL", "SAME_WEIGHTS", "STEPPED", "Run"]

ORIGINAL = "output vs original"
SAME_WEIGHTS = "output vs the same stored weights in torch"
STEPPED = "output token by token, with a cache, vs in one pass"


@dataclass
class Run:
    """One verification; ``weights``, ``exact`` and ``layout`` are filled by ``check_weights``.

    ``near`` says that mlx-lm computes a near variant of this architecture, see ``target.mlx_lm_config``; ``trained``
    names modules of the output that were trained, so that they need only resemble the original's.
    """

    folder: Path
    checkpoint: Checkpoint
    model: Any  # mlx-lm's, lazily loaded
    ids: list[Array]
    invert: Invert | None
    say: Callable[[str], None]
    packing: Mapping[str, Packing] = field(default_factory=dict)
    floats: frozenset[str] = frozenset()
    dtype: str = "F32"
    near: bool = False
    trained: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)
    layout: StoredLayout | None = None
    weights: WeightCheck | None = None
    exact: bool = False

    @property
    def bits(self) -> int | None:
        """Fewest bits of a quantized module."""
        return min((int(how["bits"]) for how in self.packing.values()), default=None)

    @cached_property
    def stored(self) -> StoredWeights:
        """The output's tensors."""
        return StoredWeights(self.folder, self.packing)

    def note(self, line: str) -> None:
        """Add what a reader must know, once."""
        if line not in self.notes:
            self.notes.append(line)

    def check_weights(self, *, bounded: bool) -> None:
        """Map the stored weights back to the checkpoint's layout and hold them against its tensors."""
        self.say("comparing the stored weights")
        if self.invert is None:
            self.note("stored weights were not compared one by one: no inverse of the layout was given")
            return
        try:
            self.layout = StoredLayout(self.stored, self.invert, self.checkpoint.tensors, bounded=bounded)
        except NotInvertible as error:
            self.note(f"stored weights were not compared one by one: {error}")
            return
        except (KeyError, ValueError) as error:  # names or shapes that mlx-lm's layout of this checkpoint does not have
            self.note(f"stored weights were not compared one by one: another layout than mlx-lm writes ({error})")
            return
        self.weights, self.exact = check_weights(differences(self.checkpoint, self.layout, self.dtype, self.trained))

    @property
    def equal_row(self) -> Tolerance:
        """The row of the table for the output against a reference with the same weights."""
        return ROWS["near variant" if self.near else "same weights"]

    def row(self) -> Tolerance:
        """The row of the table for the output against its original."""
        row = self._row()
        return self.equal_row if row.row in EQUAL else row

    def _row(self) -> Tolerance:
        if self.exact:
            return ROWS["same weights"]
        dtypes = {r.dtype for r in self.checkpoint.tensors.values()}
        # A scaled fp8 value is a product: its float32 value fits in no shorter dtype.
        sources = frozenset("F32" if d.startswith("F8") else d for d in dtypes if d in out.DTYPE_NAMES or d[:2] == "F8")
        lowest = min((level(str(how["mode"]), int(how["bits"])) for how in self.packing.values()), default=None)
        row = row_for(sources, self.floats, lowest, str(self.checkpoint.config.get("model_type", "")))
        if self.weights is not None and self.weights.passed and row is ROWS["same weights"]:
            # Same dtype, other values: stored shifted or scaled, hence rounded again.
            return ROWS["bfloat16" if self.dtype == "BF16" else "float16"]
        return row

    def passed(self, comparisons: list[Comparison]) -> bool:
        """Whether every comparison holds, and every tensor."""
        return all(c.passed for c in comparisons) and (self.weights is None or self.weights.passed)

    def report(
        self,
        mode: str,
        comparisons: list[Comparison],
        divergence: Divergence | None,
        layers: tuple[LayerError, ...] = (),
    ) -> ParityReport:
        """The report of what was found."""
        return ParityReport(
            mode=mode,
            dtype=out.DTYPE_NAMES[self.dtype],
            bits=self.bits,
            tokens=sum(len(ids) for ids in self.ids),
            comparisons=tuple(comparisons),
            passed=self.passed(comparisons),
            weights=self.weights,
            layers=layers,
            divergence=divergence,
            notes=tuple(self.notes),
        )
