"""From a checkpoint of Whisper to mlx-whisper's tensors, traced."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from mlxport.errors import ConfigError, QuantizationError, UnsupportedError, WeightsError
from mlxport.layouts.conversion import DTYPES, ModelSource, TracedModel, empty, make_conversion
from mlxport.layouts.foreign_parts import refuse_adapters
from mlxport.layouts.mlx_whisper.dimensions import Dimensions, read_dimensions, why_not
from mlxport.layouts.mlx_whisper.weight_names import ENCODER_POSITIONS, HEAD, mlx_name
from mlxport.layouts.mlx_whisper.whisper_modules import WhisperSkeleton
from mlxport.layouts.quantizing import Built, count_parameters, quantize
from mlxport.progress import listed
from mlxport.quant import QuantRequest
from mlxport.source import read_rows
from mlxport.source.jsonfile import read_object
from mlxport.transform import Pipeline, lazy_arrays, to_mx, trace
from mlxport.types import Checkpoint, TensorRef

__all__ = ["check_config", "open_whisper", "plain_weights", "tensors_by_name"]

Tensor = TypeVar("Tensor")
_OTHERWISE = "add --layout generated: the port is verified against PyTorch, and mlxport run transcribes with it"
# What rounding may do to a sinusoid, by the dtype that it is stored in; another table is off by 4.5e-3 or more.
_ROUNDING = {"F64": 5e-4, "F32": 5e-4, "F16": 1e-3, "BF16": 4e-3}


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config that mlx-whisper computes otherwise.

    Raises:
        UnsupportedError: It does.
        ConfigError: A size is none.
    """
    if config.get("model_type") != "whisper":
        found = config.get("model_type")
        raise UnsupportedError(
            f"{where}: model type {found!r}, and mlx-whisper's is 'whisper'", hint="use --layout auto"
        )
    if reason := why_not(config, where):
        raise UnsupportedError(f"{where}: {reason}", hint=_OTHERWISE)


def open_whisper(checkpoint: Checkpoint, dtype: str, *, headers_only: bool = False) -> TracedModel:
    """Trace the conversion of a checkpoint; its weights stay on disk.

    Args:
        checkpoint: Of transformers' Whisper, or of OpenAI's.
        dtype: As of ``convert``.
        headers_only: The weights are not here: refuse nothing for its values.

    Raises:
        UnsupportedError: mlx-whisper would compute something else.
        WeightsError: Tensors are missing, unexpected or of another shape, by name.
    """
    where = f"{checkpoint.location}/config.json"
    check_config(checkpoint.config, where)
    sizes = read_dimensions(checkpoint.config, where)
    _refuse_names(checkpoint, sizes)
    if not headers_only:
        _refuse_values(checkpoint, sizes)
    opening = _WhisperOpening(checkpoint, dtype, sizes, _alignment_heads(checkpoint, sizes))
    return opening.traced()


def plain_weights(checkpoint: Checkpoint, dtype: str) -> dict[str, mx.array]:
    """The tensors of mlx-whisper before any is quantized, by name, lazily."""
    sizes = read_dimensions(checkpoint.config, "config.json")
    opening = _WhisperOpening(checkpoint, dtype, sizes, _alignment_heads(checkpoint, sizes))
    return opening.pipeline(None, Built({}))(lazy_arrays(checkpoint.tensors))


