"""The two models: the original in mlx-lm's layout, and the quantized output; whole, or a block at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlxport.calibrate.plain_weights import Weights
from mlxport.layouts.mlx_lm.opening import lazy_model, open_target
from mlxport.model.loaded import load_output, upcast
from mlxport.model.streaming import output_refs
from mlxport.types import Checkpoint

__all__ = ["Lazy", "Original", "Quantized", "blocks_of"]

_BLOCK = re.compile(r"(?:[^.]+\.)*?\d+")


def blocks_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The numbered modules that are in no other numbered one, with their paths, in order."""
    found = [(path, module) for path, module in model.named_modules() if _BLOCK.fullmatch(path)]
    kept = [(path, module) for path, module in found if len(re.findall(r"(?:^|\.)\d+(?=\.|$)", path)) == 1]
    return sorted(kept, key=lambda item: (item[0].rpartition(".")[0], int(item[0].rpartition(".")[2])))


class Lazy:
    """A model whose parameters are in memory only while they are wanted.

    Attributes:
        model: mlx-lm's module.
        dtype: What it computes in.
    """

    def __init__(self, model: nn.Module, dtype: mx.Dtype, read: Callable[[str], mx.array]) -> None:
        self.model = model
        self.dtype = dtype
        self._read = read
        self._shapes = {name: (array.shape, array.dtype) for name, array in self._arrays("")}

    def _arrays(self, prefix: str) -> Iterator[tuple[str, mx.array]]:
        flat: Any = tree_flatten(self.model.parameters())
        yield from ((name, array) for name, array in flat if name.startswith(prefix))

    def fill(self, prefix: str = "") -> None:
        """Read the parameters whose names start so, floating ones in the model's dtype."""
        for name, _ in list(self._arrays(prefix)):
            array = self._read(name)
            array = array.astype(self.dtype) if mx.issubdtype(array.dtype, mx.floating) else array
            mx.eval(array)
            self.model.update(tree_unflatten([(name, array)]), strict=False)
            mx.clear_cache()

    def fill_outside(self, blocks: list[str]) -> None:
        """Read what is in none of the blocks."""
        for name, _ in list(self._arrays("")):
            if not any(name.startswith(f"{path}.") for path in blocks):
                self.fill(name)

    def release(self, prefix: str = "") -> None:
        """Let go of the parameters whose names start so."""
        zeros = [(name, mx.zeros(*self._shapes[name])) for name, _ in self._arrays(prefix)]
        self.model.update(tree_unflatten(zeros), strict=False)
        mx.clear_cache()


class Original(Lazy):
    """The checkpoint as mlx-lm computes it, not quantized."""

    def __init__(self, checkpoint: Checkpoint, dtype: mx.Dtype) -> None:
        super().__init__(lazy_model(checkpoint)[0], dtype, Weights(open_target(checkpoint).program).whole)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of all parameters."""
        yield from ((name, shape) for name, (shape, _) in self._shapes.items())

    def sizes(self) -> set[int]:
        """Sizes that arrays of the model may have."""
        found = {size for _, shape in self.shapes() for size in shape}
        return found | {size // 2 for size in found}

    @property
    def vocabulary(self) -> int:
        """Rows of the largest table of embeddings, or of the head."""
        outside = [shape for name, shape in self.shapes() if not _BLOCK.match(name) and len(shape) == 2]
        return max((shape[0] for shape in outside), default=1)

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters in memory."""
        return sum(prod(shape) * self.dtype.size for shape, _ in self._shapes.values())


class Quantized(Lazy):
    """The output as it was written."""

    def __init__(self, folder: Path, dtype: mx.Dtype, trust_remote_code: bool) -> None:
        self._refs = output_refs(folder)
        model = load_output(folder, trust_remote_code=trust_remote_code)
        super().__init__(upcast(model) if dtype == mx.float32 else model, dtype, self.stored)

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters as they are stored."""
        return sum(ref.nbytes for ref in self._refs.values())

    def stored(self, name: str) -> mx.array:
        """A tensor as it is stored, read now."""
        files: Any = mx.load(str(self._refs[name].path))
        array: mx.array = files[name]
        mx.eval(array)
        return array
