"""Where the bytes of a zip archive's records lie, for those that are stored as they are."""

from __future__ import annotations

import struct
import zipfile
from typing import BinaryIO

__all__ = ["data_offset", "is_stored"]

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")


def is_stored(entry: zipfile.ZipInfo) -> bool:
    """Whether a record is not compressed."""
    return entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size


def data_offset(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """The byte of ``file`` at which a record begins.

    Raises:
        zipfile.BadZipFile: No record is where the archive's directory has it.
        struct.error: The file ends there.
    """
    file.seek(entry.header_offset)
    fields = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if fields[0] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no record at byte {entry.header_offset}")
    return entry.header_offset + _LOCAL_HEADER.size + int(fields[-2]) + int(fields[-1])
