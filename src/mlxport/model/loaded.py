"""The written folder, loaded by unmodified mlx-lm and run in float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from safetensors import safe_open

from mlxport.errors import ConfigError, VerificationError
from mlxport.model.both_texts import called_with_both
from mlxport.model.hooks import swap_classes
from mlxport.model_config import ModelConfig
from mlxport.source.declared_counts import check_output_counts
from mlxport.source.jsonfile import read_object
from mlxport.source.safe_files import refuse_special_files

__all__ = [
    "DTYPE_NAMES",
    "Packing",
    "float_dtypes",
    "load_output",
    "logits",
    "next_logits",
    "packings",
    "stepped_logits",
    "upcast",
]

Packing = Mapping[str, Any]  # mode, bits, group_size: keyword arguments of ``mx.dequantize``
DTYPE_NAMES: Mapping[str, str] = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def load_output(folder: Path, *, trust_remote_code: bool = False, in_float32: bool = False) -> Any:
    """The model as mlx-lm builds it, nothing read yet.

    Args:
        folder: The written folder.
        trust_remote_code: Whether code of the folder may run.
        in_float32: Whether it will be upcast, so that source of its own shall not round what it computes either.

    Raises:
        ConfigError: Its config has values that no model can have, or declares layers that the weights do not hold.
        UnsafeError: The folder has its model built by code of its own, which is not trusted.
        VerificationError: mlx-lm cannot load the folder.
    """
    from mlxport.layouts.generated.loading import load_language_model

    refuse_special_files(Path(folder))
    config = read_object(Path(folder) / "config.json", ConfigError, unique=False)
    ModelConfig(config).check(Path(folder) / "config.json")
    check_output_counts(Path(folder), config)
    try:
        model, _ = load_language_model(
            Path(folder), config, lazy=True, trust_remote_code=trust_remote_code, in_float32=in_float32
        )
        return called_with_both(model)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
        raise VerificationError(
            f"mlx-lm cannot load the output: {type(error).__name__}: {error}",
            hint="nothing was compared; the folder does not match the architecture in its config.json",
        ) from error


class _Float32Embedding(nn.QuantizedEmbedding):  # type: ignore[misc]
    """The mx and nv modes dequantize to bfloat16, which would make every activation bfloat16."""

    def __call__(self, x: mx.array) -> mx.array:
        rows: mx.array = super().__call__(x)
        return rows.astype(mx.float32)


def upcast(model: Any) -> Any:
    """Floating parameters as float32 (lazily); packed weights and integer scales stay as they are."""
    model.set_dtype(mx.float32)
    tables = [module for _, module in model.named_modules() if type(module) is nn.QuantizedEmbedding]
    swap_classes((module, _Float32Embedding) for module in tables)
    return model


def logits(model: Any, ids: np.ndarray[Any, Any], name: str = "the output") -> np.ndarray[Any, Any]:
    """Logits of one sequence, float32, [tokens, vocabulary].

    Raises:
        VerificationError: mlx-lm cannot run the model, called ``name``.
    """
    return _run(model, ids, None, name)


def stepped_logits(model: Any, ids: np.ndarray[Any, Any], steps: int = 6) -> np.ndarray[Any, Any]:
    """The same as text is generated: a prompt, then ``steps`` single tokens, with mlx-lm's cache.

    Raises:
        VerificationError: mlx-lm cannot run the model so.
    """
    from mlx_lm.models.cache import make_prompt_cache

    first = max(len(ids) - steps, 1)
    cache = make_prompt_cache(model)
    parts = [_run(model, ids[:first], cache)]
    parts += [_run(model, ids[i : i + 1], cache) for i in range(first, len(ids))]
    return np.concatenate(parts)


def next_logits(model: Any, ids: np.ndarray[Any, Any], cache: Any, name: str = "the output") -> np.ndarray[Any, Any]:
    """Logits of the token that follows ``ids``, float32, [vocabulary]; mlx-lm's cache is continued in place.

    Raises:
        VerificationError: mlx-lm cannot run the model so, called ``name``.
    """
    last: np.ndarray[Any, Any] = _run(model, ids, cache, name)[-1]
    return last


def _run(model: Any, ids: np.ndarray[Any, Any], cache: Any, name: str = "the output") -> np.ndarray[Any, Any]:
    try:
        output = model(mx.array(ids)[None], cache=cache) if cache is not None else model(mx.array(ids)[None])
        output = getattr(output, "logits", output)
        return np.array(output[0].astype(mx.float32))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        how = f"cannot run {name}" if cache is None else f"cannot generate with {name}"
        raise VerificationError(
            f"mlx-lm {how}: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            hint="the config asks mlx-lm for something that its code for this architecture does not do",
        ) from error


def packings(model: Any) -> dict[str, Packing]:
    """Path of each quantized module -> how MLX reads its weight."""
    return {
        path: {"mode": module.mode, "bits": module.bits, "group_size": module.group_size}
        for path, module in model.named_modules()
        if hasattr(module, "bits") and hasattr(module, "group_size") and "scales" in module
    }


def _files(folder: Path) -> list[Path]:
    return sorted(Path(folder).glob("model*.safetensors"))


def float_dtypes(folder: Path) -> tuple[frozenset[str], str]:
    """Floating safetensors dtypes of what is not part of a packed weight, and the one with most elements."""
    sizes: dict[str, int] = {}
    for path in _files(folder):
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            for name in names:
                module, _, part = name.rpartition(".")
                packed = f"{module}.scales" in names and part in ("scales", "biases", "weight", "global_scale")
                view = file.get_slice(name)
                if view.get_dtype() in ("F16", "BF16", "F32", "F64") and not packed:
                    sizes[view.get_dtype()] = sizes.get(view.get_dtype(), 0) + int(np.prod(view.get_shape()))
    return frozenset(sizes), max(sizes, key=lambda dtype: sizes[dtype], default="F32")
