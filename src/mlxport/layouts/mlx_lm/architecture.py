"""Which code of mlx-lm a config is for: a module of ``mlx_lm.models``, by the whole model or by its text part."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from mlxport.errors import ConfigError
from mlxport.layouts.mlx_lm import config_rules as rules
from mlxport.layouts.mlx_lm.config_view import is_tied, reference_of
from mlxport.layouts.mlx_lm.rope_settings import ConfigRefused
from mlxport.layouts.mlx_lm.text_models import as_own_model, composite_of
from mlxport.model_config import ModelConfig

__all__ = ["NoArchitecture", "architecture_of", "has_module", "mlx_lm_architecture", "text_model_alone"]


class NoArchitecture(ConfigRefused):
    """The installed mlx-lm has no model of this type."""


def mlx_lm_architecture(config: Mapping[str, Any]) -> str:
    """Name the module of ``mlx_lm.models`` that loads this config, or its text part where none loads the whole.

    Raises:
        ConfigRefused: the installed mlx-lm has none.
    """
    own = text_model_alone(config)
    return architecture_of(config if own is None else own)


def text_model_alone(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config of a model's text part where mlx-lm has code for that and not for the whole; None otherwise."""
    model = ModelConfig(config)
    if not model.has_text_part or _runs_whole(model):
        return None
    reference, text = _as_transformers_has_it(config)
    own = as_own_model(config, getattr(text, "model_type", None), is_tied(config, reference, text))
    try:
        architecture_of(own)
    except ConfigRefused:
        return None
    return own


def _as_transformers_has_it(config: Mapping[str, Any]) -> tuple[Any | None, Any | None]:
    """The config and its text part as objects of transformers; None where it does not know, or not take, the whole."""
    try:
        reference = reference_of(config, {}, [])
        return reference, None if reference is None else reference.get_text_config()
    except (ConfigError, ImportError, RuntimeError, ValueError):  # it may be about the other parts
        return None, None


def _runs_whole(model: ModelConfig) -> bool:
    """Whether mlx-lm has code for a model with its text part, and not for one with another text part."""
    try:
        module = architecture_of(model.values)
    except ConfigRefused as refused:
        return not isinstance(refused, NoArchitecture)
    inner, kind = rules.inner_arguments(module, model.values), model.text.get("model_type")
    if inner is None or inner[0] == module or not isinstance(kind, str) or not has_module(kind):
        return True
    return inner[0] == _module(kind)  # a wrapper around one text model (llava's around llama) has another of qwen2


def architecture_of(config: Mapping[str, Any]) -> str:
    """Name the module of ``mlx_lm.models`` that loads this very config.

    Raises:
        ConfigRefused: the installed mlx-lm has none.
    """
    from mlx_lm import utils

    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ConfigRefused("the config names no model_type", "is this a transformers checkpoint?")
    if (reason := rules.UNRELATED.get(model_type)) is not None:
        raise ConfigRefused(reason)
    by_class: Mapping[tuple[str, str], str] = getattr(utils, "MODEL_ARCHITECTURE_REMAPPING", {})
    names = config.get("architectures")
    for name in names if isinstance(names, list) else [names]:
        if isinstance(name, str) and (model_type, name) in by_class:
            return by_class[model_type, name]
    kind = composite_of(model_type, has_module) or model_type
    if not has_module(kind):
        raise NoArchitecture(f"mlx-lm has no architecture {model_type!r}")
    return _module(kind)


def _module(model_type: str) -> str:
    from mlx_lm.utils import MODEL_REMAPPING

    return str(MODEL_REMAPPING.get(model_type, model_type))


def has_module(model_type: str) -> bool:
    """Whether mlx-lm has code for a model type."""
    module = _module(model_type)
    return module.replace("_", "").replace("-", "").isalnum() and _is_architecture(module)


def _is_architecture(module: str) -> bool:
    name = f"mlx_lm.models.{module}"
    return importlib.util.find_spec(name) is not None and hasattr(importlib.import_module(name), "ModelArgs")
