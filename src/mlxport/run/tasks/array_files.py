"""Arrays in NumPy's ``.npy``, one behind the other: ``numpy.load`` reads the first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxport.errors import UsageError
from mlxport.output.atomic_files import replacing
from mlxport.run.media.files import readable_file

__all__ = ["ARRAYS", "read_arrays", "write_arrays"]

ARRAYS = ".npy"
"""What names of such files end in."""
Array = npt.NDArray[Any]


def write_arrays(path: Path, arrays: Sequence[Array]) -> None:
    """Write a file that appears when it is whole."""
    with replacing(path) as file:
        for array in arrays:
            np.save(file, array)


def read_arrays(given: str | os.PathLike[str], most: int) -> list[Array]:
    """The arrays of a file; it holds no code.

    Args:
        given: The file.
        most: How many are read.

    Raises:
        UsageError: No such file, or not one of NumPy's.
    """
    path, found = readable_file(given, ARRAYS), list[Array]()
    size = path.stat().st_size
    with open(path, "rb") as file:
        while len(found) < most and file.tell() < size:
            try:
                array = np.load(file, allow_pickle=False)
            except (ValueError, EOFError, OSError, MemoryError) as error:
                what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise UsageError(f"{path} is no array of NumPy: {what}", hint="give what numpy.save writes") from error
            if not isinstance(array, np.ndarray):
                what = f"{path} is an archive of arrays, expected one array"
                raise UsageError(what, hint="give what numpy.save writes")
            found.append(array)
    return found
