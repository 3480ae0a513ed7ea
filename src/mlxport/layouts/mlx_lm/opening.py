"""The layout that mlx-lm loads.

mlx-lm's own ``sanitize``, loader, casts and ``quantize_model`` define this layout, so they are run, unmodified, on
placeholders (``mlxport.transform.trace``); nothing of them is repeated here.
"""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path

from mlxport.errors import ConfigError, MlxportError, UnsupportedError, WeightsError
from mlxport.layouts.conversion import DTYPES, ModelSource, TracedModel, empty, make_conversion
from mlxport.layouts.foreign_parts import refuse_adapters, refuse_heads, refuse_mlx_code
from mlxport.layouts.left_out import absent_towers, without
from mlxport.layouts.mlx_lm.architecture import NoArchitecture, mlx_lm_architecture, text_model_alone
from mlxport.layouts.mlx_lm.config_view import text_section
from mlxport.layouts.mlx_lm.normalize import ConfigRefused, NormalizedConfig, normalize_config
from mlxport.layouts.mlx_lm.output_heads import is_head, refuse_other_heads
from mlxport.layouts.mlx_lm.quantized_sources import UNQUANTIZED, check_entries, refuse_raw_fp8, source_quantization
from mlxport.layouts.mlx_lm.rope_settings import REFUSED
from mlxport.layouts.mlx_lm.stored_buffers import is_buffer, stored_rope_note
from mlxport.layouts.mlx_lm.tensor_checks import NamesDiffer, check_dtypes, check_names, check_shapes
from mlxport.layouts.mlx_lm.unsaid_sizes import in_question
from mlxport.layouts.mlx_lm.weight_repairs import ignored_weights, prepare_weights
from mlxport.layouts.name_changes import NameChange, PartNames, likely_changes, likely_parts
from mlxport.layouts.quantizing import Built, count_parameters, quantize
from mlxport.quant import QuantRequest
from mlxport.source import read_rows
from mlxport.source.part_names import TOWER, predicts_further
from mlxport.transform import Pipeline, Program, trace, trace_shapes
from mlxport.types import Checkpoint

Tensor = TypeVar("Tensor")


class NotLoaded(UnsupportedError):
    """mlx-lm's code failed on a checkpoint, in words of its own."""


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


def has_architecture(config: Mapping[str, Any]) -> bool:
    """Whether the installed mlx-lm has a model for a config, whatever else may be wrong with it."""
    try:
        mlx_lm_architecture(config)
    except NoArchitecture:
        return False
    except ConfigRefused:
        return True
    return True


def open_model(
    checkpoint: Checkpoint,
    *,
    dtype: str = "auto",
    strict: bool = True,
    headers_only: bool = False,
    shapes_only: bool = False,
) -> TracedModel:
    """Trace mlx-lm's conversion of ``checkpoint``.

    Args:
        checkpoint: The opened source.
        dtype: ``auto`` follows mlx-lm: config's ``torch_dtype`` where there is one, else each tensor's own.
        strict: Refuse missing and unexpected tensors.
        headers_only: The weights are not here: refuse nothing for its values.
        shapes_only: What is written is asked for, not how it is computed; the rest is as with ``headers_only``.

    Raises:
        UnsupportedError: The architecture or the checkpoint's own quantization is not one that mlx-lm computes right.
        WeightsError: Tensors are missing, unexpected or of another shape, by name.
    """
    where = f"{checkpoint.location}/config.json"
    method, normalized = _source_method(checkpoint.config, where), _normalized(checkpoint.config, where)
    opening = _Opening(checkpoint, dtype, strict, headers_only or shapes_only, shapes_only, method, normalized)
    if normalized.text_part:
        return _text_part(opening)
    try:
        return opening.traced()
    except (NamesDiffer, NotLoaded) as error:
        # Only now: whatever sanitize makes of the names as they are comes first.
        return _under_other_names(opening, error)


def _under_other_names(opening: _Opening, error: NamesDiffer | NotLoaded) -> TracedModel:
    """The model of a checkpoint all of whose names a wrapper has changed; else the error that says most."""
    nearest = error
    with opening.blamed():
        names = _parameter_names(opening.normalized.config)
    for change in likely_changes(opening.checkpoint.tensors, names):
        try:
            return replace(opening, change=change).traced()
        except NamesDiffer as other:
            if not isinstance(nearest, NamesDiffer) or other.differing < nearest.differing:
                nearest = NamesDiffer(f"{other.message}; {change}", hint=other.hint, differing=other.differing)
        except NotLoaded:
            continue
    raise nearest


