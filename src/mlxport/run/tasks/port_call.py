"""Call a port with what a tokenizer or a processor makes of an input."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx

from mlxport.errors import UsageError

__all__ = ["call_port", "inputs_of"]


def inputs_of(model: Any) -> tuple[str, ...]:
    """Names of what a port takes."""
    return tuple(inspect.signature(type(model).__call__).parameters)[1:]


def call_port(
    model: Any,
    made: Mapping[str, Any],
    *,
    reads: str,
    refused: str,
    hint: str,
    supplied: Mapping[str, Callable[[mx.array], mx.array]],
) -> Any:
    """A port's outputs, computed.

    Args:
        model: The port.
        made: Arrays by the names of its inputs; others are left out.
        reads: What they were made of, in a word.
        refused: What the port's own check of its inputs does not take, as the head of an error.
        hint: What to do then.
        supplied: What is given of inputs that may be missing, of the first that is there.

    Raises:
        UsageError: It takes something that was not made, or does not take what was.
    """
    takes = inputs_of(model)
    given = {name: mx.array(made[name]) for name in takes if name in made}
    missing = [name for name in takes if name not in given]
    if any(name not in supplied for name in missing):
        raise UsageError(
            f"this model also reads {', '.join(missing)}, which no {reads} gives",
            hint="call it from Python: mlxport.load(DST)(...)",
        )
    if missing:
        first = next(iter(given.values()))
        given |= {name: supplied[name](first) for name in missing}
    try:
        outputs = model(**given)
    except ValueError as error:  # of the port's own check of its inputs
        raise UsageError(f"{refused}: {error}", hint=hint) from error
    mx.eval(outputs)
    return outputs
