"""Rows of a tensor of a GGUF file: read as they are asked for, unpacked, in the order that transformers has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxport.source.gguf.header import GgufTensor
from mlxport.source.gguf.kinds import BlockCodes
from mlxport.source.row_reader import read_rows
from mlxport.types import TensorRef

__all__ = ["GgufRows", "as_values", "in_groups", "slices"]

_NUMPY = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
_GROUP = 32  # of MLX, and elements of the blocks that are read as such


@dataclass(frozen=True)
class GgufRows:
    """How rows of a tensor are made of a file's blocks.

    Attributes:
        tensor: Where they lie.
        heads: Number of heads whose rows llama.cpp has in another order (its rope turns neighbours, transformers'
            halves), 0 for none.
        less: What is to be subtracted: llama.cpp stores some norms with one added.
        part: ``values``, or ``weight``, ``scales`` or ``biases`` of MLX's groups.
    """

    tensor: GgufTensor
    heads: int = 0
    less: float = 0.0
    part: str = "values"

    def __call__(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """The bytes of rows [start, stop)."""
        if not self.heads:
            return _bytes(self._made(start, stop))
        size = self.tensor.shape[0] // self.heads
        first, last = start // size, -(-stop // size)
        rows = self._made(first * size, last * size)
        halves = rows.reshape(last - first, size // 2, 2, *rows.shape[1:]).swapaxes(1, 2)
        return _bytes(halves.reshape(rows.shape)[start - first * size : stop - first * size])

    def _made(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows in the file's order."""
        if self.part == "values":
            return self._values(start, stop)
        assert self.tensor.kind.codes is not None
        found = self.tensor.kind.codes(self._blocks(start, stop))
        if self.part != "weight":
            return np.ascontiguousarray(getattr(found, self.part)).reshape(stop - start, -1)
        return _packed(found).reshape(stop - start, -1)

    def _values(self, start: int, stop: int) -> npt.NDArray[Any]:
        tensor, kind = self.tensor, self.tensor.kind
        shape = (stop - start, *tensor.shape[1:])
        if kind.values is None:
            data = read_rows(_plain(tensor), start, stop)
            if kind.dtype == "BF16":  # neither moved nor shifted as numbers: their bits are
                words = data.view(np.uint16).reshape(shape)
                return words if not self.less else _rounded(_wide(words) - np.float32(self.less))
            values = data.view(_NUMPY[kind.dtype]).reshape(shape)
            return (values - values.dtype.type(self.less)) if self.less else values
        if len(tensor.shape) == 1:
            values = kind.values(self._blocks(0, 1)).reshape(-1)[start:stop]
        else:
            values = kind.values(self._blocks(start, stop)).reshape(shape)
        return values - np.float32(self.less) if self.less else values

    def _blocks(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Blocks of rows along the first axis; a tensor of one axis is one row."""
        tensor, kind = self.tensor, self.tensor.kind
        rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
        ref = TensorRef(tensor.name, "U8", (rows, tensor.nbytes // rows), tensor.path, tensor.offset)
        return read_rows(ref, start, stop).reshape(-1, kind.nbytes)


def _plain(tensor: GgufTensor) -> TensorRef:
    return TensorRef(tensor.name, tensor.kind.dtype, tensor.shape, tensor.path, tensor.offset)


def _wide(words: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return (words.astype(np.uint32) << 16).view(np.float32)


def _rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16, of ties the even one."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _packed(found: BlockCodes) -> npt.NDArray[np.uint8]:
    """Codes as MLX packs them: one little-endian stream of bits, the lowest of the first code first."""
    codes = found.codes
    if found.bits == 8:
        return codes
    if found.bits == 4:
        return np.asarray(codes[:, ::2] | codes[:, 1::2] << 4, np.uint8)
    bits = np.unpackbits(codes[..., None], axis=-1, bitorder="little", count=found.bits)
    return np.packbits(bits.reshape(len(codes), -1), axis=1, bitorder="little")


def as_values(name: str, tensor: GgufTensor, *, heads: int = 0, less: float = 0.0) -> TensorRef:
    """A tensor as numbers: those of blocks as float32; bytes of the file where nothing is done to them."""
    if tensor.kind.values is None and not heads and not less:
        return replace(_plain(tensor), name=name)
    dtype = tensor.kind.dtype or "F32"
    return TensorRef(name, dtype, tensor.shape, tensor.path, tensor.offset, made=GgufRows(tensor, heads, less))


def in_groups(ref: TensorRef) -> tuple[int, dict[str, TensorRef]] | None:
    """A tensor as MLX's groups of 32: its bits, and ``weight``, ``scales`` and ``biases`` by name.

    Returns:
        None where these do not hold the same numbers.
    """
    made = ref.made
    if not isinstance(made, GgufRows) or made.tensor.kind.codes is None or made.less or len(ref.shape) < 2:
        return None
    bits, columns = made.tensor.kind.bits, ref.shape[-1]
    module = ref.name.removesuffix(".weight")
    shapes = {"weight": ("U32", columns * bits // 32), "scales": ("F16", columns // _GROUP)}
    shapes["biases"] = shapes["scales"]
    return bits, {
        f"{module}.{part}": replace(
            ref, name=f"{module}.{part}", dtype=dtype, shape=(*ref.shape[:-1], width), made=replace(made, part=part)
        )
        for part, (dtype, width) in shapes.items()
    }


def slices(tensor: GgufTensor) -> list[GgufTensor]:
    """The tensors that a stack holds, along its first axis."""
    count, nbytes = tensor.shape[0], tensor.nbytes // tensor.shape[0]
    assert prod(tensor.shape[1:]) % tensor.kind.elements == 0
    return [replace(tensor, shape=tensor.shape[1:], offset=tensor.offset + i * nbytes) for i in range(count)]
