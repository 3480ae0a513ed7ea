"""Run a pipeline once on placeholders and keep the graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.quant.modes import DEFAULT_MODE, is_linear, make_spec
from mlxport.quant.search import search_affine
from mlxport.transform.dtypes import mx_dtype
from mlxport.transform.evaluate import lazy_arrays
from mlxport.transform.exported import Exported, export
from mlxport.transform.program import Call, Output, Pipeline, Program, Value
from mlxport.transform.replacing import replacing
from mlxport.transform.row_rules import ROW_OPS
from mlxport.types import QuantSpec, TensorRef

# How MLX says that it cannot export a primitive, and that code looked at a placeholder's values.
_NO_STATE = "Unable to get state for primitive"
_EVALUATED = "Attempting to eval an array during function transformations"


def trace(pipeline: Pipeline, refs: Mapping[str, TensorRef]) -> Program:
    """Trace ``pipeline`` over placeholders of the shapes and dtypes of ``refs``; nothing is evaluated.

    Outputs that use a primitive outside ``ROW_OPS`` have ``value=None`` and are computed by running the pipeline on
    lazily loaded arrays. So are all outputs of a pipeline that looks at values (``.item()``, ``mx.eval``): MLX raises
    when it meets a placeholder there, and the pipeline is run on the real tensors instead, reading what it looks at.
    Errors that the pipeline raises on purpose pass through.
    """
    try:
        return Program(dict(refs), _traced(pipeline, refs), pipeline)
    except ValueError as error:
        if _EVALUATED not in str(error):
            raise
    results = pipeline(lazy_arrays(refs))
    outputs = {name: Output(name, tuple(array.shape), array.dtype, None) for name, array in results.items()}
    return Program(dict(refs), outputs, pipeline)


def trace_shapes(pipeline: Pipeline, refs: Mapping[str, TensorRef]) -> Program:
    """Run ``pipeline`` like ``trace``, for what it makes and not for how: names, shapes and dtypes of the outputs.

    Of a checkpoint with very many tensors the graph is what takes the memory. Tensors that are alike are the same
    placeholder here, nothing is recorded, and every output has ``value=None``. A pipeline that looks at values is
    traced.
    """
    kinds: dict[tuple[tuple[int, ...], mx.Dtype], int] = {}
    for ref in refs.values():
        kinds.setdefault((ref.shape, mx_dtype(ref)), len(kinds))
    results: dict[str, mx.array] = {}

    def run(*placeholders: mx.array) -> list[mx.array]:
        given = {name: placeholders[kinds[ref.shape, mx_dtype(ref)]] for name, ref in refs.items()}
        results.update(pipeline(given))
        return [mx.zeros(1)]  # that nothing else is asked for keeps MLX from walking the graph

    decoded: dict[tuple[tuple[int, ...], mx.Dtype], mx.array] = {}

    def from_fp8(x: mx.array, dtype: mx.Dtype = mx.bfloat16, **_: Any) -> mx.array:
        return decoded.setdefault((x.shape, dtype), mx.zeros(x.shape, dtype))

    def pad(a: mx.array, pad_width: Any, *args: Any, **kwargs: Any) -> mx.array:
        # Blocks that fit are padded by nothing, for which MLX makes an array that takes a kilobyte.
        return originals["pad"](a, pad_width, *args, **kwargs) if np.any(pad_width) else a

    try:
        with recording(), replacing([(mx, "from_fp8", from_fp8), (mx, "pad", pad)]) as originals:
            export(run, [mx.zeros(shape, dtype) for shape, dtype in kinds])
    except ValueError as error:
        if _EVALUATED not in str(error):
            raise
        return trace(pipeline, refs)
    outputs = {name: Output(name, tuple(array.shape), array.dtype, None) for name, array in results.items()}
    return Program(dict(refs), outputs, pipeline)


def lazy_outputs(program: Program) -> dict[str, mx.array]:
    """Every output as the pipeline itself makes it, lazily, of the stored tensors and with the program's quantizer."""

    def quantize(w: mx.array, *args: Any, **kwargs: Any) -> Any:
        spec = _quant_spec(*args, **kwargs)
        if spec is None or not is_linear(spec.mode):
            return originals["quantize"](w, *args, **kwargs)
        return search_affine(w, group_size=spec.group_size, bits=spec.bits, chunk=None)

    with replacing([(mx, "quantize", quantize)] if program.quantizer == "search" else []) as originals:
        return program.pipeline(lazy_arrays(program.refs))


