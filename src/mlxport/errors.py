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

from mlxport.printable import printable

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
