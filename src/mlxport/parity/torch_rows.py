"""Tensors of a checkpoint in torch: whole, by rows, and by blocks of rows on all cores."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from safetensors import safe_open

from mlxport.source import read_rows
from mlxport.types import TensorRef

__all__ = ["BLOCK_BYTES", "TORCH_DTYPES", "on_all_cores", "read_block", "read_tensor"]

Item = TypeVar("Item")

# Of float32 rows alive at a time: so many stay in a core's cache. Each step over 48 MB took four times as long, half of
# that to fault in pages, since malloc keeps nothing so large.
BLOCK_BYTES = 4 << 20

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def read_block(ref: TensorRef, start: int = 0, stop: int | None = None) -> torch.Tensor:
    """Rows of a tensor of the checkpoint in its own dtype."""
    shape = (-1, *ref.shape[1:]) if ref.shape else ()
    return torch.from_numpy(read_rows(ref, start, stop)).view(TORCH_DTYPES[ref.dtype]).reshape(shape)


def read_tensor(ref: TensorRef) -> torch.Tensor:
    """One checkpoint tensor: by safetensors' own reader where it can, so that ours is not both sides' witness."""
    if ref.path.suffix == ".safetensors":
        with safe_open(ref.path, framework="pt") as file:
            return file.get_tensor(ref.name_in_file)
    data = torch.from_numpy(np.array(read_rows(ref), copy=True))
    return data.view(TORCH_DTYPES[ref.dtype]).reshape(ref.shape)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Threads that torch meets for the first time compute alone: theirs would wait for each other after every step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _cores() -> ThreadPoolExecutor:
    """One thread a core, for good: the memory that malloc keeps for a thread is not kept for many."""
    count = os.cpu_count() or 1
    pool, met = ThreadPoolExecutor(count), threading.Barrier(count)

    def begin(_: int) -> None:
        torch.get_num_threads()
        met.wait()

    with _one_thread_each():
        list(pool.map(begin, range(count)))
    return pool


def on_all_cores(function: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Call ``function`` with each item, several at a time, each on one core.

    Reading, unpacking and multiplying one block touches the same memory thrice, so a core does all of it; torch's own
    threads share the work of a single step, and wait at its end. ``function`` writes to what its caller made: an array
    of its own that outlived the call would hold down, in the memory of its thread, the blocks beside it (2 GB for a
    vocabulary of 128,256).
    """
    given = list(items)
    if len(given) < 2:
        for item in given:
            function(item)
        return
    with _one_thread_each():
        list(_cores().map(function, given))
