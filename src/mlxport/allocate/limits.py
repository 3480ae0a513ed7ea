"""How small the output has to be: what ``--fit``, ``--target-size`` and ``--target-bpw`` ask for, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlxport.errors import UsageError
from mlxport.model_config import ModelConfig
from mlxport.output.plan import parse_size
from mlxport.quant import QUANTIZERS

if TYPE_CHECKING:
    from mlxport.fit import Machine

__all__ = ["Target", "make_target"]

# Scales and biases with less error in the same bytes: whoever asks for a size wants the best model of that size.
DEFAULT_QUANTIZER = "search"


@dataclass(frozen=True)
class Target:
    """One limit.

    Attributes:
        machine: The model has to run on it; None where the limit is another.
        context: Tokens of prompt and answer on that machine; None is the default of ``plan``.
        size: Most bytes of the output's weight files.
        bits_per_weight: Most bits of the stored tensors divided by parameters.
        quantizer: How scales and biases are chosen.
    """

    machine: Machine | None = None
    context: int | None = None
    size: int | None = None
    bits_per_weight: float | None = None
    quantizer: str = DEFAULT_QUANTIZER

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse a context that the model of a config was not made for."""
        from mlxport.fit import chosen_context

        chosen_context(self.context, ModelConfig(config).context_length)


def make_target(
    fit: str | bool | None = None,
    context: int | None = None,
    target_size: str | int | None = None,
    target_bpw: float | None = None,
    quantizer: str | None = None,
    **others: Any,
) -> Target | None:
    """Read the options into one limit; None where there is none.

    Args:
        fit: A machine such as ``"M2 8GB"``; True is the Mac that this runs on.
        context: Tokens that have to fit, beside ``fit``.
        target_size: Most bytes of the weight files, such as ``"6GB"``.
        target_bpw: Most bits per weight.
        quantizer: One of ``QUANTIZERS``.
        others: The other options of quantization, which this replaces; all have to be None.

    Raises:
        UsageError: Options that contradict each other, or values that do not exist.
    """
    given = {"--fit": None if fit is False else fit, "--target-size": target_size, "--target-bpw": target_bpw}
    named = [name for name, value in given.items() if value is not None]
    if context is not None and "--fit" not in named:
        raise UsageError(f"--context {context} has no effect without --fit", hint='add --fit "M2 8GB"')
    if not named:
        return None
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} are two limits", hint="give one of them")
    if beside := [
        f"--{name.replace('_', '-')}" for name, value in others.items() if value is not None and value is not False
    ]:
        message = f"{named[0]} chooses bits and group sizes by itself, so {' and '.join(beside)} contradicts it"
        raise UsageError(message, hint=f"leave out {named[0]} or {' and '.join(beside)}")
    quantizer = DEFAULT_QUANTIZER if quantizer is None else quantizer
    if quantizer not in QUANTIZERS:
        raise UsageError(f"unknown quantizer {quantizer!r}", hint=f"choose one of {', '.join(QUANTIZERS)}")
    if target_size is not None:
        return Target(size=_size(target_size), quantizer=quantizer)
    if target_bpw is not None:
        return Target(bits_per_weight=_bits(target_bpw), quantizer=quantizer)
    if context is not None and context < 2:
        raise UsageError(f"--context {context}: a context holds at least 2 tokens", hint="leave it out for 4096")
    return Target(_machine(fit), context, quantizer=quantizer)


def _machine(fit: str | bool | None) -> Machine:
    from mlxport.fit import named_machine, this_machine

    try:
        return this_machine() if fit is True else named_machine(str(fit))
    except UsageError as error:
        raise UsageError(
            error.message.replace("--device", "--fit"), hint=(error.hint or "").replace("--device", "--fit")
        ) from error


def _size(value: str | int) -> int:
    try:
        return parse_size(value)
    except UsageError as error:
        hint = "write it like 6GB, 500MB or 2GiB"
        raise UsageError(f"--target-size {value!r} is not a size of a model", hint=hint) from error


def _bits(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise UsageError(f"--target-bpw {value!r} is not a number of bits", hint="write it like 4.2")
    return float(value)