def _traced(pipeline: Pipeline, refs: Mapping[str, TensorRef]) -> dict[str, Output]:
    # Every layer that is made splits MLX's random key, lazily; MLX walks that chain by recursion when it exports.
    mx.eval(mx.random.state[0])  # type: ignore[index]
    results: dict[str, mx.array] = {}
    parts: dict[str, tuple[QuantSpec, str]] = {}
    with recording() as quantized:

        def traced(*arrays: mx.array) -> list[mx.array]:
            results.update(pipeline(dict(zip(refs, arrays, strict=True))))
            roots = []
            for name, array in results.items():
                source, spec, part = quantized.get(id(array), (array, None, ""))
                if spec is not None:
                    parts[name] = (spec, part)
                roots.append(source)
            return roots

        placeholders = [mx.zeros(ref.shape, dtype=mx_dtype(ref)) for ref in refs.values()]
        values: Sequence[Value | None]
        try:
            values = _values(export(traced, placeholders), refs.values())
        except ValueError as error:
            if _NO_STATE not in str(error):
                raise
            values = [None] * len(results)
    outputs = {}
    for (name, array), value in zip(results.items(), values, strict=True):
        spec, part = parts.get(name, (None, ""))
        known = value if value is not None and _followed(value) else None
        kind = (spec, part) if known else (None, "")
        outputs[name] = Output(name, tuple(array.shape), array.dtype, known, *kind)
    return outputs


def _followed(value: Value) -> bool:
    """Whether every call in the cone can be computed by rows."""
    return all(
        node.call is None or (node.call.op in ROW_OPS and ROW_OPS[node.call.op].accepts(node.call, node))
        for node in value.cone()
    )


def _values(graph: Exported, refs: Iterable[TensorRef]) -> list[Value]:
    """The outputs of a graph whose inputs are checkpoint tensors."""
    env = {slot.key: Value(slot.shape, slot.dtype, leaf=ref) for slot, ref in zip(graph.inputs, refs, strict=True)}
    for key, array in graph.constants.items():
        env[key] = Value(tuple(array.shape), array.dtype, constant=array)
    for primitive in graph.primitives:
        call = Call(primitive.name, tuple(env[key] for key in primitive.inputs), primitive.arguments)
        for index, slot in enumerate(primitive.outputs):
            env[slot.key] = _simplified(Value(slot.shape, slot.dtype, call=call, index=index))
    return [env[slot.key] for slot in graph.outputs]


def _simplified(value: Value) -> Value:
    """Drop calls that change nothing, so that a plain copy is recognised as one."""
    call = value.call
    if call is None or len(call.inputs) != 1:
        return value
    (source,) = call.inputs
    same = source.shape == value.shape and source.dtype == value.dtype
    if same and call.op in ("AsType", "Reshape", "Flatten", "Unflatten", "Broadcast"):
        return source
    if same and call.op == "Transpose" and list(call.args[0]) == sorted(call.args[0]):
        return source
    return _joined_part(value) if call.op == "Slice" else value


def _joined_part(value: Value) -> Value:
    """A slice of what was joined, as the one part of that which it takes whole; else as it is."""
    call = value.call
    joined = call.inputs[0].call if call is not None else None
    if call is None or joined is None or joined.op != "Concatenate":
        return value
    axis, begin, bounds = joined.args[0], 0, list(map(list, call.args))
    for part in joined.inputs:
        first, last = [0] * len(part.shape), list(part.shape)
        first[axis], last[axis] = begin, begin + part.shape[axis]
        if bounds == [first, last, [1] * len(part.shape)]:
            return part
        begin += part.shape[axis]
    return value


@contextlib.contextmanager
def recording() -> Iterator[dict[int, tuple[mx.array, QuantSpec, str]]]:
    """Replace three functions of mlx.core while tracing, because their primitives cannot be exported.

    ``mx.contiguous`` changes no value; ``mx.from_fp8`` is a table of 256 values; the results of ``mx.quantize`` are
    remembered by identity, so that an output that is one of them is known to be a part of a quantized tensor. Other
    threads go on with the originals.
    """
    quantized: dict[int, tuple[mx.array, QuantSpec, str]] = {}
    keep: list[mx.array] = []

    def quantize(w: mx.array, *args: Any, **kwargs: Any) -> Any:
        result = originals["quantize"](w, *args, **kwargs)
        spec = _quant_spec(*args, **kwargs)
        if spec is not None:
            keep.extend(result)
            for array, part in zip(result, ("weight", "scales", "biases"), strict=False):
                quantized[id(array)] = (w, spec, part)
        return result

    def contiguous(x: mx.array, *_: Any, **__: Any) -> mx.array:
        return x

    tables: dict[mx.Dtype, mx.array] = {}

    def from_fp8(x: mx.array, dtype: mx.Dtype = mx.bfloat16, **_: Any) -> mx.array:
        if dtype not in tables:
            tables[dtype] = originals["from_fp8"](mx.arange(256, dtype=mx.uint8), dtype=dtype)
            mx.eval(tables[dtype])  # a constant; its primitive could not be exported
        return mx.take(tables[dtype], x.astype(mx.uint32))

    stand_ins: list[tuple[Any, str, Callable[..., Any]]]
    stand_ins = [(mx, "contiguous", contiguous), (mx, "from_fp8", from_fp8), (mx, "quantize", quantize)]
    with replacing(stand_ins) as originals:
        yield quantized


def _quant_spec(
    group_size: int | None = None, bits: int | None = None, mode: str = DEFAULT_MODE, **kwargs: Any
) -> QuantSpec | None:
    """The setting of a call of ``mx.quantize``; None where it has an argument that rows cannot honour."""
    if any(value is not None for key, value in kwargs.items() if key != "stream"):
        return None
    return make_spec(mode, bits, group_size)
