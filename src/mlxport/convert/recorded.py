"""How a port was made, by its conversion or its record: what a comparison with the original needs to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlxport.convert.resolved_options import ResolvedOptions
from mlxport.layouts.base import Layout
from mlxport.options.size_spec import SizeSpec
from mlxport.output.record import read_record

if TYPE_CHECKING:
    import mlx.core as mx

    from mlxport.layouts.conversion import Conversion

__all__ = ["Recorded", "fewest_bits", "keeps_no_weights", "recorded", "refuse_large", "stored_weights"]


@dataclass(frozen=True)
class Recorded:
    """What a folder's record says of how it was made.

    Attributes:
        options: The options that decide what is captured.
        dtype: Its main dtype.
        bits: Fewest bits of a quantized module, or None.
    """

    options: ResolvedOptions
    dtype: str
    bits: int | None


def recorded(folder: Path, layout: Layout, revision: str | None, trust_remote_code: bool) -> Recorded:
    """How a port's folder was made; the last two are those of the original that it is now compared with."""
    record = read_record(folder)
    given, written = (part if isinstance(part := record.get(key), dict) else {} for key in ("options", "output"))
    options = ResolvedOptions(
        dtype=str(given.get("dtype", "auto")),
        layout=layout.name,
        dynamic=SizeSpec.parse(sizes) if isinstance(sizes := given.get("dynamic", True), str) else bool(sizes),
        fold_batchnorm=bool(given.get("fold_batchnorm", False)),
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    bits = min((int(spec["bits"]) for spec in written.get("quantized", {}).values()), default=None)
    return Recorded(options, str(written.get("dtype", "float32")), bits)


def fewest_bits(conversion: Conversion) -> int | None:
    """Fewest bits of a quantized module, or None."""
    return min((spec.bits for spec in conversion.quantized.values()), default=None)


def refuse_large(conversion: Conversion) -> None:
    """Refuse to run in memory what has no room there.

    Raises:
        UnsupportedError: It has none.
    """
    from mlxport.model import memory

    nbytes = sum(tensor.nbytes for tensor in conversion.tensors())
    if conversion.quantized:  # it is compared with the same port on two sets of weights that are not packed
        nbytes += 2 * conversion.parameters * 4
    memory.refuse_large(nbytes, "the port's {} of weights run in memory")


def keeps_no_weights(conversion: Conversion, mode: str) -> bool:
    """Whether a verification reads weights when they are used: asked for, or by default where there are many."""
    from mlxport.parity.execute import FULL_PARAMETERS

    return mode == "layerwise" or (mode == "auto" and conversion.parameters > FULL_PARAMETERS)


def stored_weights(folder: Path, conversion: Conversion, mode: str) -> Callable[[], Mapping[str, mx.array]] | None:
    """What gives a port's weights, unevaluated, for a verification that keeps none in memory; None for one that does.

    Args:
        folder: The port's.
        conversion: What it was made by, or would be.
        mode: ``auto``, ``full`` or ``layerwise``.

    Raises:
        UnsupportedError: They are to be kept, and there is no room.
    """
    from mlxport.model.tensors import output_refs
    from mlxport.transform import lazy_arrays

    if keeps_no_weights(conversion, mode):
        return partial(lazy_arrays, output_refs(folder))
    refuse_large(conversion)
    return None