def _text_part(opening: _Opening) -> TracedModel:
    """The text model of a checkpoint that mlx-lm has no code for; else the error of the likeliest place."""
    checkpoint, nearest = opening.checkpoint, None
    with opening.blamed():
        places = _places(checkpoint, opening.normalized)
    for change in places:
        try:
            return replace(opening, change=change).traced()
        except (NamesDiffer, NotLoaded) as error:
            nearest = nearest or error
    where, kind = ".".join(opening.normalized.text_part), opening.normalized.config["model_type"]
    raise nearest or WeightsError(
        f"{checkpoint.location} holds no tensors of the text model ({kind}) that {where} in config.json describes",
        hint="config.json belongs to another model: get both from the same place",
    )


def text_part(checkpoint: Checkpoint) -> Checkpoint:
    """The text model of a checkpoint as one of its own, under the names that its tensors have; itself otherwise."""
    own = text_model_alone(checkpoint.config)
    if own is None:
        return checkpoint
    places = _places(checkpoint, _normalized(own, f"{checkpoint.location}/config.json"))
    names = dict(zip(checkpoint.tensors, checkpoint.tensors, strict=True))
    held = set(places[0].renamed(names).values()) if places else set(names)
    tensors = {name: ref for name, ref in checkpoint.tensors.items() if name in held}
    return replace(checkpoint, config=own, tensors=tensors, text_part=True)


def _places(checkpoint: Checkpoint, normalized: NormalizedConfig) -> list[PartNames]:
    return likely_parts(checkpoint.tensors, _parameter_names(normalized.config), is_head)


def _parameter_names(config: Mapping[str, Any]) -> list[str]:
    """What mlx-lm's model calls its parameters; sanitize may know others."""
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(dict(config))
    return [name for name, _ in tree_flatten(model_class(args_class.from_dict(config)).parameters())]


@dataclass(frozen=True)
class _Opening:
    """One way to open a checkpoint: arguments as of ``open_model``, and what was found in the config.

    Attributes:
        method: How the checkpoint is quantized, ``""`` for not at all.
        normalized: Its config.
        change: What is done to the names of its tensors before mlx-lm sees them.
    """

    checkpoint: Checkpoint
    dtype: str
    strict: bool
    headers_only: bool
    shapes_only: bool
    method: str
    normalized: NormalizedConfig
    change: NameChange | PartNames | None = None

    def traced(self) -> TracedModel:
        """The model, run once on placeholders."""
        checkpoint, built = self.checkpoint, Built({})
        where = f"{checkpoint.location}/config.json"
        remarks = check_entries(checkpoint.config, self._renamed(checkpoint.tensors), where)
        with self.blamed():
            run = trace_shapes if self.shapes_only else trace
            program = run(self._pipeline(None, built), checkpoint.tensors)
        self._refuse_unused(program)
        model, config = built.model, built.config
        assert model is not None
        refuse_raw_fp8(program, model)
        again = self._pipeline(None, Built({}))  # running it leaves the skeleton alone
        program = replace(program, pipeline=again)
        source = ModelSource(
            pipeline=self._pipeline,
            notes=(*self._notes(program), *remarks),
            final_config=_final_config,
            blamed=self.blamed,
            reopen=lambda other: replace(self, dtype=other).traced(),
        )
        plain = make_conversion(program, built, self.dtype, None, list(source.notes), _final_config)
        empty(model, program)
        return TracedModel(checkpoint, self.dtype, plain, config, source, model)

    def _notes(self, program: Program) -> tuple[str, ...]:
        """What was changed, and what is odd in the checkpoint."""
        changed = [str(self.change)] if self.change is not None and str(self.change) else []
        tensors, config = self.checkpoint.tensors, self.normalized.config
        rope = [] if self.headers_only else stored_rope_note(tensors, program.unused(), config)
        return (*changed, *self.normalized.changes, *self.normalized.warnings, *rope)

    def _pipeline(self, quant: QuantRequest | None, built: Built) -> Pipeline:
        def run(arrays: dict[str, mx.array]) -> dict[str, mx.array]:
            weights = prepare_weights(self._renamed(arrays), self.normalized.config)
            model, built.config = _load(weights, self.normalized, self.strict, self.method, self.checkpoint)
            _cast(model, built.config, self.dtype)
            if quant is not None:
                built.config = quantize(model, built.config, quant, built)
            built.model, built.parameters = model, count_parameters(model)
            return dict(tree_flatten(model.parameters()))

        return run

    def _renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors) if self.change is None else self.change.renamed(tensors)

    @contextlib.contextmanager
    def blamed(self) -> Iterator[None]:
        """Third-party model code on a user's checkpoint: whatever it raises is about that input."""
        checkpoint, method = self.checkpoint, self.method
        try:
            yield
        except MlxportError:
            raise
        except Exception as error:
            what = f"quantized with {method}" if method else f"model type {checkpoint.config.get('model_type')}"
            hint = UNQUANTIZED if method else "check that config.json belongs to these weights"
            reason = _shortened(" ".join(str(error).split()))
            message = f"mlx-lm cannot load {checkpoint.location} ({what}): {type(error).__name__}: {reason}"
            if unsaid := in_question(checkpoint.config):
                message += f"; {unsaid}"
            raise NotLoaded(message, hint=hint) from error

    def _refuse_unused(self, program: Program) -> None:
        """Refuse weights that count and that mlx-lm drops; zeros do not, nor does a copy of the embeddings."""
        checkpoint, config = self.checkpoint, self.normalized.config
        tensors, unused = self._renamed(checkpoint.tensors), self._renamed(dict.fromkeys(program.unused()))
        refuse_adapters(unused, checkpoint.location)
        refuse_heads(unused, checkpoint.config, checkpoint.location)
        if self.headers_only:
            return
        if self.normalized.tied:
            refuse_other_heads(tensors, unused, config, checkpoint.location)
        for ref in ignored_weights(tensors, config).values():
            if read_rows(ref).any():
                raise UnsupportedError(
                    f"{checkpoint.location}: mlx-lm drops {ref.name}, which is not zero and counts",
                    hint=REFUSED,
                )


