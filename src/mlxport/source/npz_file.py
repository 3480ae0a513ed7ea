"""Archives of NumPy (``.npz``), as ``np.savez`` and ``mx.savez`` write them: headers are read, arrays where they lie.

A record is a ``.npy`` file (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html). MLX's bfloat16 is
there as two bytes without a type.
"""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mlxport.errors import UnsafeError, UnsupportedError, WeightsError
from mlxport.source.safe_files import open_regular, refuse_placeholder
from mlxport.source.zip_records import data_offset, is_stored
from mlxport.types import DTYPE_BITS, TensorRef

__all__ = ["read_npz_file"]

_DTYPES = {
    "|b1": "BOOL", "|u1": "U8", "|i1": "I8", "<i2": "I16", "<u2": "U16", "<i4": "I32", "<u4": "U32", "<i8": "I64",
    "<u8": "U64", "<f2": "F16", "<f4": "F32", "<f8": "F64", "<c8": "C64", "|V2": "BF16",
}  # fmt: skip
_AGAIN = "get the file again, or save the arrays again with np.savez"


def read_npz_file(path: Path) -> dict[str, TensorRef]:
    """The arrays of an archive, by name; nothing of them is read.

    Raises:
        UnsafeError: A record holds Python objects.
        UnsupportedError: Arrays are compressed, or of a type that no weights have.
        WeightsError: The archive is missing, truncated or malformed.
    """
    with open(open_regular(path), "rb") as file:
        refuse_placeholder(file.read(512), path)
        end = file.seek(0, io.SEEK_END)
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                tensors = {entry.filename.removesuffix(".npy"): _read(file, entry, path, end) for entry in entries}
        # A hostile directory gets zipfile to raise any of these.
        except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError, OverflowError) as error:
            raise WeightsError(f"{path} is truncated or not an archive of arrays: {error}", hint=_AGAIN) from error
    if len(tensors) != len(entries):
        raise WeightsError(f"{path}: the archive holds an array twice", hint=_AGAIN)
    if not tensors:
        raise WeightsError(f"{path} holds no arrays", hint=_AGAIN)
    return tensors


def _read(file: BinaryIO, entry: zipfile.ZipInfo, path: Path, end: int) -> TensorRef:
    name = entry.filename.removesuffix(".npy")
    if not is_stored(entry):
        hint = "write it without compression, with np.savez in the place of np.savez_compressed"
        raise UnsupportedError(f"{path}: the array {name!r} is compressed, and cannot be read by rows", hint=hint)
    start = data_offset(file, entry)
    file.seek(start)
    shape, in_columns, dtype = _header(file)
    if dtype.hasobject:
        raise UnsafeError(
            f"{path}: {name!r} holds Python objects, which were not loaded", hint="save arrays of numbers only"
        )
    known = _DTYPES.get(dtype.str)
    if known is None:
        raise UnsupportedError(f"{path}: the array {name!r} is of type {dtype.str}, which no weights have", hint=_AGAIN)
    offset, nbytes = file.tell(), prod(shape) * DTYPE_BITS[known] // 8
    if offset + nbytes != start + entry.file_size or offset + nbytes > end:
        raise WeightsError(
            f"{path}: the array {name!r} has {start + entry.file_size - offset} bytes, and shape {list(shape)} of "
            f"{known} needs {nbytes}", hint=_AGAIN,
        )  # fmt: skip
    strides = tuple(accumulate((1, *shape[:-1]), lambda a, b: a * b)) if in_columns and len(shape) > 1 else None
    return TensorRef(name=name, dtype=known, shape=shape, path=path, offset=offset, strides=strides)


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns lie one after another, and type."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shape, in_columns, dtype = read(file)
    return tuple(map(int, shape)), bool(in_columns), dtype
