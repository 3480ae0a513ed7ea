"""safetensors dtypes, MLX dtypes and numpy bytes, each in terms of the others."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlxport.errors import UnsupportedError
from mlxport.types import DTYPE_BITS, TensorRef

# F8_E4M3 and F8_E8M0 arrive as raw bytes, as in mx.load. F64 becomes float32: MLX has no float64 on the GPU.
_TO_MX = {
    "BOOL": mx.bool_,
    "U8": mx.uint8,
    "I8": mx.int8,
    "F8_E4M3": mx.uint8,
    "F8_E8M0": mx.uint8,
    "I16": mx.int16,
    "U16": mx.uint16,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "I32": mx.int32,
    "U32": mx.uint32,
    "F32": mx.float32,
    "I64": mx.int64,
    "U64": mx.uint64,
    "F64": mx.float32,
    "C64": mx.complex64,
}
_TO_ST = {dtype: name for name, dtype in _TO_MX.items() if name not in ("F8_E4M3", "F8_E8M0", "F64")}
_NUMPY = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def float32(array: mx.array) -> mx.array:
    """An array of any floating dtype as float32; other arrays as they are."""
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array


def mx_dtype(ref: TensorRef) -> mx.Dtype:
    """The MLX dtype under which a checkpoint tensor is seen; raises UnsupportedError where MLX has none."""
    if ref.dtype not in _TO_MX:
        raise UnsupportedError(
            f"{ref.name} in {ref.path.name} has dtype {ref.dtype}, which MLX cannot read",
            hint="convert the tensor to bfloat16 with safetensors or torch first",
        )
    return _TO_MX[ref.dtype]


def st_dtype(dtype: mx.Dtype) -> str:
    """The safetensors name of an MLX dtype."""
    return _TO_ST[dtype]


def to_mx(data: np.ndarray, ref: TensorRef, shape: tuple[int, ...]) -> mx.array:
    """Bytes of (rows of) ``ref`` as an MLX array of ``shape``; copies once."""
    dtype = mx_dtype(ref)
    if ref.dtype == "F64":
        with np.errstate(over="ignore"):  # what becomes infinite is counted by the writer
            return mx.array(data.view(np.float64).astype(np.float32).reshape(shape))
    if dtype == mx.bool_:
        return mx.array(data.view(np.bool_).reshape(shape))
    words = data.view(_NUMPY[DTYPE_BITS[ref.dtype]]).reshape(shape)
    if dtype == mx.complex64:
        return mx.array(data.view(np.complex64).reshape(shape))
    return mx.array(words).view(dtype)


def to_bytes(array: mx.array) -> np.ndarray:
    """The bytes of an evaluated array, row-major, as a flat uint8 numpy array; no copy of contiguous arrays."""
    flat = array.reshape(-1)
    if flat.dtype == mx.bool_:
        return np.array(flat).view(np.uint8)
    raw = flat.view(mx.uint8) if flat.size else mx.zeros((0,), mx.uint8)
    mx.eval(raw)
    return np.asarray(memoryview(raw))  # type: ignore[arg-type]
