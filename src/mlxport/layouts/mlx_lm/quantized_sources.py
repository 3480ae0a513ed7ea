"""Checkpoints that others have quantized: which of them mlx-lm reads right, and which as other numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxport.errors import ConfigError, UnsupportedError
from mlxport.model_config import ModelConfig
from mlxport.progress import listed
from mlxport.transform import Program, Value
from mlxport.types import TensorRef

UNQUANTIZED = "start from the unquantized checkpoint"
# quant_method values that mlx_lm.utils.load_model acts on.
_KNOWN_METHODS = ("awq", "bitnet", "compressed-tensors", "fp8", "gptq", "modelopt", "mxfp4", "mxfp8")
_FP8 = ("F8_E4M3", "F8_E5M2")


def source_quantization(config: Mapping[str, Any]) -> str:
    """How the checkpoint is quantized already, ``""`` if it is not; methods unknown to mlx-lm are refused."""
    model = ModelConfig(config)
    if model.mlx_quantization:
        return "MLX"
    block = model.first("quantization_config")
    if not block:
        return ""
    if not isinstance(block, dict):
        raise ConfigError(f"quantization_config must be an object, got {block!r}", hint="repair config.json")
    settings = block["quantization"] if isinstance(block.get("quantization"), dict) else block
    method = str(block.get("quant_method") or settings.get("quant_algo") or settings.get("quant_method") or "unknown")
    name = method.lower()
    if name not in _KNOWN_METHODS:
        message = f"the checkpoint is quantized with {method}, which mlx-lm cannot convert"
        raise UnsupportedError(message, hint=UNQUANTIZED)
    if reason := _unlike_mlx_lm(name, settings):
        raise UnsupportedError(f"the checkpoint is quantized with {method}: {reason}", hint=UNQUANTIZED)
    return method


def check_entries(config: Mapping[str, Any], names: Iterable[str], where: str) -> tuple[str, ...]:
    """Hold the entries of MLX's quantization block for single modules against what the checkpoint stores of these.

    Args:
        config: The checkpoint's.
        names: Of its tensors.
        where: Of the config, for the error.

    Returns:
        Remarks on entries for modules that are not there at all: nothing reads them.

    Raises:
        ConfigError: An entry for a module whose weights are stored unquantized: mlx-lm would look for its scales.
    """
    stored = set(names)
    modules = {name.rpartition(".")[0] for name in stored} - {""}
    entries = [path for path, entry in ModelConfig(config).mlx_quantization.items() if isinstance(entry, Mapping)]
    plain = [path for path in entries if f"{path}.weight" in stored and f"{path}.scales" not in stored]
    if plain:
        raise ConfigError(
            f"{where}: quantization has an entry for {listed(plain, 1)}, whose weights are not quantized: "
            f"the checkpoint has {plain[0]}.weight without scales",
            hint="delete the entry from quantization and quantization_config, or get config.json and weights again",
        )
    absent = [path for path in entries if path not in modules and not _under_another_name(path, modules)]
    if not absent:
        return ()
    return (f"config.json: quantization has an entry for {listed(absent, 1)}, which the checkpoint does not have",)


def _under_another_name(path: str, modules: Iterable[str]) -> bool:
    """Whether a module is there with more, or less, before its path."""
    return any(module.endswith(f".{path}") or path.endswith(f".{module}") for module in modules)


def _unlike_mlx_lm(method: str, block: Mapping[str, Any]) -> str:
    """Why mlx-lm would read the packed weights of a method that it knows as other numbers; ``""`` if it would not."""
    if method == "gptq":
        return "mlx-lm would read its packing as AWQ's"
    if method == "awq":
        version, backend = str(block.get("version", "gemm")), str(block.get("backend", "autoawq"))
        if version.lower() != "gemm" or backend.lower() != "autoawq":
            return f"mlx-lm reads AutoAWQ's gemm packing, this is {backend}'s {version}"
    if method == "compressed-tensors" and block.get("format") == "pack-quantized":
        groups = block.get("config_groups")
        for group in groups.values() if isinstance(groups, dict) else ():
            weights = (group.get("weights") if isinstance(group, dict) else None) or {}
            if weights.get("num_bits", 4) != 4 or not weights.get("symmetric", True):
                return "mlx-lm reads packed integers as 4 bits around 8, this has other bits or zero points"
    return ""


def refuse_raw_fp8(program: Program, model: nn.Module) -> None:
    """Raw fp8 bytes that would be taken for weights: mlx-lm loads them, or calculates with them, without a word."""
    quantized = {path for path, module in model.named_modules() if "scales" in module}
    stored = [ref for ref in program.refs.values() if ref.dtype in _FP8]
    for name, output in program.outputs.items():
        packed = name.rpartition(".")[0] in quantized
        if output.value is None:
            raw = stored if output.dtype == mx.uint8 and not packed else []
        elif packed and not mx.issubdtype(output.value.dtype, mx.floating):
            raw = []
        else:
            raw = _undecoded(output.value)
        if raw:
            raise UnsupportedError(
                f"{name} is stored as {raw[0].dtype}, and mlx-lm does not dequantize fp8 for this architecture",
                hint=UNQUANTIZED,
            )


def _undecoded(value: Value) -> list[TensorRef]:
    """The fp8 tensors whose bytes reach ``value`` without the look-up that decodes them."""
    stack, seen, found = [value], set(), []
    while stack:
        node = stack.pop()
        if id(node) in seen or (node.call is not None and node.call.op == "Gather"):
            continue
        seen.add(id(node))
        if node.leaf is not None and node.leaf.dtype in _FP8:
            found.append(node.leaf)
        stack.extend(node.call.inputs if node.call is not None else ())
    return found
