"""Put changed tensors into a finished shard: a new file of the same layout takes its place at once."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxport.output.atomic_files import replace_arrays, replacing
from mlxport.output.shards import Written
from mlxport.source.safetensors_file import read_safetensors
from mlxport.transform import to_bytes

__all__ = ["RESULT", "load_result", "rewrite", "save_result"]

RESULT = "result.safetensors"
_PIECE = 8 << 20


def save_result(path: Path, arrays: Mapping[str, mx.array], facts: str) -> None:
    """Keep what a distillation found, durably: from here on, writing it into the shards can be done again."""
    replace_arrays(path, arrays, {"facts": facts})


def load_result(path: Path) -> tuple[dict[str, mx.array], str] | None:
    """What ``save_result`` kept, None where there is nothing."""
    if not path.is_file():
        return None
    loaded: Any = mx.load(str(path), return_metadata=True)
    return dict(loaded[0]), str(loaded[1]["facts"])


def rewrite(path: Path, arrays: Mapping[str, mx.array], written: Written) -> Written:
    """Replace tensors of a shard, in one step for whoever reads it.

    Args:
        path: The shard.
        arrays: Tensors by name, of the shapes and dtypes that they have there; others are left out.
        written: What is known of the shard.

    Raises:
        DiskError: No space is left; the shard is as it was.
    """
    refs = read_safetensors(path)
    places = sorted((refs[name].offset, name) for name in arrays if name in refs)
    if not places:
        return written
    hasher = hashlib.sha256()
    with open(path, "rb") as source, replacing(path) as target:

        def put(data: Any) -> None:
            target.write(data)
            hasher.update(data)

        for offset, name in [*places, (written.nbytes, "")]:
            while source.tell() < offset:
                data = source.read(min(_PIECE, offset - source.tell()))
                if not data:
                    raise OSError(errno.EIO, "ends before its time", str(path))
                put(data)
            if name:
                changed = to_bytes(arrays[name])
                if changed.nbytes != refs[name].nbytes:
                    raise RuntimeError(f"{name} has {changed.nbytes} bytes, its place {refs[name].nbytes}")
                put(changed.data)
                source.seek(changed.nbytes, os.SEEK_CUR)
    return Written(hasher.hexdigest(), written.nbytes, written.findings)
