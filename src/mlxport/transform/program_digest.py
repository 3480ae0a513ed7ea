"""What a program computes, as one hash: equal programs, traced in other processes, have equal ones."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from mlxport.transform.dtypes import to_bytes
from mlxport.transform.program import Output, Program, Value
from mlxport.types import TensorRef

__all__ = ["program_digest"]


def program_digest(program: Program, root: Path) -> str:
    """The sha256 of everything that decides the bytes of the outputs, but the contents of the checkpoint's files.

    Of each output: its name, shape, dtype and quantization, the calls that make it with their arguments, the numbers
    that they use (a multiplier of the config is one), and where in which file each tensor lies. Of an output that the
    trace could not follow nothing more is known than that: what its pipeline reads must be added by the caller.

    Args:
        program: A traced program.
        root: The checkpoint's folder; files are known by their path in it.
    """
    known: dict[int, bytes] = {}
    whole = hashlib.sha256(repr((program.quantizer, [_place(ref, root) for ref in program.refs.values()])).encode())
    for output in program.outputs.values():
        whole.update(_facts(output))
        whole.update(_digest(output.value, root, known) if output.value is not None else b"opaque")
    return whole.hexdigest()


def _facts(output: Output) -> bytes:
    return repr((output.name, output.shape, output.dtype, output.quant, output.part)).encode()


def _digest(value: Value, root: Path, known: dict[int, bytes]) -> bytes:
    """The hash of a value; those of its cone are found first, without recursion: chains of calls may be long."""
    waiting = [value]
    while waiting:
        current = waiting[-1]
        inputs = current.call.inputs if current.call is not None else ()
        missing = [each for each in inputs if id(each) not in known]
        if missing:
            waiting += missing
            continue
        waiting.pop()
        if id(current) not in known:
            made = hashlib.sha256(repr((current.shape, current.dtype, current.index, _origin(current, root))).encode())
            for each in inputs:
                made.update(known[id(each)])
            known[id(current)] = made.digest()
    return known[id(value)]


def _origin(value: Value, root: Path) -> tuple[Any, ...]:
    """Where a value itself comes from."""
    if value.leaf is not None:
        return ("leaf", *_place(value.leaf, root))
    if value.constant is not None:
        return ("constant", hashlib.sha256(to_bytes(value.constant).data).digest())
    assert value.call is not None
    return ("call", value.call.op, value.call.args)


def _place(ref: TensorRef, root: Path) -> tuple[Any, ...]:
    return (ref.name, ref.dtype, ref.shape, os.path.relpath(ref.path, root), ref.offset, ref.strides)
