"""The two models: the original in mlx-lm's layout, and the quantized output; whole, or a block at a time."""

from __future__ import annotations

from math import prod
from pathlib import Path

import mlx.core as mx

from mlxport.layouts.conversion import TracedModel
from mlxport.model.both_texts import called_with_both
from mlxport.model.lazy_parameters import Cast, LazyModel
from mlxport.model.loaded import load_output, upcast
from mlxport.model.tensors import computed_tensors, stored_tensors, whole
from mlxport.source.tokenizer_files import embedding_rows

__all__ = ["OriginalModel", "QuantizedModel"]


def _floats_as(dtype: mx.Dtype) -> Cast:
    return lambda _, array: array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array


class OriginalModel(LazyModel):
    """The checkpoint as mlx-lm computes it, not quantized.

    Attributes:
        dtype: What it computes in.
        checkpoint: Where it is from.
    """

    def __init__(self, model: TracedModel, dtype: mx.Dtype) -> None:
        self.dtype, self.checkpoint = dtype, model.checkpoint
        super().__init__(called_with_both(model.skeleton()), computed_tensors(model.plain.program), _floats_as(dtype))

    def sizes(self) -> set[int]:
        """Sizes that arrays of the model may have."""
        found = {size for shape in self.shapes.values() for size in shape}
        return found | {size // 2 for size in found}

    @property
    def vocabulary(self) -> int:
        """Rows of the table of tokens: one of positions may have more."""
        return embedding_rows(self.checkpoint.config, self.shapes) or 1

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters in memory."""
        return sum(prod(shape) * self.dtype.size for shape in self.shapes.values())


class QuantizedModel(LazyModel):
    """The output as it was written.

    Attributes:
        dtype: What it computes in.
    """

    def __init__(self, folder: Path, dtype: mx.Dtype, trust_remote_code: bool) -> None:
        self.dtype = dtype
        model = load_output(folder, trust_remote_code=trust_remote_code)
        super().__init__(upcast(model) if dtype == mx.float32 else model, stored_tensors(folder), _floats_as(dtype))

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters as they are stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def stored(self, name: str) -> mx.array:
        """A tensor as it is stored, read now."""
        return whole(self.tensors[name])
