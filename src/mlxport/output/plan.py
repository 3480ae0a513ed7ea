"""Which tensor goes into which file, how many bytes, how much memory: pure arithmetic, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mlxport.errors import UsageError
from mlxport.types import ModelPart, OutTensor, Plan, QuantSpec, Shard

DEFAULT_SHARD_SIZE = "5GB"
# Resident memory of Python with MLX and mlx-lm loaded and of the heap's gaps, measured on Linux (110 to 150 MB).
BASE_BYTES = 160 << 20
_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{u}B": n for u, n in _UNITS.items() if u and u != "B"}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
# layers.3. / h.3. / blocks.3. …: the first index in a path is the layer's.
_LAYER = re.compile(r"^(.*?\.)?(\d+)\.")


@dataclass(frozen=True, slots=True)
class ShardGroup:
    """Tensors that must share a shard, in order."""

    tensors: tuple[OutTensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the group."""
        return sum(tensor.nbytes for tensor in self.tensors)


def parse_size(text: str | int) -> int:
    """``"5GB"`` → 5,000,000,000 (``"5GiB"`` → 5 × 2³⁰), as in transformers' ``max_shard_size``.

    Raises:
        UsageError: Not a positive size.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        size = Fraction(text)
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
        if match is None or match[2].upper() not in _UNITS:
            raise UsageError(f"{text!r} is not a size", hint="write it like 5GB, 500MB or 2GiB")
        size = Fraction(match[1]) * _UNITS[match[2].upper()]
    if size < 1:
        raise UsageError(f"a shard of {text} cannot hold anything", hint="write it like 5GB, 500MB or 2GiB")
    return int(size)


def make_plan(
    tensors: Sequence[OutTensor],
    *,
    max_bytes: int,
    by: str,
    dtype: str,
    parameters: int,
    quantized: Mapping[str, QuantSpec],
    kept: Mapping[str, str],
    dropped: tuple[str, ...],
    working_bytes: int,
    stem: str = "model",
    left_out: tuple[ModelPart, ...] = (),
) -> Plan:
    """Shards for ``tensors``, with what the user wants to know before anything is written.

    Args:
        tensors: Output tensors in order.
        max_bytes: Limit of a file's tensor bytes.
        by: ``size`` or ``layer``.
        dtype: Name of the main floating dtype.
        parameters: Number of parameters.
        quantized: Module path to its quantization.
        kept: Module path to why it is not quantized.
        dropped: Source tensors that the target does not use.
        working_bytes: What the largest block of rows works on.
        stem: What the files are called, before their number.
        left_out: Parts of the source's model that are not in the output.
    """
    shards = make_shards(tensors, max_bytes, by, stem)
    peak = BASE_BYTES + 4 * working_bytes
    return Plan(shards, dtype, parameters, dict(quantized), dict(kept), peak, dropped, left_out)


def make_shards(
    tensors: Sequence[OutTensor], max_bytes: int, by: str = "size", stem: str = "model"
) -> tuple[Shard, ...]:
    """Fill files in order up to ``max_bytes``, named as mlx-lm names them.

    A tensor (or with ``by="layer"`` a layer) larger than the limit gets a file of its own.

    Args:
        tensors: Output tensors in order.
        max_bytes: Limit of a file's tensor bytes.
        by: ``size`` cuts between tensors, ``layer`` only between layers.
        stem: What the files are called, before their number.

    Raises:
        UsageError: ``by`` is neither.
    """
    if by not in ("size", "layer"):
        raise UsageError(f"cannot shard by {by!r}", hint="choose size or layer")
    groups = [ShardGroup((tensor,)) for tensor in tensors] if by == "size" else _layers(tensors)
    files: list[list[OutTensor]] = []
    filled = 0
    for group in groups:
        if not files or filled + group.nbytes > max_bytes:
            files.append([])
            filled = 0
        files[-1].extend(group.tensors)
        filled += group.nbytes
    if len(files) == 1:
        return (Shard(f"{stem}.safetensors", tuple(files[0])),)
    count = len(files)
    return tuple(Shard(f"{stem}-{i:05d}-of-{count:05d}.safetensors", tuple(file)) for i, file in enumerate(files, 1))


def _layers(tensors: Iterable[OutTensor]) -> list[ShardGroup]:
    """Tensors of a layer together, layers and single tensors in order of first appearance."""
    groups: dict[str, list[OutTensor]] = {}
    for tensor in tensors:
        match = _LAYER.match(tensor.name)
        groups.setdefault(match[0] if match else tensor.name, []).append(tensor)
    return [ShardGroup(tuple(group)) for group in groups.values()]
