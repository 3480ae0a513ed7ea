"""From the tensors of an MLX folder to those of a Hugging Face checkpoint: the map that led there, inverted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import mlx.core as mx

from mlxport.errors import MlxportError, UnsupportedError
from mlxport.layouts.base import Layout, LayoutOptions, PlainOptions
from mlxport.layouts.conversion import DTYPES, Conversion, main_dtype
from mlxport.layouts.hugging_face.folder_weights import folder_weights
from mlxport.progress import listed
from mlxport.source.row_reader import read_rows, same_bytes
from mlxport.transform import (
    Evaluator,
    NotInvertible,
    Output,
    Program,
    Value,
    as_type,
    inverse_values,
    stored_value,
)
from mlxport.types import Checkpoint, TensorRef

__all__ = ["RestoredConversion", "open_restored"]

_OF_MLX = ("quantization", "quantization_config", "model_file")  # fields that converters to MLX add


@dataclass(frozen=True)
class RestoredConversion(Conversion):
    """What is brought back.

    Attributes:
        forward: From the restored tensors to those of the MLX folder.
        made_by: The layout of the MLX folder.
        original: What that was made from, None where it is not at hand.
        rounded: Whether weights are rounded to a shorter dtype than they are computed or stored in.
    """

    forward: Program = field(repr=False, kw_only=True)
    made_by: Layout = field(kw_only=True)
    original: Checkpoint | None = field(kw_only=True)
    rounded: bool = field(kw_only=True)


@dataclass(frozen=True)
class _Target:
    """The Hugging Face folder as it should be.

    Attributes:
        checkpoint: Its config, and names and shapes of its tensors.
        parameters: Tensors that transformers makes up where they are absent.
        architecture: Name of the model's class.
    """

    checkpoint: Checkpoint
    parameters: frozenset[str]
    architecture: str


def open_restored(checkpoint: Checkpoint, options: LayoutOptions) -> RestoredConversion:
    """How a Hugging Face folder is made of an MLX folder.

    Args:
        checkpoint: The MLX folder.
        options: ``made_by`` is its layout, ``original`` what it was made from, where that is at hand.

    Raises:
        UnsupportedError: The map to MLX cannot be inverted, or the folder lacks a part of the model.
        WeightsError: The folder's tensors are not those that the map gives.
    """
    made_by, original = options.made_by, options.original
    assert made_by is not None, "the caller knows the layout of the folder"
    target = _as_saved(checkpoint) if original is None else _Target(original, frozenset(), "")
    forward = _forward(made_by, target, checkpoint, named=original is not None)
    stored = folder_weights(checkpoint, forward, named=original is not None)
    try:
        values = inverse_values(forward, stored.values)
    except NotInvertible as error:
        raise UnsupportedError(
            f"{checkpoint.location}: what was done to convert it cannot be undone: {error}",
            hint="use the checkpoint that it was made from",
        ) from error
    completed, notes = _completed(values, target, checkpoint, original)
    finished = {name: _in_dtype(value, options.dtype, stored.dtype) for name, value in completed.items()}
    program = _program(finished, target)
    dtype = main_dtype(program, options.dtype)
    return RestoredConversion(
        program,
        _config(target.checkpoint.config, dtype),
        dtype,
        sum(prod(output.shape) for output in program.outputs.values()),
        {},
        {},
        (*_said_of_names(original), *stored.said(dtype), *notes),
        files_of=original,
        forward=forward,
        made_by=made_by,
        original=original,
        rounded=_rounds(program),
    )


def _forward(made_by: Layout, target: _Target, checkpoint: Checkpoint, *, named: bool) -> Program:
    """The map that led to the MLX folder.

    Raises:
        UnsupportedError: The layout does not take what its config describes: it is none of transformers.
    """
    try:
        return (made_by.foresees or made_by.opens)(target.checkpoint, PlainOptions()).program
    except MlxportError as error:
        if named:
            raise
        raise UnsupportedError(
            f"{checkpoint.location}: its config.json does not say what the model is called in transformers, which "
            f"makes {target.architecture} of it: {error.message}",
            hint="add --against ORIGINAL, the checkpoint that it was made from",
        ) from error


def _as_saved(checkpoint: Checkpoint) -> _Target:
    """The folder that transformers saves of the model that an MLX folder's config describes."""
    from mlxport.layouts.generated.saved_model import saved_model

    config = {key: value for key, value in checkpoint.config.items() if key not in _OF_MLX}
    saved = saved_model(checkpoint, config)
    config["architectures"] = [saved.architecture]
    return _Target(replace(checkpoint, config=config, tensors=saved.tensors), saved.parameters, saved.architecture)


