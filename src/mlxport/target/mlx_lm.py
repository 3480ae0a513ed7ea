"""The layout that mlx-lm loads.

mlx-lm's own ``sanitize``, loader, casts and ``quantize_model`` define this layout, so they are run, unmodified, on
placeholders (``mlxport.transform.trace``); nothing of them is repeated here.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path

from mlxport.errors import ConfigError, MlxportError, QuantizationError, UnsupportedError
from mlxport.quant import QuantRequest
from mlxport.source import read_rows
from mlxport.target.mlx_lm_checks import check_dtypes, check_names, check_shapes
from mlxport.target.mlx_lm_config import ConfigRefused, NormalizedConfig, normalize_config
from mlxport.target.mlx_lm_heads import is_head, refuse_other_heads
from mlxport.target.mlx_lm_quantized import UNQUANTIZED, refuse_raw_fp8, source_quantization
from mlxport.target.mlx_lm_rope import REFUSED
from mlxport.target.mlx_lm_weights import ignored_weights, prepare_weights
from mlxport.transform import Program, st_dtype, trace, working_bytes
from mlxport.types import Checkpoint, OutTensor, QuantSpec

DTYPES: Mapping[str, mx.Dtype] = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


@dataclass(frozen=True)
class Conversion:
    """A checkpoint seen through mlx-lm: what will be written, before a byte of weights is read.

    Attributes:
        program: From checkpoint tensors to output tensors.
        config: What to write as config.json.
        dtype: Name of the dtype of most floating output tensors.
        parameters: mlx-lm's count of parameters.
        quantized: Module path to its quantization.
        kept: Module path to why it is not quantized (empty unless quantization was asked for).
        notes: What was changed in the config, and other remarks for the user.
    """

    program: Program
    config: dict[str, Any]
    dtype: str
    parameters: int
    quantized: Mapping[str, QuantSpec]
    kept: Mapping[str, str]
    notes: tuple[str, ...]

    def tensors(self) -> tuple[OutTensor, ...]:
        """The output tensors, in mlx-lm's order; the parts of a quantized tensor share their ``source``."""
        return tuple(
            OutTensor(
                name,
                st_dtype(output.dtype),
                output.shape,
                f"{name.rpartition('.')[0]}.weight" if output.part else name,
                output.part,
                output.quant,
            )
            for name, output in self.program.outputs.items()
        )

    def working_bytes(self) -> int:
        """What the largest block of rows works on while it is computed."""
        outputs = self.program.outputs.values()
        return max((working_bytes(output.value, output.quant) for output in outputs if output.value), default=0)


@dataclass
class _Built:
    """What one run of the pipeline leaves behind besides its arrays."""

    config: dict[str, Any]
    parameters: int = 0
    model: nn.Module | None = None
    kept: dict[str, str] | None = None


def check_supported(config: Mapping[str, Any], where: str = "config.json") -> None:
    """Refuse a config that the installed mlx-lm cannot load; reads nothing else.

    Args:
        config: The parsed ``config.json``.
        where: What to call it in an error.

    Raises:
        UnsupportedError: No such architecture, quantized in a way that mlx-lm cannot read, or mlx-lm would ignore
            something that the config asks for.
        ConfigError: A value is of another type, or out of the range, that transformers and mlx-lm expect.
    """
    _source_method(config, where)
    _normalized(config, where)


def open_target(
    checkpoint: Checkpoint, *, dtype: str = "auto", quant: QuantRequest | None = None, strict: bool = True
) -> Conversion:
    """Trace mlx-lm's conversion of ``checkpoint``.

    Args:
        checkpoint: The opened source.
        dtype: ``auto`` follows mlx-lm: config's ``torch_dtype`` where there is one, else each tensor's own.
        quant: What to quantize, or None.
        strict: Refuse missing and unexpected tensors.

    Raises:
        UnsupportedError: The architecture or the checkpoint's own quantization is not one that mlx-lm computes right.
        WeightsError: Tensors are missing, unexpected or of another shape, by name.
        QuantizationError: The setting cannot apply to this model.
    """
    where = f"{checkpoint.location}/config.json"
    method, normalized = _source_method(checkpoint.config, where), _normalized(checkpoint.config, where)
    built = _Built({})

    def pipeline(arrays: dict[str, mx.array]) -> dict[str, mx.array]:
        weights = prepare_weights(arrays, normalized.config)
        model, config = _load(weights, normalized, strict, method, checkpoint)
        _cast(model, config, dtype)
        if quant is not None:
            config = _quantize(model, config, quant, built)
        built.config, built.model = config, model
        built.parameters = _parameters(model)
        return dict(tree_flatten(model.parameters()))

    try:
        program = trace(pipeline, checkpoint.tensors)
    except MlxportError:
        raise
    except Exception as error:  # third-party model code on a user's checkpoint: whatever it raises is about that input
        what = f"quantized with {method}" if method else f"model type {checkpoint.config.get('model_type')}"
        hint = UNQUANTIZED if method else "check that config.json belongs to these weights"
        reason = _shortened(" ".join(str(error).split()))
        message = f"mlx-lm cannot load {checkpoint.location} ({what}): {type(error).__name__}: {reason}"
        raise UnsupportedError(message, hint=hint) from error
    _refuse_ignored(checkpoint, normalized, program)
    return _conversion(program, built, dtype, quant, [*normalized.changes, *normalized.warnings])


