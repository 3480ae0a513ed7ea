"""Torch files (zip archives with a pickle): unpickled under ``weights_only``, so nothing in them can run.

Tensors are made under ``FakeTensorMode``: no weights are read, and each storage says at which byte of the file it lies
(https://docs.pytorch.org/docs/stable/notes/serialization.html#serialization-layout-control). That is compared with the
archive's own directory before it is believed.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from mlxport.errors import SourceError, UnsafeError, UnsupportedError, WeightsError
from mlxport.source.safe_files import open_regular, refuse_placeholder
from mlxport.source.zip_records import data_offset, is_stored
from mlxport.types import DTYPE_BITS, TensorRef

DTYPES = {  # of torch, to those of safetensors
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
}
# Where training scripts put the state dict, and what they put beside it that holds tensors too.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_TRAINING = re.compile(r"opt(?:im|_|$)|sched|scaler|rng|callbacks|loops|metric", re.IGNORECASE)
_MAX_PICKLE_BYTES = 1 << 28
_AGAIN = "get the file again, or save the model again with save_pretrained"


def read_torch_file(path: Path) -> tuple[dict[str, TensorRef], list[str]]:
    """The tensors of one ``.bin``, ``.pt`` or ``.pth`` file, and what in it is ignored.

    Raises:
        UnsafeError: The pickle holds more than weights; it is not executed.
        WeightsError: The file is missing, truncated or malformed.
        UnsupportedError: A legacy, TorchScript or big-endian file.
        SourceError: torch is not installed.
    """
    tensors, problems, _ = read_torch_checkpoint(path)
    return tensors, problems


def read_torch_checkpoint(path: Path) -> tuple[dict[str, TensorRef], list[str], Mapping[Any, Any]]:
    """The same, and all that the file holds: a dict with the weights in it, where a training script wrote it.

    Raises:
        SourceError: As of ``read_torch_file``.
    """
    with open(open_regular(path), "rb") as file:
        start = file.read(512)
        refuse_placeholder(start, path)
        if not start.startswith(b"PK\x03\x04"):
            raise _not_a_zip(start, path)
        storages = _storages(file, path)
        file.seek(0)
        loaded = _load(file, path)
    state, problems = _state_dict(loaded, path)
    tensors: dict[str, TensorRef] = {}
    for name, value in state:
        ref = _reference(name, value, storages, path)
        if ref is None:
            problems.append(f"{path.name}: {name} is not a tensor ({type(value).__name__}) and is ignored")
        else:
            tensors[name] = ref
    if not tensors:
        raise WeightsError(f"{path} holds no tensors", hint="give the file that torch.save(model.state_dict()) wrote")
    return tensors, problems, loaded


def _not_a_zip(start: bytes, path: Path) -> SourceError | UnsupportedError:
    # Files of torch before 1.6 are a row of pickles, which begins with this magic number.
    if start.startswith(b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"):
        return UnsupportedError(
            f"{path} is in the legacy format of torch before 1.6, whose tensors cannot be located",
            hint=f'save it again: python -c "import torch; f = {str(path)!r}; '
            'torch.save(torch.load(f, weights_only=True), f)"',
        )
    if start[:1] == b"\x80":
        return UnsafeError(
            f"{path} is a bare pickle, not a torch weights file; it was not executed",
            hint="ask for the weights as safetensors, or save only the state dict with torch.save",
        )
    if not start:
        return WeightsError(f"{path} is empty", hint=_AGAIN)
    return WeightsError(f"{path} is not a torch weights file", hint=_AGAIN)


@dataclass(frozen=True, slots=True)
class _Storage:
    """Bytes of one uncompressed record of the archive."""

    offset: int
    size: int


def _storages(file: BinaryIO, path: Path) -> dict[int, _Storage]:
    """Where the archive's storages lie, by offset, read from its directory and checked.

    Raises:
        WeightsError: The archive is truncated or malformed, or a storage is compressed.
    """
    end = file.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _check_records(archive, entries, path)
            found = {}
            for entry in entries:
                if not _is_storage(entry):
                    continue
                if not is_stored(entry):
                    raise WeightsError(f"{path}: the record {entry.filename} is compressed", hint=_AGAIN)
                offset = data_offset(file, entry)
                if offset + entry.file_size > end:
                    raise WeightsError(f"{path} is truncated in the record {entry.filename}", hint=_AGAIN)
                found[offset] = _Storage(offset, entry.file_size)
            return found
    # A hostile directory gets zipfile to raise any of these.
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError, OverflowError) as error:
        raise WeightsError(f"{path} is truncated or not a zip archive: {error}", hint=_AGAIN) from error


def _check_records(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], path: Path) -> None:
    names = [entry.filename for entry in entries]
    if len({*names}) != len(names):
        raise WeightsError(f"{path}: the archive holds a record twice", hint=_AGAIN)
    by_base = {name.rpartition("/")[2]: entry for name, entry in zip(names, entries, strict=True) if "/" in name}
    if "constants.pkl" in by_base:
        raise UnsupportedError(
            f"{path} is a TorchScript archive, which is a program",
            hint="save the state dict: torch.save(m.state_dict())",
        )
    if "data.pkl" not in by_base:
        raise WeightsError(f"{path} is a zip archive without data.pkl, not a torch weights file", hint=_AGAIN)
    large = [entry for entry in entries if entry.file_size > _MAX_PICKLE_BYTES and not _is_storage(entry)]
    if large:  # compressed, it may be small on disk and fill the memory
        raise WeightsError(
            f"{path}: {large[0].filename} has {large[0].file_size} bytes, too many for names", hint=_AGAIN
        )
    order = by_base.get("byteorder")
    if order is not None and order.file_size < 16 and archive.read(order).strip() == b"big":
        raise UnsupportedError(f"{path} was written by a big-endian machine", hint="save it again as safetensors")


def _is_storage(entry: zipfile.ZipInfo) -> bool:
    return entry.filename.split("/")[-2:-1] == ["data"]


def _load(file: BinaryIO, path: Path) -> Any:
    try:
        import torch
        from torch._subclasses import FakeTensorMode
    except ImportError as error:
        raise SourceError(
            f"{path} is a torch file, and torch is not installed", hint='pip install "mlxport[torch]"'
        ) from error
    from pickle import UnpicklingError

    try:
        with FakeTensorMode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, weights_only=True)
    except UnpicklingError as error:
        why = (str(error).partition("WeightsUnpickler error: ")[2] or str(error)).strip().splitlines()[0]
        raise UnsafeError(
            f"{path} holds a pickle with more than weights in it, which was not executed: {why}",
            hint="ask for the weights as safetensors, or save only the state dict with torch.save",
        ) from error
    # The unpickler of torch runs into whatever a malformed pickle leads to (KeyError, IndexError, AssertionError, …);
    # none of it is a bug of ours, for no code of ours is in between.
    except Exception as error:
        raise WeightsError(f"{path} is malformed: {type(error).__name__}: {str(error)[:200]}", hint=_AGAIN) from error


def _state_dict(loaded: Any, path: Path) -> tuple[list[tuple[str, Any]], list[str]]:
    """The names and values of the state dict, unwrapped where a training script put it into another dict."""
    import torch

    problems: list[str] = []
    for _ in range(3):
        if not isinstance(loaded, Mapping):
            raise WeightsError(
                f"{path} holds a {type(loaded).__name__.removeprefix('Fake')}, not a state dict",
                hint="give the file that torch.save(model.state_dict()) wrote",
            )
        inner = _inner_dicts(loaded)
        if not inner:
            break
        # A number beside it (the best loss, a step) is no weight.
        beside = [str(key) for key, value in loaded.items() if isinstance(value, torch.Tensor) and value.ndim]
        if len(inner) > 1 or beside:
            raise WeightsError(
                f"{path} holds more than one state dict, or tensors beside it: {', '.join([*inner, *beside])[:200]}",
                hint="save the one that counts into a file of its own",
            )
        others = [str(key) for key in loaded if key != inner[0]]
        if others:
            problems.append(f"{path.name}: only {inner[0]!r} counts; ignored: {', '.join(others)[:200]}")
        loaded = loaded[inner[0]]
    for name in loaded:
        if not isinstance(name, str) or not name.isprintable():
            raise WeightsError(f"{path}: {str(name)[:80]!r} is not a tensor's name", hint=_AGAIN)
    return list(loaded.items()), problems


def _inner_dicts(loaded: Mapping[Any, Any]) -> list[str]:
    """Under which names a dict may hold the state dict: the usual ones, else any that is not of the training."""
    found = [key for key, value in loaded.items() if isinstance(value, Mapping) and _holds_tensors(value)]
    usual = [key for key in _WRAPPERS if key in found]
    return usual or [key for key in found if isinstance(key, str) and not _TRAINING.search(key)]


def _holds_tensors(value: Mapping[Any, Any], depth: int = 3) -> bool:
    import torch

    return any(
        isinstance(item, torch.Tensor) or (depth > 0 and isinstance(item, Mapping) and _holds_tensors(item, depth - 1))
        for item in value.values()
    )


def _reference(name: str, value: Any, storages: Mapping[int, _Storage], path: Path) -> TensorRef | None:
    """The reference of one tensor; None for what is not a tensor.

    Raises:
        WeightsError: It is not dense, of a dtype unknown here, or reaches beyond its storage.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        return None

    def refuse(why: str) -> WeightsError:
        return WeightsError(f"{path}: tensor {name!r} {why}", hint="save the model again as safetensors")

    dtype = DTYPES.get(str(value.dtype).removeprefix("torch."))
    if value.layout != torch.strided or value.is_quantized or dtype is None:
        raise refuse(f"is {value.layout} {value.dtype}, which is not read")
    if value.is_conj() or value.is_neg():
        raise refuse("is a lazily conjugated view")
    shape, strides = tuple(map(int, value.shape)), tuple(map(int, value.stride()))
    offset = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    if offset is None and value.numel():
        raise refuse("has no storage in the file (this needs torch 2.7 or later)")
    item = DTYPE_BITS[dtype] // 8
    storage = storages.get(offset) if offset is not None else None
    if value.numel() == 0:
        return TensorRef(name, dtype, shape, path, 0)
    if storage is None:
        raise refuse(f"lies at byte {offset}, where the archive has no record")
    first = int(value.storage_offset()) * item
    last = first + (1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))) * item
    if first < 0 or min(strides, default=0) < 0 or last > storage.size:
        raise refuse(f"reaches byte {last} of a storage of {storage.size}")
    if prod(shape) * item > storage.size:
        raise refuse(f"repeats elements: shape {shape} in a storage of {storage.size} bytes")
    contiguous = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    dense = all(n == 1 or have == want for n, have, want in zip(shape, strides, contiguous, strict=True))
    return TensorRef(name, dtype, shape, path, storage.offset + first, None if dense else strides)
