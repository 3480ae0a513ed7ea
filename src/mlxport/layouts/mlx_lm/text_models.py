"""Text models and the models that they are a part of: mlx-lm has code for one of the two, or for both.

Some transformers saves by themselves and mlx-lm knows as a part of another model only. Others are a part of a model
that mlx-lm has no code for while it has for the text model, which is then what can be converted of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Final

from mlxport.model_config import ModelConfig

__all__ = ["as_inner_model", "as_own_model", "composite_of"]

# What mlx-lm and transformers look for at the root, whatever the text part says.
_WHOLE: Final = (
    *("architectures", "dtype", "torch_dtype", "tie_word_embeddings", "transformers_version"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "quantization", "quantization_config"),
)
_QUANTIZATION: Final = ("quantization", "quantization_config")


def composite_of(model_type: str, exists: Callable[[str], bool]) -> str | None:
    """The model type that mlx-lm runs a text model as; None where it runs it under its own, or not at all.

    Args:
        model_type: A config's.
        exists: Whether mlx-lm has a module for a model type.
    """
    whole = model_type.removesuffix("_text")
    if whole == model_type or exists(model_type) or not exists(whole):
        return None
    return whole if _text_type(whole) == model_type else None


def as_inner_model(config: Mapping[str, Any], whole: str) -> dict[str, Any]:
    """The config of a composite model of type ``whole`` whose text part is ``config``, and that has no other part."""
    inner = {key: copy.deepcopy(value) for key, value in config.items() if key not in _QUANTIZATION}
    outer = {key: copy.deepcopy(config[key]) for key in _WHOLE if key in config}
    return {"model_type": whole, **outer, "text_config": inner}


def as_own_model(config: Mapping[str, Any], kind: str | None, tied: bool) -> dict[str, Any]:
    """The config of the text part of a model, as that of a language model.

    Args:
        config: Of the whole model.
        kind: The text model's type where the config does not say, None where nobody does.
        tied: Whether the output shares the embeddings, which the whole model decides.
    """
    model = ModelConfig(config)
    own = {key: copy.deepcopy(value) for key, value in model.text.items() if key not in _QUANTIZATION}
    outer = {key: copy.deepcopy(model.first(key)) for key in _WHOLE if key != "architectures"}
    if not isinstance(own.get("model_type"), str):
        own["model_type"] = kind
    return {**own, **{key: value for key, value in outer.items() if value is not None}, "tie_word_embeddings": tied}


def _text_type(model_type: str) -> str | None:
    """The model type of the text part, as transformers has it."""
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return None
    part = CONFIG_MAPPING[model_type].sub_configs.get("text_config")
    kind = getattr(part, "model_type", None)
    return kind if isinstance(kind, str) else None