def _source_method(config: Mapping[str, Any], where: str) -> str:
    try:
        return source_quantization(config)
    except (ConfigError, UnsupportedError) as error:
        raise type(error)(f"{where}: {error.message}", hint=error.hint) from error


def _normalized(config: Mapping[str, Any], where: str) -> NormalizedConfig:
    refuse_mlx_code(config, where, has_architecture(config))
    try:
        return normalize_config(config)
    except ConfigRefused as error:
        raise UnsupportedError(f"{where}: {error.reason}", hint=error.hint) from error
    except ConfigError as error:
        said = in_question(config) if error.__cause__ is not None else ""  # in words of somebody else's code
        raise ConfigError(f"{where}: {error.message}{said and '; '}{said}", hint=error.hint) from error


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
                items = [item for item in items if item[0] in expected or not _may_be_left(*item, further)]
                if normalized.tied:  # a copy of the embeddings: open_model refuses another one
                    items = [item for item in items if item[0] in expected or not is_head(item[0])]
                if wanted:
                    check_names(expected, dict(items), model_class.__module__, method, checkpoint)
                check_shapes(expected, dict(items), checkpoint)
                if not method:
                    check_dtypes(expected, dict(items), checkpoint)
                return super().load_weights(items, strict=wanted)  # type: ignore[no-any-return]

        return Model, args_class

    wanted, config = strict, normalized.config
    further = _layers_before_further_ones(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        model, loaded = load_model(Path(folder), lazy=True, strict=False, get_model_classes=classes)
    model.__class__ = type(model).__mro__[1]  # mlx-lm's own: ours has done its work, and holds the weights
    return model, loaded


def _may_be_left(name: str, array: mx.array, layers: int | None) -> bool:
    """Whether a tensor that mlx-lm has no place for leaves the text model what it is; ``left_out`` names towers."""
    return bool(TOWER.search(name)) or is_buffer(name, array) or predicts_further(name, layers)


def _layers_before_further_ones(checkpoint: Checkpoint) -> int | None:
    """How many layers come before those that predict further tokens; None where the config tells of none such."""
    model = checkpoint.model_config
    return model.layers if model.count("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_layers") else None


def _shortened(text: str, most: int = 400) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text)} characters)"


def _cast(model: nn.Module, config: Mapping[str, Any], dtype: str) -> None:
    """Cast floating parameters as mlx_lm.convert does (mlx_lm/convert.py)."""
    name = config.get("torch_dtype") or (text_section(config) or {}).get("dtype")
    wanted = DTYPES.get(str(name) if dtype == "auto" else dtype)
    if wanted is None:
        return
    allowed = getattr(model, "cast_predicate", lambda _: True)

    def cast(path: str, array: mx.array) -> mx.array:
        return array.astype(wanted) if allowed(path) and mx.issubdtype(array.dtype, mx.floating) else array

    model.update(tree_map_with_path(cast, model.parameters()))


def _final_config(built: Built, dtype: str, quantized: bool) -> dict[str, Any]:
    """The config of the output: dtype stated everywhere, no stale quantization, the rest as mlx-lm writes it."""
    from mlx_lm.utils import _encode_tagged_floats

    config = copy.deepcopy(built.config)
    text = text_section(config)
    for section in [config] if text is None else [config, text]:
        section["torch_dtype" if "torch_dtype" in section else "dtype"] = dtype
        if "dtype" in section:
            section["dtype"] = dtype
        if not quantized:
            section.pop("quantization_config", None)
            section.pop("quantization", None)
    config.pop("_name_or_path", None)
    assert built.model is not None
    names = [name for name, _ in tree_flatten(built.model.parameters())]
    config = without(config, absent_towers(config, names))
    if "quantization" in config:
        config["quantization_config"] = config["quantization"]
    encoded: dict[str, Any] = _encode_tagged_floats(config)
    return dict(sorted(encoded.items()))