def _refuse_ignored(checkpoint: Checkpoint, normalized: NormalizedConfig, program: Program) -> None:
    """Refuse weights that count and that mlx-lm drops; zeros count for nothing, nor does a copy of the embeddings."""
    if normalized.tied:
        refuse_other_heads(checkpoint.tensors, program.unused(), normalized.config, checkpoint.location)
    for ref in ignored_weights(checkpoint.tensors, normalized.config).values():
        if read_rows(ref).any():
            raise UnsupportedError(
                f"{checkpoint.location}: mlx-lm drops {ref.name}, which is not zero and counts",
                hint=REFUSED,
            )


def _conversion(
    program: Program, built: _Built, dtype: str, quant: QuantRequest | None, notes: list[str]
) -> Conversion:
    assert built.model is not None
    refuse_raw_fp8(program, built.model)
    quantized = {
        path: QuantSpec(module.mode, module.bits, module.group_size)
        for path, module in built.model.named_modules()
        if hasattr(module, "bits") and hasattr(module, "group_size") and "scales" in module
    }
    if quant is not None and not quantized:
        reasons = sorted(set((built.kept or {}).values()))
        raise QuantizationError(
            f"nothing can be quantized with {_spell(quant.spec)}: {'; '.join(reasons) or 'no module supports it'}",
            hint="choose a smaller group size, or convert without --quantize",
        )
    main = _main_dtype(program, dtype)
    if any(ref.dtype == "F64" for ref in program.refs.values()):
        notes.append("float64 tensors become float32: MLX has no float64 on the GPU")
    config = _final_config(built, main, bool(quantized))
    return Conversion(program, config, main, built.parameters, quantized, built.kept or {}, tuple(notes))


def _main_dtype(program: Program, asked: str) -> str:
    """Return the name of the dtype of most floating tensors, those of quantized ones only where there are no others."""
    floating = [output for output in program.outputs.values() if mx.issubdtype(output.dtype, mx.floating)]
    found = [o.dtype for o in floating if not o.part] or [o.dtype for o in floating]
    names = {value: name for name, value in DTYPES.items()}
    default = asked if asked in DTYPES else "float32"
    return names.get(max(set(found), key=found.count), "float32") if found else default


def _source_method(config: Mapping[str, Any], where: str) -> str:
    try:
        return source_quantization(config)
    except (ConfigError, UnsupportedError) as error:
        raise type(error)(f"{where}: {error.message}", hint=error.hint) from error


def _normalized(config: Mapping[str, Any], where: str) -> NormalizedConfig:
    try:
        return normalize_config(config)
    except ConfigRefused as error:
        raise UnsupportedError(f"{where}: {error.reason}", hint=error.hint) from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from error


def _load(
    weights: dict[str, mx.array], normalized: NormalizedConfig, strict: bool, method: str, checkpoint: Checkpoint
) -> tuple[nn.Module, dict[str, Any]]:
    """``mlx_lm.utils.load_model`` on arrays in memory: the model with ``weights`` in place, and its config."""
    from mlx_lm.utils import _get_classes, load_model

    def classes(config: dict[str, Any]) -> tuple[type, type]:
        model_class, args_class = _get_classes(config)

        class Model(model_class):  # type: ignore[misc,valid-type]
            def sanitize(self, _: dict[str, mx.array]) -> dict[str, mx.array]:
                return super().sanitize(weights) if hasattr(super(), "sanitize") else weights

            def load_weights(self, items: list[tuple[str, mx.array]], strict: bool = True) -> nn.Module:
                expected = dict(tree_flatten(self.parameters()))
                if normalized.tied:  # a copy of the embeddings: open_target refuses another one
                    items = [item for item in items if item[0] in expected or not is_head(item[0])]
                if wanted:
                    check_names(expected, dict(items), model_class.__module__, method, source)
                check_shapes(expected, dict(items), source)
                if not method:
                    check_dtypes(expected, dict(items), checkpoint)
                return super().load_weights(items, strict=wanted)  # type: ignore[no-any-return]

        Model.__name__ = model_class.__name__
        return Model, args_class

    wanted, source, config = strict, checkpoint.location, normalized.config
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        model, loaded = load_model(Path(folder), lazy=True, strict=False, get_model_classes=classes)
    return model, loaded


def _shortened(text: str, most: int = 400) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text)} characters)"


