"""The text that a model is calibrated on, as sequences of its own tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlxport.errors import TokenizerError, UsageError
from mlxport.model.texts import WRITES_UP_TO, calibration_text, read_text
from mlxport.quant import QuantRequest, linear_modes
from mlxport.types import Checkpoint

if TYPE_CHECKING:
    import mlx.core as mx

__all__ = [
    "SELF",
    "Calibration",
    "calibrated_request",
    "read_calibration",
    "refuse_quantizer",
    "spread",
    "tokens_of",
    "written",
]

DEFAULT, SELF, NONE = "default", "self", "none"
MOST_TOKENS = 16384  # that a model reads
MOST_CHARACTERS = 1 << 20  # that a tokenizer reads
_PIECES = 64
LEAST_TOKENS = 512
LENGTH = 512  # tokens of a sequence
LEAST_SEQUENCES = 3  # pieces of the batch must be of two sizes


@dataclass(frozen=True)
class Calibration:
    """A text to calibrate on.

    Attributes:
        name: ``default``, ``self``, or the file as the user gave it.
        text: Its content; of ``self``, which the model writes, that of ``default``: it says how much, and may be needed
            to begin with.
    """

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Of the text as UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def recorded(self) -> dict[str, str]:
        """What decides the output, for the record."""
        return {"text": self.name, "sha256": self.sha256}


def read_calibration(value: str | Path | None) -> Calibration | None:
    """The text that ``--calibrate`` names: ``default``, ``self``, a file, or none.

    Raises:
        UsageError: The file cannot be read, is empty, or is not text.
    """
    if value is None or str(value) == NONE:
        return None
    if str(value) in (DEFAULT, SELF):
        return Calibration(str(value), calibration_text())
    hint = "give a text file in UTF-8, or --calibrate default"
    text = read_text(value, f"the calibration text {value}", hint)
    return Calibration(str(value), text)


def calibrated_request(
    calibration: Calibration | None, request: QuantRequest | None, quantizer: str | None
) -> QuantRequest | None:
    """The request with what calibration needs: modules without activations are searched.

    Raises:
        UsageError: Nothing is quantized, or in no linear mode, or ``quantizer`` says how scales are chosen already.
    """
    if calibration is None:
        return request
    what = f"--calibrate {calibration.name}"
    if request is None:
        raise UsageError(f"{what} has no effect without --quantize", hint="add -q, or leave --calibrate out")
    refuse_quantizer(calibration, quantizer)
    if not request.any_linear:
        message = f"{what} chooses the codes of {linear_modes()} modules, and here are none"
        raise UsageError(message, hint="leave it out, or quantize with bits")
    return replace(request, quantizer="search")


def refuse_quantizer(calibration: Calibration, quantizer: str | None) -> None:
    """Raise ``UsageError`` where ``quantizer`` says how scales are chosen already."""
    if quantizer is not None:
        raise UsageError(
            f"--calibrate {calibration.name} contradicts --quantizer {quantizer}: it chooses scales and codes itself",
            hint="give one of them",
        )


def tokens_of(calibration: Calibration, checkpoint: Checkpoint) -> mx.array:
    """The text as sequences of tokens, int32 [sequences, length].

    Raises:
        TokenizerError: The checkpoint has no tokenizer that loads.
        UsageError: The text has too few tokens.
    """
    import mlx.core as mx

    from mlxport.model.tokens import token_ids, within

    model = checkpoint.model_config
    text, refusal = _excerpt(calibration.text), _refusal(checkpoint.location)
    ids = token_ids(checkpoint.root, text, refusal, trust_remote_code=checkpoint.trust_remote_code)
    kept, _ = within(ids, model.vocabulary)
    if len(kept) < LEAST_TOKENS:
        raise UsageError(
            f"the calibration text {calibration.name} is too short: {len(kept)} tokens of this model, "
            f"at least {LEAST_TOKENS} are needed",
            hint="give a longer text, or --calibrate default",
        )
    length = min(LENGTH, model.context_length or LENGTH, len(kept) // LEAST_SEQUENCES)
    rows = mx.array(kept[: len(kept) // length * length], dtype=mx.int32).reshape(-1, length)
    return rows[mx.array(spread(rows.shape[0], max(LEAST_SEQUENCES, MOST_TOKENS // length)))]


def written(calibration: Calibration, checkpoint: Checkpoint, sequences: int) -> int:
    """How many of so many sequences the model writes itself.

    All of ``self``. Of ``default``, every other one where the model is small enough: what it has learned may be far
    from a text that has something of everything, and then calibrating on that text alone costs it what it has.
    """
    if calibration.name == SELF:
        return sequences
    return sequences // 2 if calibration.name == DEFAULT and checkpoint.nbytes <= WRITES_UP_TO else 0


def spread(there: int, wanted: int) -> list[int]:
    """Which ones of so many to take: all, or as many as are wanted, evenly from first to last."""
    return [index * there // wanted for index in range(wanted)] if there > wanted else list(range(there))


def _excerpt(text: str) -> str:
    """A text that is not longer than a tokenizer should be given at once: pieces from all over it."""
    if len(text) <= MOST_CHARACTERS:
        return text
    size = MOST_CHARACTERS // _PIECES
    return "".join(text[start : start + size] for start in range(0, len(text) - size, len(text) // _PIECES))


def _refusal(location: str) -> Callable[[BaseException], TokenizerError]:
    def refusal(error: BaseException) -> TokenizerError:
        reason = " ".join(str(error).split())[:200]
        return TokenizerError(
            f"{location} has no tokenizer that loads, and --calibrate needs one: {reason}",
            hint="add its tokenizer files, or use --quantizer search instead",
        )

    return refusal
