"""The header of a GGUF file: metadata and where each tensor lies; everything that it says is checked first."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from mlxport.errors import SourceError, UnsupportedError, WeightsError
from mlxport.source.gguf.kinds import KINDS, NAMES, Kind
from mlxport.source.safe_files import open_regular, refuse_placeholder

__all__ = ["ORIGINAL", "GgufHeader", "GgufTensor", "read_header"]

ORIGINAL = "convert from the original safetensors checkpoint instead"
"""What to do about a file of which something is not read."""

_VERSIONS = (2, 3)
# Number of a type of metadata to its letter for struct; 7 is a boolean, 8 a text, 9 an array.
_NUMBERS: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_TEXT, _ARRAY = 8, 9
_MOST_TEXT = 64 << 20
_AGAIN = "get the file again from where it is from"


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of a file: its name there, its shape with the longest stride first, its type, and where it begins."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    path: Path
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) // self.kind.elements * self.kind.nbytes


@dataclass(frozen=True)
class GgufHeader:
    """What a file says before its numbers."""

    path: Path
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: tuple[GgufTensor, ...] = field(repr=False)

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it.

        Raises:
            WeightsError: The file does not say, as parts after the first do not.
        """
        if not isinstance(found := self.metadata.get("general.architecture"), str):
            raise WeightsError(f"{self.path} does not say of which architecture it is", hint=_AGAIN)
        return found


def read_header(path: Path) -> GgufHeader:
    """The header of a file.

    Raises:
        WeightsError: The file is missing, truncated or malformed.
        UnsupportedError: Another version, another byte order, or a type of ggml that is not read, by its name.
    """
    with open(open_regular(path), "rb") as file:
        try:
            return _read(_Cursor(file, path))
        except (struct.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
            raise WeightsError(f"{path}: its header is malformed: {error}", hint=_AGAIN) from error


class _Cursor:
    """Reads numbers and texts one after the other; what lies beyond the end of the file is an error."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.size = os.fstat(file.fileno()).st_size

    def take(self, count: int) -> bytes:
        """So many bytes."""
        if count > self.size - self.file.tell():
            raise WeightsError(
                f"{self.path} is truncated: its GGUF header goes on after its end, at byte {self.size}", hint=_AGAIN
            )
        return self.file.read(count)

    def numbers(self, letters: str) -> tuple[Any, ...]:
        """As of ``struct``, little-endian."""
        form = struct.Struct(f"<{letters}")
        return form.unpack(self.take(form.size))

    def number(self, letter: str) -> Any:
        """One of them."""
        return self.numbers(letter)[0]

    def text(self) -> str:
        """A text with its length before it."""
        length = self.number("Q")
        if length > _MOST_TEXT:
            raise WeightsError(f"{self.path}: its header has a text of {length} bytes", hint=_AGAIN)
        return self.take(length).decode("utf-8", errors="replace")

    def value(self) -> Any:
        """A value of the metadata, its type before it."""
        kind = self.number("I")
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            raise WeightsError(f"{self.path}: its metadata have a value of type {kind}, which is none", hint=_AGAIN)
        kind, count = self.numbers("IQ")
        if count > self.size:
            raise WeightsError(f"{self.path}: its metadata have an array of {count} values", hint=_AGAIN)
        if kind in _NUMBERS:
            return list(self.numbers(f"{count}{_NUMBERS[kind]}"))
        if kind != _TEXT:
            raise WeightsError(f"{self.path}: its metadata have an array of type {kind}, which is none", hint=_AGAIN)
        return [self.text() for _ in range(count)]


def _read(cursor: _Cursor) -> GgufHeader:
    path = cursor.path
    _check_start(cursor)
    tensors, values = cursor.numbers("QQ")
    if max(tensors, values) > cursor.size:
        raise WeightsError(f"{path}: its header counts {tensors} tensors and {values} values", hint=_AGAIN)
    metadata = {cursor.text(): cursor.value() for _ in range(values)}
    entries = [_entry(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise WeightsError(f"{path}: general.alignment is {alignment!r}", hint=_AGAIN)
    start = -(-cursor.file.tell() // alignment) * alignment
    found = tuple(_tensor(*entry, start, cursor) for entry in entries)
    if len({tensor.name for tensor in found}) != len(found):
        raise WeightsError(f"{path} holds a tensor twice", hint=_AGAIN)
    return GgufHeader(path, metadata, found)


def _check_start(cursor: _Cursor) -> None:
    path, start = cursor.path, cursor.file.read(512)
    cursor.file.seek(0)
    refuse_placeholder(start, path)
    if not start:
        raise WeightsError(f"{path} is empty", hint=_AGAIN)
    if cursor.take(4) != b"GGUF":
        raise WeightsError(f"{path} is not a GGUF file: it does not begin with GGUF", hint=_AGAIN)
    version = cursor.take(4)
    if int.from_bytes(version, "big") in _VERSIONS:
        raise UnsupportedError(
            f"{path} was written by a big-endian machine", hint="get the little-endian file, which nearly all are"
        )
    if (number := int.from_bytes(version, "little")) not in _VERSIONS:
        known = " and ".join(map(str, _VERSIONS))
        raise UnsupportedError(f"{path} is GGUF version {number}; {known} are read", hint="get a newer file")


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, count = cursor.text(), cursor.number("I")
    if count > 4:
        raise WeightsError(f"{cursor.path}: {name} has {count} dimensions", hint=_AGAIN)
    shape = cursor.numbers(f"{count}Q")
    kind, offset = cursor.numbers("IQ")
    return name, tuple(reversed(shape)), kind, offset


def _tensor(name: str, shape: tuple[int, ...], number: int, offset: int, start: int, cursor: _Cursor) -> GgufTensor:
    path = cursor.path
    if (kind := KINDS.get(number)) is None:
        raise _unknown(path, name, number)
    if not shape or 0 in shape or shape[-1] % kind.elements:
        raise WeightsError(f"{path}: {name} is {list(shape)}, in blocks of {kind.elements} ({kind.name})", hint=_AGAIN)
    tensor = GgufTensor(name, shape, kind, path, start + offset)
    if tensor.offset + tensor.nbytes > cursor.size:
        raise WeightsError(
            f"{path} is truncated: {name} ends at byte {tensor.offset + tensor.nbytes}, the file at {cursor.size}",
            hint=_AGAIN,
        )
    return tensor


def _unknown(path: Path, name: str, number: int) -> SourceError | UnsupportedError:
    if number not in NAMES:
        return WeightsError(f"{path}: {name} is of type {number}, which ggml does not have", hint=_AGAIN)
    known = ", ".join(kind.name for kind in KINDS.values())
    return UnsupportedError(
        f"{path}: {name} is stored as {NAMES[number]}, which is not read; read are {known}",
        hint="get a file of another type, Q8_0 or F16 for one, or the original safetensors checkpoint",
    )