def _cast(model: nn.Module, config: Mapping[str, Any], dtype: str) -> None:
    """Cast floating parameters as mlx_lm.convert does (mlx_lm/convert.py)."""
    text = config.get("text_config")
    name = config.get("torch_dtype") or (text.get("dtype") if isinstance(text, dict) else None)
    wanted = DTYPES.get(str(name) if dtype == "auto" else dtype)
    if wanted is None:
        return
    allowed = getattr(model, "cast_predicate", lambda _: True)

    def cast(path: str, array: mx.array) -> mx.array:
        return array.astype(wanted) if allowed(path) and mx.issubdtype(array.dtype, mx.floating) else array

    model.update(tree_map_with_path(cast, model.parameters()))


def _quantize(model: nn.Module, config: dict[str, Any], quant: QuantRequest, built: _Built) -> dict[str, Any]:
    """``mlx_lm.utils.quantize_model`` with the requested rules; notes in ``built.kept`` what stays as it is."""
    from mlx_lm.convert import mixed_quant_predicate_builder
    from mlx_lm.utils import quantize_model

    if any("scales" in module for _, module in model.named_modules()):
        raise QuantizationError(
            "the checkpoint is already quantized; quantizing it again would add one error to another",
            hint="convert without --quantize to keep its quantization, or start from the unquantized checkpoint",
        )
    own = getattr(model, "quant_predicate", None)
    group = quant.spec.group_size
    predicate = own
    if quant.mixed is not None:
        try:
            predicate = mixed_quant_predicate_builder(quant.mixed, model, group)
        except (ValueError, AttributeError) as error:
            hint = "use a recipe file, or one setting for all"
            raise QuantizationError(f"{quant.mixed} does not fit this architecture: {error}", hint=hint) from error
    elif quant.rules:
        predicate = _by_rules(quant)
        group = min(rule.spec.group_size for rule in quant.rules if rule.spec is not None)
        _check_rules(model, quant)
    built.kept = _kept(model, quant, predicate, own, group)
    config = copy.deepcopy(config)
    config.pop("quantization_config", None)
    with contextlib.redirect_stdout(io.StringIO()):
        _, config = quantize_model(
            model, config, group, quant.spec.bits, mode=quant.spec.mode, quant_predicate=predicate
        )
    config["quantization"].update(quant.spec.as_config())
    return config


def _by_rules(quant: QuantRequest) -> Any:
    def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
        rule = quant.rule(path)
        if rule is None or rule.spec is None or module.weight.shape[-1] % rule.spec.group_size:
            return False
        return rule.spec.as_config()

    return predicate


def _check_rules(model: nn.Module, quant: QuantRequest) -> None:
    """Refuse a rule that matches no module: most likely a misspelt path."""
    paths = [path for path, module in model.named_modules() if hasattr(module, "to_quantized")]
    for rule in quant.rules:
        if not any(rule.matches(path) for path in paths):
            raise QuantizationError(
                f"the recipe's {rule.pattern!r} matches no module that can be quantized",
                hint=f"paths look like {', '.join(paths[:3])}",
            )


def _kept(model: nn.Module, quant: QuantRequest, predicate: Any, own: Any, group: int) -> dict[str, str]:
    """Why each module with a weight stays unquantized."""
    kept = {}
    for path, module in _leaves(model):
        if not hasattr(module, "to_quantized"):
            kept[path] = f"MLX has no quantized {type(module).__name__}"
            continue
        rule = quant.rule(path)
        size = group if rule is None or rule.spec is None else rule.spec.group_size
        if quant.rules and (rule is None or rule.spec is None):
            kept[path] = "kept by the recipe" if rule else "no rule of the recipe matches"
        elif module.weight.shape[-1] % size:
            kept[path] = f"its last dimension {module.weight.shape[-1]} is not a multiple of the group size {size}"
        elif predicate is not None and not predicate(path, module):
            kept[path] = "mlx-lm keeps it for this architecture" if predicate is own else "kept by the recipe"
    return kept


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    leaves = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    return [(path, module) for path, module in leaves if tree_flatten(module.parameters())]


def _parameters(model: nn.Module) -> int:
    from mlx_lm.utils import get_total_parameters

    return int(get_total_parameters(model))


def _final_config(built: _Built, dtype: str, quantized: bool) -> dict[str, Any]:
    """The config of the output: dtype stated everywhere, no stale quantization, the rest as mlx-lm writes it."""
    from mlx_lm.utils import _encode_tagged_floats

    config = copy.deepcopy(built.config)
    sections = [config, *(c for c in (config.get("text_config"),) if isinstance(c, dict))]
    for section in sections:
        section["torch_dtype" if "torch_dtype" in section else "dtype"] = dtype
        if "dtype" in section:
            section["dtype"] = dtype
        if not quantized:
            section.pop("quantization_config", None)
            section.pop("quantization", None)
    config.pop("_name_or_path", None)
    assert built.model is not None
    if "vision_tower" not in getattr(built.model, "model", {}):
        config.pop("vision_config", None)
    if "quantization" in config:
        config["quantization_config"] = config["quantization"]
    encoded: dict[str, Any] = _encode_tagged_floats(config)
    return dict(sorted(encoded.items()))


def _spell(spec: QuantSpec) -> str:
    return f"{spec.mode} {spec.bits} bits, group size {spec.group_size}"
