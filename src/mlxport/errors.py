"""Every error that mlxport raises on purpose, one tree.

    MlxportError                     exit 1
    ├── UsageError                   exit 2   an option or a path that cannot apply
    │   ├── DestinationError                  exists, inside the source, not writable, in use
    │   └── QuantizationError                 a setting that cannot apply to this model
    ├── SourceError                           something is wrong with the checkpoint
    │   ├── ConfigError                       config.json missing, malformed, contradicting the weights
    │   ├── WeightsError                      a weights file or its index: missing, truncated, malformed
    │   ├── UnsafeError                       a path, pickle or code that is refused, not executed
    │   └── TokenizerError                    missing, or for another vocabulary
    ├── UnsupportedError                      an architecture or format that no installed runtime computes right
    ├── NumericsError                         values that overflow the target dtype
    ├── DiskError                             not enough space, before or during the writing
    ├── Interrupted                  exit 130 stopped by the user, resumable
    └── VerificationError            exit 3   converted, but not equal to the original

An error says what happened, where, what was expected and what was found; ``hint`` is the next step.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from mlxport.printable import printable, words

__all__ = [
    "ConfigError",
    "DestinationError",
    "DiskError",
    "Interrupted",
    "MlxportError",
    "NumericsError",
    "QuantizationError",
    "SourceError",
    "TokenizerError",
    "UnsafeError",
    "UnsupportedError",
    "UsageError",
    "VerificationError",
    "WeightsError",
]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_AGAIN = "mend what the system complains of and run the same command again: finished shards are kept"


class MlxportError(Exception):
    """The base of the tree: ``message`` for what and where, ``hint`` for the next step.

    Both name what others wrote, and both are printed: they hold no escape sequence and are of a length to be read.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = printable(message)
        self.hint = printable(hint)
        super().__init__(self.message)


class UsageError(MlxportError):
    """An option or a path that cannot apply."""

    exit_code = 2


class DestinationError(UsageError):
    """The destination exists, lies inside the source, cannot be written, or is in use."""


class QuantizationError(UsageError):
    """A quantization setting that cannot apply to this model."""


class SourceError(MlxportError):
    """Something is wrong with the checkpoint."""


class ConfigError(SourceError):
    """config.json is missing, malformed, or contradicts the weights."""


class WeightsError(SourceError):
    """A weights file or its index is missing, truncated or malformed."""


class UnsafeError(SourceError):
    """A path that leaves the checkpoint, a pickle with code, or remote code: refused, not executed."""


class TokenizerError(SourceError):
    """The tokenizer is missing or belongs to another vocabulary."""


class UnsupportedError(MlxportError):
    """An architecture or a format that no installed runtime computes right."""


class NumericsError(MlxportError):
    """Values that overflow the target dtype."""


class DiskError(MlxportError):
    """Not enough space, before or during the writing."""


class Interrupted(MlxportError):
    """Stopped by the user; the work so far can be resumed."""

    exit_code = 130


class VerificationError(MlxportError):
    """Converted, but not equal to the original within the tolerance."""

    exit_code = 3


def disk_full(where: object) -> DiskError:
    """The error for a disk that filled up while ``where`` was written."""
    hint = "free some space and run the same command again: finished shards are kept"
    return DiskError(f"no space left on the disk while writing {where}", hint=hint)


def system_error(error: BaseException, where: object = "") -> MlxportError | None:
    """What the system refused, as one of our errors; None for an exception that is not the system's.

    Args:
        error: What was raised.
        where: What was worked on, where the exception names no file.
    """
    if isinstance(error, MlxportError | BrokenPipeError):  # who closes a pipe wants to hear no more
        return None
    if isinstance(error, OSError):
        return _refused(error, error.filename or where or "a file")
    text = words(error)
    if isinstance(error, MemoryError) or "bad_alloc" in text or "nable to allocate" in text:
        return MlxportError("there is not enough memory", hint="close other programs, or raise the limit (ulimit -v)")
    if "not allowed to raise maximum limit" in text:  # mlx_lm/utils.py does so when it is imported
        return too_few_files()
    if "can't start new thread" in text:
        return MlxportError("the system lets no more threads begin", hint="raise the limit (ulimit -u)")
    return None


def too_few_files() -> MlxportError:
    """The error for a system in which mlx-lm cannot be imported."""
    hint = "raise the hard limit (ulimit -Hn 4096), of a container with --ulimit nofile=4096"
    return MlxportError("mlx-lm asks for 4096 open files, and fewer are allowed here", hint=hint)


def _refused(error: OSError, where: object) -> MlxportError:
    if error.errno in _FULL:
        return disk_full(where)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return MlxportError(f"{where}: too many files are open", hint="raise the limit: ulimit -n 4096")
    if error.errno == errno.EFBIG:
        return DiskError(
            f"{where}: {error.strerror}: larger than a file may be here",
            hint="raise the limit (ulimit -f), or use another disk",
        )
    return DiskError(f"{where}: {error.strerror or error}", hint=_AGAIN)


@contextlib.contextmanager
def system_errors(where: object = "") -> Iterator[None]:
    """Around work, or on a function: what the system refuses meanwhile becomes one of our errors."""
    try:
        yield
    except Exception as error:
        if (known := system_error(error, where)) is None:
            raise
        raise known from error
