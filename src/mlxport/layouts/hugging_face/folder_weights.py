"""The tensors of an MLX folder as values under the names of its map, quantized ones as what they stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from mlxport.errors import ConfigError, UnsupportedError, WeightsError
from mlxport.layouts.conversion import DTYPES
from mlxport.progress import listed
from mlxport.quant import is_linear, make_spec
from mlxport.transform import Program, Value, dequantized, mx_dtype, stored_value
from mlxport.types import Checkpoint, QuantSpec, TensorRef

__all__ = ["FolderWeights", "folder_weights"]

_PARTS = ("scales", "biases", "global_scale")
_AGAIN = "give a whole folder, as convert wrote it"


@dataclass(frozen=True)
class FolderWeights:
    """What a folder holds.

    Attributes:
        values: Output of the map to its value.
        quantized: Module path to its quantization.
        dtype: Of most floating tensors, scales included: what was dequantized is rounded to it.
    """

    values: Mapping[str, Value]
    quantized: Mapping[str, QuantSpec]
    dtype: mx.Dtype

    def said(self, dtype: str) -> list[str]:
        """What is to be said of the way back of quantized weights."""
        if not self.quantized:
            return []
        kinds = Counter(self.quantized.values()).most_common()
        each = ", ".join(f"{spec.mode} {spec.bits} bits: {count}" for spec, count in kinds)
        rounded = "" if dtype == "float32" else f", rounded to {dtype} (--dtype float32 rounds nothing)"
        return [
            f"lossy: {len(self.quantized)} modules were quantized ({each}); they come back dequantized{rounded}, "
            "which is not what the original had"
        ]


def folder_weights(checkpoint: Checkpoint, forward: Program, *, named: bool) -> FolderWeights:
    """The folder's tensors as the outputs of ``forward``.

    Args:
        checkpoint: The MLX folder.
        forward: The map that led there, quantizing nothing.
        named: Whether the user named the original.

    Raises:
        WeightsError: They are not those of the map, by name or shape.
        ConfigError: The config's quantization is not that of the tensors.
        UnsupportedError: A form of quantization that is not undone.
    """
    tensors = checkpoint.tensors
    quantized = {
        path: _spec(checkpoint, path)
        for path in (name.removesuffix(".scales") for name in tensors if name.endswith(".scales"))
        if f"{path}.weight" in tensors
    }
    parts = {f"{path}.{part}" for path in quantized for part in _PARTS}
    values: dict[str, Value] = {}
    for name, ref in tensors.items():
        if name in parts:
            continue
        spec = quantized.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        values[name] = stored_value(ref) if spec is None else _dequantized(checkpoint, name, spec)
    _compare(values, forward, checkpoint, named)
    return FolderWeights(
        {name: values[name] for name in forward.outputs}, quantized, _dtype(checkpoint, parts, quantized)
    )


def _dequantized(checkpoint: Checkpoint, name: str, spec: QuantSpec) -> Value:
    path, tensors = name.removesuffix(".weight"), checkpoint.tensors
    weight, scales, biases = tensors[name], tensors[f"{path}.scales"], tensors.get(f"{path}.biases")
    if f"{path}.global_scale" in tensors:
        raise UnsupportedError(
            f"{checkpoint.location}: {path} has a global scale, which is not undone", hint="use the original checkpoint"
        )
    columns, groups = weight.shape[-1] * 32 / spec.bits, scales.shape[-1]
    if columns != groups * spec.group_size or is_linear(spec.mode) != (biases is not None):
        raise ConfigError(
            f"{checkpoint.location}/config.json says that {path} is {spec.mode} of {spec.bits} bits in groups of "
            f"{spec.group_size}, and {name} is {list(weight.shape)} with scales {list(scales.shape)}",
            hint="config.json and weights are of different conversions: get both from the same place",
        )
    return dequantized(weight, scales, biases, spec)


def _spec(checkpoint: Checkpoint, path: str) -> QuantSpec:
    block = checkpoint.model_config.mlx_quantization
    own = block.get(path)
    given = own if isinstance(own, Mapping) else block
    if not isinstance(given.get("bits"), int) or not isinstance(given.get("group_size"), int):
        raise ConfigError(
            f"{checkpoint.location}/config.json does not say how {path} is quantized, and it has scales", hint=_AGAIN
        )
    return make_spec(str(given.get("mode", "affine")), given["bits"], given["group_size"])


def _compare(values: Mapping[str, Value], forward: Program, checkpoint: Checkpoint, named: bool) -> None:
    """Refuse a folder whose tensors are not those of the map."""
    whose = "of the checkpoint given by --against" if named else "that its config describes"
    hint = _AGAIN if named else "add --against ORIGINAL, the checkpoint that it was made from"
    for what, names in (
        ("lacks", [name for name in forward.outputs if name not in values]),
        ("also holds", [name for name in values if name not in forward.outputs]),
    ):
        if names:
            raise WeightsError(
                f"{checkpoint.location} is not a conversion of the model {whose}: it {what} {listed(names, 3)}",
                hint=hint,
            )
    for name, output in forward.outputs.items():
        if values[name].shape != output.shape:
            raise WeightsError(
                f"{checkpoint.location} is not a conversion of the model {whose}: {name} is "
                f"{list(values[name].shape)}, expected {list(output.shape)}",
                hint=hint,
            )


def _dtype(checkpoint: Checkpoint, parts: set[str], quantized: Mapping[str, QuantSpec]) -> mx.Dtype:
    """The dtype of scales of linear modes and of plain tensors, by elements; else the config's."""

    def counts(name: str, ref: TensorRef) -> bool:
        linear = name in parts and is_linear(quantized[name.rpartition(".")[0]].mode)
        return ref.dtype in ("F16", "BF16", "F32") and (linear or name not in parts)

    sizes: Counter[mx.Dtype] = Counter()
    for name, ref in checkpoint.tensors.items():
        if counts(name, ref):
            sizes[mx_dtype(ref)] += ref.size
    return sizes.most_common(1)[0][0] if sizes else DTYPES.get(str(checkpoint.model_config.dtype), mx.bfloat16)
