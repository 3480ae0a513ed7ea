"""Compare a port in parts with its original."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from mlxport.convert.recorded import Recorded, fewest_bits, stored_weights
from mlxport.layouts.base import Layout
from mlxport.model.memory import uncached
from mlxport.types import Checkpoint

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion
    from mlxport.layouts.generated.parts_opening import PartsConversion
    from mlxport.parity.port_report import PortParity

__all__ = ["compare_folder", "compare_written"]


def compare_written(folder: Path, conversion: Conversion, mode: str) -> PortParity:
    """What the comparison of a port that this run wrote found; ``mode`` as of ``stored_weights``."""
    from mlxport.layouts.generated.loading import load_parts, unquantized_port
    from mlxport.parity.parts_comparison import compare_parts

    made, stored = _in_parts(conversion), stored_weights(folder, conversion, mode)
    with uncached():
        return compare_parts(
            made, load_parts(folder), dtype=made.dtype, bits=fewest_bits(made),
            unquantized=functools.partial(unquantized_port, folder), stored=stored,
        )  # fmt: skip


def compare_folder(
    folder: Path, layout: Layout, checkpoint: Checkpoint, made: Recorded, trust_remote_code: bool, mode: str
) -> tuple[PortParity, Conversion]:
    """What the comparison of a port's folder found, and what it was compared with, captured once more.

    ``mode`` as of ``stored_weights``.
    """
    from mlxport.layouts.generated.loading import load_parts, unquantized_port
    from mlxport.parity.parts_comparison import compare_parts, wrong_part_weights

    parts = load_parts(folder, trust_remote_code=trust_remote_code)  # before the original is captured
    conversion = _in_parts(layout.opens(checkpoint, made.options))
    unquantized = functools.partial(unquantized_port, folder, trust_remote_code=trust_remote_code)
    stored = stored_weights(folder, conversion, mode)
    with uncached():
        report = compare_parts(
            conversion, parts, dtype=made.dtype, bits=made.bits, unquantized=unquantized, stored=stored
        )
        wrong = wrong_part_weights(conversion, parts, unkept=stored is not None) if report.passed else []
    return report.with_wrong(wrong), conversion


def _in_parts(conversion: Conversion) -> PartsConversion:
    from mlxport.layouts.generated.parts_opening import PartsConversion

    assert isinstance(conversion, PartsConversion), "parts are compared of what brings code of its own for each"
    return conversion