def _program(values: Mapping[str, Value], target: _Target) -> Program:
    """The program that computes the tensors, in the order in which the target has them."""
    ordered = {name: values[name] for name in target.checkpoint.tensors if name in values}
    outputs = {name: Output(name, value.shape, value.dtype, value) for name, value in ordered.items()}
    refs = {ref.name: ref for value in ordered.values() for ref in value.leaves()}

    def whole(arrays: dict[str, mx.array]) -> dict[str, mx.array]:
        return {name: Evaluator().full(value) for name, value in ordered.items()}

    return Program(refs, outputs, whole)


def _rounds(program: Program) -> bool:
    nodes = (node for output in program.outputs.values() if output.value for node in output.value.cone())
    return any(
        n.call is not None and n.call.op == "AsType" and n.dtype.size < n.call.inputs[0].dtype.size for n in nodes
    )


def _in_dtype(value: Value, asked: str, home: mx.Dtype) -> Value:
    """In the dtype that was asked for; without that as stored, what was dequantized in that of the rest."""
    if not mx.issubdtype(value.dtype, mx.floating):
        return value
    if asked in DTYPES:
        return as_type(value, DTYPES[asked])
    packed = any(node.call is not None and node.call.op == "Dequantize" for node in value.cone())
    return as_type(value, home) if packed else value


def _completed(
    values: Mapping[str, Value], target: _Target, checkpoint: Checkpoint, original: Checkpoint | None
) -> tuple[dict[str, Value], list[str]]:
    """The values with those of tensors that the MLX folder does not hold, and what is to be said of these.

    Raises:
        UnsupportedError: A part of the model is missing, and there is no original to take it from.
    """
    absent = [name for name in target.checkpoint.tensors if name not in values]
    if not absent:
        return dict(values), []
    if original is None:
        if lost := [name for name in absent if name in target.parameters]:
            raise UnsupportedError(
                f"{checkpoint.location} does not hold {listed(lost, 3)} of {target.architecture}, "
                "which transformers would make up",
                hint="add --against ORIGINAL, the checkpoint that it was made from: they are taken from there",
            )
        return dict(values), [f"not in the folder, transformers computes them: {listed(absent, 4)}"]
    copies = dict(_copies(absent, values, original))
    taken = [name for name in absent if name not in copies]
    result = {**values, **{name: values[of] for name, of in copies.items()}}
    result |= {name: stored_value(original.tensors[name]) for name in taken}
    notes = [f"dropped by the conversion to MLX, a copy of {of} again: {name}" for name, of in copies.items()]
    if taken:
        notes.append(f"dropped by the conversion to MLX, taken from {original.name}: {listed(taken, 8)}")
    return result, notes


def _copies(absent: list[str], values: Mapping[str, Value], original: Checkpoint) -> Iterator[tuple[str, str]]:
    """Tensors of the original that equal another one, which the MLX folder holds: tied heads and the like."""
    wanted = {(ref.shape, ref.dtype) for ref in map(original.tensors.__getitem__, absent) if len(ref.shape) > 1}
    begins: dict[bytes, list[TensorRef]] = {}
    for key, ref in original.tensors.items():
        if key in values and (ref.shape, ref.dtype) in wanted:
            begins.setdefault(_first_row(ref), []).append(ref)
    for name in absent:
        ref = original.tensors[name]
        alike = begins.get(_first_row(ref), ()) if (ref.shape, ref.dtype) in wanted else ()
        found = next((other for other in alike if same_bytes(ref, other)), None)
        if found is not None:
            yield name, found.name


def _first_row(ref: TensorRef) -> bytes:
    """A hash of it: experts of one shape are tens of thousands, and few begin alike."""
    return hashlib.sha256(read_rows(ref, 0, 1).tobytes()).digest()


def _said_of_names(original: Checkpoint | None) -> list[str]:
    if original is not None:
        return [f"names, config and tokenizer are those of {original.name}"]
    return ["names are those that transformers saves; --against ORIGINAL takes them from the original"]


def _config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config of the output: as it was, with the dtype of its weights."""
    result = dict(config)
    sections = [result]
    for key, value in config.items():
        if key == "text_config" and isinstance(value, Mapping):
            result[key] = dict(value)
            sections.append(result[key])
    for number, section in enumerate(sections):
        for key in ("torch_dtype", "dtype"):
            if key in section:
                section[key] = dtype
        if not number and "torch_dtype" not in section:
            section["dtype"] = dtype
    return result