def tensors_by_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by what mlx-whisper calls them, those too that it does not load."""
    return {mlx_name(name): tensor for name, tensor in tensors.items()}


@dataclass(frozen=True)
class _WhisperOpening:
    """A checkpoint that is being opened: arguments as of ``open_whisper``, and what was read of its settings."""

    checkpoint: Checkpoint
    dtype: str
    sizes: Dimensions
    heads: tuple[tuple[int, int], ...]

    def traced(self) -> TracedModel:
        """The model, run once on placeholders."""
        built = Built({})
        program = trace(self.pipeline(None, built), self.checkpoint.tensors)
        assert built.model is not None
        program = replace(program, pipeline=self.pipeline(None, Built({})))
        source = ModelSource(
            self.pipeline,
            (),
            self.final_config,
            contextlib.nullcontext,
            lambda other: replace(self, dtype=other).traced(),
        )
        plain = make_conversion(program, built, self.dtype, None, [], self.final_config)
        empty(built.model, program)
        return TracedModel(self.checkpoint, self.dtype, plain, built.config, source, built.model)

    def pipeline(self, quant: QuantRequest | None, built: Built) -> Pipeline:
        """As of ``ModelSource``."""

        def run(arrays: dict[str, mx.array]) -> dict[str, mx.array]:
            model = WhisperSkeleton(self.sizes, mx.array(np.array(self.heads, np.int32).reshape(-1, 2)))
            weights = {name: array for name, array in tensors_by_name(arrays).items() if name not in _NOT_LOADED}
            for name in ("encoder.conv1.weight", "encoder.conv2.weight"):
                weights[name] = weights[name].transpose(0, 2, 1)  # [out, in, k] of torch to [out, k, in]
            model.load_weights([*weights.items(), ("alignment_heads", model.alignment_heads)])
            if (wanted := DTYPES.get(self.dtype)) is not None:
                model.update(tree_map(lambda a: _cast(a, wanted), model.parameters()))
            built.config = self.sizes.as_config()
            if quant is not None:
                built.config = quantize(model, built.config, quant, built)
            built.model, built.parameters = model, count_parameters(model)
            return dict(tree_flatten(model.parameters()))

        return run

    def final_config(self, built: Built, dtype: str, quantized: bool) -> dict[str, Any]:
        """The ten sizes, how it is quantized and the model type: mlx-whisper takes nothing else."""
        config: dict[str, Any] = {**self.sizes.as_config(), "model_type": "whisper"}
        if quantized:
            config["quantization"] = _one_setting(built)
        return config


_NOT_LOADED = frozenset((ENCODER_POSITIONS, HEAD))


def _cast(array: mx.array, dtype: mx.Dtype) -> mx.array:
    return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array


def _one_setting(built: Built) -> dict[str, Any]:
    """The setting of all quantized modules: mlx-whisper reads one, and quantizes what has scales."""
    assert built.model is not None
    found = {
        (module.mode, module.bits, module.group_size) for _, module in built.model.named_modules() if "scales" in module
    }
    if len(found) > 1:
        said = "; ".join(sorted(f"{mode} {bits} bits, group size {size}" for mode, bits, size in found))
        raise QuantizationError(
            f"mlx-whisper reads one setting for all quantized layers, and these have several: {said}",
            hint="use one setting, as -q 4; a recipe may keep layers unquantized",
        )
    mode, bits, size = next(iter(found))
    return {"group_size": size, "bits": bits, "mode": mode}


def _refuse_names(checkpoint: Checkpoint, sizes: Dimensions) -> None:
    """Compare names, shapes and kinds of numbers with what mlx-whisper loads."""
    source = checkpoint.location
    expected = dict(tree_flatten(WhisperSkeleton(sizes, mx.zeros((1, 2), mx.int32)).parameters()))
    expected.pop("alignment_heads")
    found = tensors_by_name(checkpoint.tensors)
    extra = sorted(set(found) - set(expected) - _NOT_LOADED)
    refuse_adapters(extra, source)
    if missing := sorted(set(expected) - set(found)):
        there = f", which holds {listed(extra, 4)} instead" if extra else ""
        raise WeightsError(
            f"mlx-whisper expects {listed(missing, 4)}, absent from {source}{there}",
            hint="a part of the weights is missing, or config.json belongs to another model",
        )
    if extra:
        raise WeightsError(
            f"{source}: mlx-whisper has no place for {listed(extra, 4)}", hint="config.json belongs to another model"
        )
    for name, array in expected.items():
        asked, held = tuple(array.shape), found[name].shape
        if name in ("encoder.conv1.weight", "encoder.conv2.weight") and len(held) == array.ndim:
            held = (held[0], held[2], held[1])
        if asked != held:
            raise WeightsError(
                f"{source}: {name}: config.json asks for shape {asked}, the checkpoint has {held}",
                hint="config.json belongs to another model, or is damaged",
            )
        if found[name].dtype not in _ROUNDING:
            raise WeightsError(
                f"{source}: {name} is stored as {found[name].dtype}, expected floating point",
                hint="convert from the weights that were not quantized",
            )


def _refuse_values(checkpoint: Checkpoint, sizes: Dimensions) -> None:
    """Refuse what mlx-whisper leaves out and that counts: other positions, an output layer of its own."""
    source, found = checkpoint.location, tensors_by_name(checkpoint.tensors)
    if (positions := found.get(ENCODER_POSITIONS)) is not None:
        wanted = _sinusoids(sizes.n_audio_ctx, sizes.n_audio_state)
        if positions.shape != wanted.shape:
            raise WeightsError(
                f"{source}: {positions.name}: config.json asks for shape {wanted.shape}, the checkpoint has "
                f"{positions.shape}", hint="config.json belongs to another model, or is damaged",
            )  # fmt: skip
        off = float(np.abs(_read(positions) - wanted).max())
        if not off <= _ROUNDING[positions.dtype]:
            raise UnsupportedError(
                f"{source}: {positions.name} is not the table of sinusoids (off by {off:.2g}), which mlx-whisper "
                "computes and does not load",
                hint=_OTHERWISE,
            )
    head, embedding = found.get(HEAD), found["decoder.token_embedding.weight"]
    if head is not None and (head.shape != embedding.shape or not np.array_equal(_read(head), _read(embedding))):
        raise UnsupportedError(
            f"{source}: {HEAD} is not the token embedding, which mlx-whisper takes for the output layer",
            hint=_OTHERWISE,
        )


def _read(ref: TensorRef) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(to_mx(read_rows(ref), ref, ref.shape).astype(mx.float32))


def _sinusoids(length: int, width: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of ``mlx_whisper.whisper.sinusoids``, in float64: sines and cosines of positions, [length, width]."""
    rates = np.exp(-np.log(10000) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(length)[:, None] * rates[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _alignment_heads(checkpoint: Checkpoint, sizes: Dimensions) -> tuple[tuple[int, int], ...]:
    """Layers and heads whose attention follows the sound: of generation_config.json, else as mlx-whisper has them."""
    path = checkpoint.root / "generation_config.json"
    given = None
    if path in checkpoint.side_files:
        given = read_object(path, ConfigError, unique=False).get("alignment_heads")
    if given is None:
        half = range(sizes.n_text_layer // 2, sizes.n_text_layer)
        return tuple((layer, head) for layer in half for head in range(sizes.n_text_head))
    if not isinstance(given, list) or not given or not all(_is_head(pair, sizes) for pair in given):
        raise ConfigError(
            f"{path}: alignment_heads is {str(given)[:80]}, expected pairs of a layer below {sizes.n_text_layer} and a "
            f"head below {sizes.n_text_head}",
            hint="get generation_config.json again from where the weights are from, or remove alignment_heads from it",
        )
    return tuple((layer, head) for layer, head in given)


def _is_head(pair: Any, sizes: Dimensions) -> bool:
    if not isinstance(pair, list) or len(pair) != 2 or not all(type(number) is int for number in pair):
        return False
    return bool(0 <= pair[0] < sizes.n_text_layer and 0 <= pair[1] < sizes.n_text_head)
