"""The safetensors header, checked in full before anything in it is believed.

Format: https://github.com/huggingface/safetensors#format. Own parser, because the library gives no absolute offsets
and its errors name no file.
"""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path
from typing import Any

from mlxport.errors import WeightsError
from mlxport.source.jsonfile import parse_object
from mlxport.source.safe_files import opened, read_exactly, refuse_placeholder
from mlxport.types import DTYPE_BITS, TensorRef

# The limit of the reference implementation.
MAX_HEADER_BYTES = 100_000_000
_AGAIN = "get the file again, or save the model again with safetensors"


def read_safetensors(path: Path) -> dict[str, TensorRef]:
    """The tensors of one file, in the file's order; reads the header only.

    Raises:
        WeightsError: The file is missing, truncated, or breaks the format.
    """
    header, size = _read_header(path)
    return parse_header(header, size, path)


def read_metadata(path: Path) -> dict[str, Any]:
    """What a file says of itself beside its tensors, empty where it says nothing.

    Raises:
        WeightsError: The file is missing, truncated, or has no header.
    """
    header, _ = _read_header(path)
    found = parse_object(header, path, WeightsError, what="the header").get("__metadata__")
    return found if isinstance(found, dict) else {}


def _read_header(path: Path) -> tuple[bytes, int]:
    """The header of a file, not parsed, and the size of the file."""
    with opened(path) as (fd, size):
        start = read_exactly(fd, min(size, 512), 0, path)
        refuse_placeholder(start, path)
        length = header_length(start, size, path)
        return read_exactly(fd, length, 8, path), size


def header_length(start: bytes, size: int, path: Path) -> int:
    """The length of the header of a file of ``size`` bytes that begins with ``start``."""
    if size < 8:
        raise WeightsError(f"{path} is truncated: it has {size} bytes, a safetensors file begins with 8", hint=_AGAIN)
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise WeightsError(
            f"{path} is not a safetensors file: its header would have {length} bytes, of at most {MAX_HEADER_BYTES}",
            hint=_AGAIN,
        )
    if length > size - 8:
        raise WeightsError(
            f"{path} is truncated: its header has {length} bytes, the file has {size}, which leaves {size - 8}",
            hint=_AGAIN,
        )
    if length < 2 or (len(start) > 8 and start[8:9] != b"{"):
        raise WeightsError(f"{path} is not a safetensors file: its header is not a JSON object", hint=_AGAIN)
    return length


def parse_header(header: bytes, size: int, path: Path) -> dict[str, TensorRef]:
    """The tensors that the header of a file of ``size`` bytes describes.

    Raises:
        WeightsError: Names the file, and the tensor where there is one.
    """
    entries = parse_object(header, path, WeightsError, what="the header")
    metadata = entries.pop("__metadata__", None) or {}  # MLX writes null where there is none
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsError(f"{path}: __metadata__ is not a map of strings", hint=_AGAIN)
    base = 8 + len(header)
    spans = [(*_entry(name, entry, path), name) for name, entry in entries.items()]
    spans.sort(key=lambda span: span[:2])
    _check_layout(spans, size, base, path)
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}  # thousands of experts have the same: it is held once

    def kept(name: str, begin: int) -> TensorRef:
        shape = tuple(entries[name]["shape"])
        return TensorRef(name, sys.intern(entries[name]["dtype"]), shapes.setdefault(shape, shape), path, base + begin)

    return {name: kept(name, begin) for begin, _, name in spans}


def _entry(name: str, entry: Any, path: Path) -> tuple[int, int]:
    """Check one entry by itself; returns its data offsets."""

    def refuse(why: str) -> WeightsError:
        return WeightsError(f"{path}: tensor {name!r} {why}", hint=_AGAIN)

    if not name or not name.isprintable():
        raise refuse("has a name that cannot be printed")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise refuse("is not described by exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise refuse(f"has the dtype {dtype!r}; known are {', '.join(DTYPE_BITS)}")
    if not _naturals(shape):
        raise refuse(f"has a shape that is not a list of sizes: {_short(shape)}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(f"has data_offsets that are not a begin and an end: {_short(offsets)}")
    expected = prod(shape) * DTYPE_BITS[dtype] // 8
    given = offsets[1] - offsets[0]
    if expected != given:
        raise refuse(f"of shape {_short(shape)} and dtype {dtype} needs {expected} bytes, its offsets give {given}")
    return offsets[0], offsets[1]


def _naturals(value: Any) -> bool:
    # `type() is int`, for True is an int to isinstance. The bound keeps products of hostile shapes small.
    return isinstance(value, list) and len(value) <= 64 and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_layout(spans: list[tuple[int, int, str]], size: int, base: int, path: Path) -> None:
    """The data must be covered exactly: no hole, no overlap, nothing after it, nothing missing."""
    promised = base + max((end for _, end, _ in spans), default=0)
    if promised > size:
        raise WeightsError(
            f"{path} is truncated: its header promises {promised} bytes, the file has {size}", hint=_AGAIN
        )
    reached = 0
    for begin, end, name in spans:
        if begin < reached:
            raise WeightsError(
                f"{path}: tensor {name!r} overlaps the one before it (at byte {base + begin})", hint=_AGAIN
            )
        if begin > reached:
            raise WeightsError(
                f"{path}: {begin - reached} bytes before tensor {name!r} belong to no tensor", hint=_AGAIN
            )
        reached = end
    if promised != size:
        raise WeightsError(
            f"{path} is {size - promised} bytes longer than its header promises ({promised})", hint=_AGAIN
        )
