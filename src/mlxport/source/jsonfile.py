"""JSON as checkpoints hold it, read strictly: UTF-8, an object, no key twice, no NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from mlxport.errors import SourceError
from mlxport.source.safe_files import opened, read_exactly, refuse_placeholder

# The largest index seen in the wild is a few MB; what is larger than this is not a config or an index.
MAX_JSON_BYTES = 100_000_000
MAX_DEPTH = 100
# A vocabulary of a million tokens has some three million values; a file of nothing but `[],` takes 20 times its size.
MAX_VALUES = 6_000_000


class _Refused(ValueError):
    """Valid JSON that we do not accept."""


def parse_object(
    data: bytes,
    path: Path,
    error: type[SourceError],
    *,
    what: str = "",
    unique: bool = True,
    repeated: list[str] | None = None,
) -> dict[str, Any]:
    """The JSON object in ``data``; see :func:`_parsed`.

    Raises:
        SourceError: Of the class ``error``: it is anything else.
    """
    value = _parsed(data, path, error, what=what, unique=unique, repeated=repeated)
    if not isinstance(value, dict):
        _refuse(error, _place(path, what), f"is not a JSON object but a {type(value).__name__}", None)
    return value


def _place(path: Path, what: str) -> str:
    return f"{path}: {what}" if what else str(path)


def _parsed(
    data: bytes,
    path: Path,
    error: type[SourceError],
    *,
    what: str = "",
    unique: bool = True,
    repeated: list[str] | None = None,
) -> Any:
    """The JSON value in ``data``.

    Args:
        data: The text, UTF-8.
        path: Named in errors.
        error: Class of the error raised when ``data`` is anything else.
        what: Which part of the file it is, for errors.
        unique: Refuse an object that holds a key twice.
        repeated: Where not ``unique``: collects keys given twice with different values; the last value counts.
    """
    constants: list[str] = []

    def constant(name: str) -> float:
        # Infinity is legal in practice: Mamba 2 has `"time_step_limit": [0.0, Infinity]`.
        constants.append(name)
        return float(name)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            key.encode()  # a lone surrogate can be neither printed nor written again
            if "NaN" in constants and _holds_nan(value):
                raise _Refused(f"it holds NaN, as {key}")
            if key in found and unique:
                raise _Refused(f"the key {key!r} is given twice")
            if key in found and found[key] != value and repeated is not None:
                repeated.append(key)
            found[key] = value
        return found

    place = _place(path, what)
    if data.count(b",") > MAX_VALUES:
        _refuse(error, place, f"holds more than {MAX_VALUES:,} values", None)
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except UnicodeDecodeError as cause:
        _refuse(error, place, f"is not UTF-8 (byte {cause.start})", cause)
    except UnicodeEncodeError as cause:
        _refuse(error, place, "holds a key that is not valid Unicode", cause)
    except json.JSONDecodeError as cause:
        _refuse(error, place, f"is not JSON: {cause.msg} at line {cause.lineno}, column {cause.colno}", cause)
    except (ValueError, RecursionError) as cause:
        _refuse(error, place, f"is not accepted: {cause}", cause)
    return value


def _holds_nan(value: Any) -> bool:
    return value != value or (isinstance(value, list) and any(map(_holds_nan, value)))


def _refuse(error: type[SourceError], place: str, why: str, cause: Exception | None) -> NoReturn:
    raise error(f"{place} {why}", hint="get the file again from where the checkpoint comes from") from cause


def read_object(
    path: Path, error: type[SourceError], *, unique: bool = True, repeated: list[str] | None = None
) -> dict[str, Any]:
    """The JSON object in a file; see :func:`parse_object`."""
    value = parse_object(_content(path, error), path, error, unique=unique, repeated=repeated)
    _refuse_deep(value, path, error)
    return value


def read_list(path: Path, error: type[SourceError]) -> list[Any]:
    """The JSON list in a file, read as strictly as objects are.

    Raises:
        SourceError: Of the class ``error``: it is anything else.
    """
    value = _parsed(_content(path, error), path, error)
    if not isinstance(value, list):
        _refuse(error, str(path), f"is not a JSON list but a {type(value).__name__}", None)
    _refuse_deep(value, path, error)
    return value


def _content(path: Path, error: type[SourceError]) -> bytes:
    with opened(path, error) as (fd, size):
        if size > MAX_JSON_BYTES:
            raise error(f"{path} has {size} bytes; at most {MAX_JSON_BYTES} are expected of such a file")
        data = read_exactly(fd, size, 0, path)
    refuse_placeholder(data, path, error)
    return data


def _refuse_deep(value: Any, path: Path, error: type[SourceError]) -> None:
    if nests_deeper(value):
        _refuse(error, str(path), f"nests deeper than {MAX_DEPTH} levels", None)


def nests_deeper(value: Any, most: int = MAX_DEPTH) -> bool:
    """Whether a JSON value nests deeper than anybody means it to: whatever walks it by calling itself would give up."""
    level = [value]
    for _ in range(most):
        within = (inner for one in level for inner in (one.values() if isinstance(one, dict) else one))
        level = [inner for inner in within if isinstance(inner, dict | list)]
        if not level:
            return False
    return True
