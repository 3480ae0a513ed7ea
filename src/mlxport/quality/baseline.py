"""The original rounded to nearest at the output's own bits: what any other quantizer is to be better than."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx

from mlxport.model.tensors import Tensor, whole
from mlxport.quality.opened import Opened, open_original
from mlxport.quant.packing import dequantize_rows, quantize_rows
from mlxport.types import Checkpoint, QuantSpec

__all__ = ["RoundedTensor", "rounded_to_nearest", "rounds_to_nearest"]


@dataclass(frozen=True)
class RoundedTensor:
    """A weight as it is read back once it is stored with ``spec``, rounded to nearest; see ``model.tensors.Tensor``.

    Attributes:
        tensor: The original's.
        spec: The setting.
        scales: Dtype of the scales that the output stores.
    """

    tensor: Tensor
    spec: QuantSpec
    scales: mx.Dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""
        return self.tensor.shape

    @property
    def dtype(self) -> mx.Dtype:
        """Of what is read back."""
        return mx.float32

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.tensor.nbytes

    def rows(self, start: int, stop: int) -> mx.array:
        """Rows [start, stop), rounded."""
        return dequantize_rows(quantize_rows(self.tensor.rows(start, stop).astype(self.scales), self.spec), self.spec)

    def blocks(self, nbytes: int = 1 << 24) -> Iterator[tuple[int, int]]:
        """Ranges of rows."""
        return self.tensor.blocks(nbytes)

    def lazy(self) -> mx.array:
        """The whole of it, evaluated a block of rows at a time."""
        return whole(self)


def rounds_to_nearest(record: Mapping[str, Any]) -> bool:
    """Whether an output's record says that it is rounded to nearest already."""
    options = record.get("options")
    quantize = options.get("quantize") if isinstance(options, Mapping) else None
    quantizer = quantize.get("quantizer") if isinstance(quantize, Mapping) else None
    return quantizer == "rtn" and not any(record.get(done) for done in ("calibration", "distilled"))


def rounded_to_nearest(checkpoint: Checkpoint, output: Opened) -> Opened | None:
    """The original with each weight rounded to nearest as the output stores it; None where that stores none packed.

    It takes exactly the output's size: bits, group size and mode of every module are the output's.

    Args:
        checkpoint: Of the original.
        output: Opened by ``open_output``.
    """
    stored = output.tensors
    change: dict[str, Callable[[Tensor], Tensor]] = {}
    for path, how in output.packing.items():
        scales = stored.get(f"{path}.scales")
        if how["mode"] == "affine" and scales is not None:
            spec = QuantSpec(bits=int(how["bits"]), group_size=int(how["group_size"]), mode=str(how["mode"]))
            change[f"{path}.weight"] = partial(RoundedTensor, spec=spec, scales=scales.dtype)
    if not change:
        return None
    return replace(open_original(checkpoint), label="the original rounded to nearest", change=change)
