"""The program of a pipeline that goes on from a traced one, without tracing that again where it need not be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx

from mlxport.transform.program import Output, Pipeline, Program
from mlxport.transform.trace import recording, trace

__all__ = ["derive"]


def derive(
    program: Program, arrays: Mapping[str, mx.array], step: Callable[[], Mapping[str, mx.array]], pipeline: Pipeline
) -> Program:
    """What ``trace`` makes of ``pipeline``, which is that of ``program`` followed by a step that quantizes.

    Args:
        program: The traced one.
        arrays: Stand-ins for its outputs, by name, that the step works on.
        step: Gives the new outputs by name: each a stand-in, or a part of ``mx.quantize`` of one.
        pipeline: Both in one, from checkpoint tensors, for outputs that the trace could not follow.
    """
    names = {id(array): name for name, array in arrays.items()}
    with recording() as quantized:
        results = step()
        parts = {name: quantized.get(id(array), (array, None, "")) for name, array in results.items()}
    outputs = {}
    for name, (source, spec, part) in parts.items():
        array, origin = results[name], names.get(id(source))
        if origin is None:  # an architecture that computes with its weights before it quantizes them
            return trace(pipeline, program.refs)
        value = program.outputs[origin].value
        kind = (spec, part) if value is not None else (None, "")
        outputs[name] = Output(name, tuple(array.shape), array.dtype, value, *kind)
    return Program(program.refs, outputs, pipeline)
