"""config.json of a GGUF file's metadata: llama.cpp's keys under the names of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from mlxport.errors import UnsupportedError, WeightsError
from mlxport.source.gguf.architectures import GgufArchitecture
from mlxport.source.gguf.header import ORIGINAL, GgufHeader, GgufTensor
from mlxport.source.gguf.rows import as_values
from mlxport.source.row_reader import read_rows

__all__ = ["config_of"]

_FIELDS: Mapping[str, str] = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "rope.freq_base": "rope_theta",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
}
_EPSILON = {"attention.layer_norm_rms_epsilon": "rms_norm_eps", "attention.layer_norm_epsilon": "norm_epsilon"}
_TOKENS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "padding_token_id": "pad_token_id",
}
_NEEDED = ("block_count", "embedding_length", "attention.head_count")
# What llama's own configs have, of which files keep the resulting factors only.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_ORIGINAL = (1.0,), (4.0,), (8192, 4096, 2048, 16384)
_YARN = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow", "attention_factor": "attn_factor"}


def config_of(header: GgufHeader, architecture: GgufArchitecture) -> dict[str, Any]:
    """The config that transformers would have of a file's model.

    Raises:
        WeightsError: A size is missing, or no number.
        UnsupportedError: Rope is scaled in a way that a config cannot say.
    """
    metadata, prefix = header.metadata, header.architecture
    for key in _NEEDED:
        if type(metadata.get(f"{prefix}.{key}")) is not int:
            found = metadata.get(f"{prefix}.{key}")
            raise WeightsError(
                f"{header.path}: {prefix}.{key} is {found!r}, expected a whole number", hint="get the file again"
            )
    names = frozenset(tensor.name for tensor in header.tensors)
    config: dict[str, Any] = {"model_type": architecture.model_type, "architectures": [architecture.classes]}
    for key, field in {**_FIELDS, **_EPSILON, **architecture.fields}.items():
        if (value := metadata.get(f"{prefix}.{key}")) is not None:
            # Files have float32: 1e-5 shall not become 9.999999747378752e-06.
            config[field] = float(str(np.float32(value))) if isinstance(value, float) else value
    for key, field in _TOKENS.items():  # said where there is none: classes have defaults for other vocabularies
        config[field] = metadata.get(f"tokenizer.ggml.{key}")
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("head_dim", _head_dim(metadata, prefix, config))
    config["vocab_size"] = _vocabulary(header)
    config["tie_word_embeddings"] = "output.weight" not in names
    config |= architecture.more(metadata, names)
    config |= _rope(header, config)
    config["dtype"] = _dtype(header)
    return config


def _head_dim(metadata: Mapping[str, Any], prefix: str, config: Mapping[str, Any]) -> int:
    """Heads turn whole where nothing else is said."""
    turned = metadata.get(f"{prefix}.rope.dimension_count")
    if type(turned) is int and prefix == "llama":
        return turned
    return int(config["hidden_size"] // config["num_attention_heads"])


def _vocabulary(header: GgufHeader) -> int:
    """Rows of the embeddings, which is what counts; the tokens may be fewer."""
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight":
            return tensor.shape[0]
    raise WeightsError(f"{header.path} has no token_embd.weight", hint="get the file again")


def _dtype(header: GgufHeader) -> str:
    """The half type of the file; scales of blocks are float16."""
    kinds = {tensor.kind.name for tensor in header.tensors}
    if kinds <= {"F32", "F64"}:
        return "float32"
    return "bfloat16" if kinds <= {"F32", "BF16"} else "float16"


def _rope(header: GgufHeader, config: Mapping[str, Any]) -> dict[str, Any]:
    """How positions are scaled: said in the metadata, or by tensors of factors."""
    metadata, prefix = header.metadata, header.architecture
    tensors = {tensor.name.removesuffix(".weight"): tensor for tensor in header.tensors}
    fields: dict[str, Any] = {}
    part = metadata.get(f"{prefix}.rope.dimension_count")
    if type(part) is int and part < config["head_dim"]:
        fields["partial_rotary_factor"] = part / config["head_dim"]
    if "rope_freqs" in tensors:
        return {**fields, "rope_scaling": _llama3(_numbers(tensors["rope_freqs"]), header, config)}
    if "rope_factors_long" in tensors and "rope_factors_short" in tensors:
        original = metadata.get(f"{prefix}.rope.scaling.original_context_length")
        scaling: dict[str, Any] = {
            "rope_type": "longrope",
            "long_factor": _numbers(tensors["rope_factors_long"]),
            "short_factor": _numbers(tensors["rope_factors_short"]),
        }
        return {
            **fields,
            "rope_scaling": scaling,
            **({"original_max_position_embeddings": original} if original else {}),
        }
    kind = metadata.get(f"{prefix}.rope.scaling.type", "none")
    factor = metadata.get(f"{prefix}.rope.scaling.factor") or metadata.get(f"{prefix}.rope.scale_linear")
    if kind == "none" and not factor or factor == 1.0:
        return fields
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedError(
            f"{header.path}: {prefix}.rope.scaling.type is {kind!r}, which is not read", hint=ORIGINAL
        )
    scaling = {"rope_type": "yarn" if kind == "yarn" else "linear", "factor": factor}
    if kind == "yarn":
        original = metadata.get(f"{prefix}.rope.scaling.original_context_length")
        scaling |= {"original_max_position_embeddings": original} if original else {}
        for field, key in _YARN.items():
            if (value := metadata.get(f"{prefix}.rope.scaling.{key}")) is not None:
                scaling[field] = value
    return {**fields, "rope_scaling": scaling}


def _numbers(tensor: GgufTensor) -> list[float]:
    ref = as_values(tensor.name, tensor)
    if ref.dtype != "F32":
        raise UnsupportedError(f"{tensor.path}: {tensor.name} is {tensor.kind.name}, expected F32", hint=ORIGINAL)
    return [float(value) for value in read_rows(ref).view(np.float32)]


def _llama3(factors: Sequence[float], header: GgufHeader, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of llama 3 that give these factors: of files they are all that is left of them."""
    theta, largest = float(config.get("rope_theta", 10000.0)), round(max(factors), 4)
    for low, high, original in product(_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_ORIGINAL):
        made = _llama3_factors(len(factors), theta, largest, low, high, original)
        if np.allclose(made, factors, rtol=1e-3):
            return {
                "rope_type": "llama3",
                "factor": largest,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise UnsupportedError(
        f"{header.path}: rope_freqs.weight has factors up to {largest:g} that are not llama 3's, and a config has no "
        "place for others",
        hint=ORIGINAL,
    )


def _llama3_factors(
    count: int, theta: float, factor: float, low: float, high: float, original: int
) -> np.ndarray[Any, Any]:
    """By what llama 3 divides frequencies: long waves by the factor, short ones not, those between in part."""
    waves = 2 * np.pi * theta ** (np.arange(count) / count)
    smooth = (original / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(waves > original / low, factor, np.where(waves < original / high, 1.0, between))
