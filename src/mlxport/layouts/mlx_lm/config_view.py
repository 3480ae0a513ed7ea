"""A config, or one section of it, as the file has it and as transformers reads it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mlxport.errors import ConfigError
from mlxport.model_config import ModelConfig

ROPE_FIELDS: Final = ("rope_theta", "rope_scaling", "partial_rotary_factor", "rope_parameters", "rope_local_base_freq")
MEND: Final = "get config.json again from where the weights are from"
MISSING: Final[Any] = type("Missing", (), {"__repr__": lambda self: "MISSING"})()
"""Stands for a value that is not there, where None is a value."""


def text_section(config: Mapping[str, Any]) -> Any | None:
    """The section of its own in which mlx-lm looks for the text model, None where it looks at the root.

    mlx-lm knows it as ``text_config`` and no deeper, under that name only; whether it is the text part is
    :class:`ModelConfig`'s to say.
    """
    key = "text_config"
    return config[key] if key in ModelConfig(config).path[:1] else None


@dataclass(frozen=True)
class ConfigSection:
    """A section of a config (the root, or ``text_config``) together with what transformers makes of it."""

    section: Mapping[str, Any]
    reference: Any | None

    def declared(self, names: tuple[str, ...]) -> str | None:
        """Return the first of `names` that transformers' class of this config has."""
        kind = type(self.reference)
        return next((name for name in names if hasattr(kind, name)), None) if self.reference is not None else None

    @property
    def model_type(self) -> str:
        """The section's ``model_type``."""
        return str(self.section.get("model_type", ""))

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value that transformers gives `name`, or the file's where transformers has no such field."""
        value = read(self.reference, name)
        value = self.section.get(name, MISSING) if value is MISSING else value
        return default if value is MISSING else value

    def rope(self, name: str, default: Any = None, layers: str = "full_attention") -> Any:
        """Return one rope setting, of the given kind of layers where each kind has its own."""
        settings = self.get("rope_parameters")
        if not isinstance(settings, Mapping):
            return self.section.get(name, default)
        nested = settings.get(layers)
        value = (nested if isinstance(nested, Mapping) else settings).get(name)
        return default if value is None else value


def read(reference: Any | None, name: str) -> Any:
    """Return an attribute of a transformers config; MISSING where it has none, or one per layer."""
    try:
        return MISSING if reference is None else getattr(reference, name, MISSING)
    except RuntimeError:  # transformers' heterogeneous configs refuse what differs between layers
        return MISSING


def reference_of(config: Mapping[str, Any], arguments: Mapping[str, Any], warnings: list[str]) -> Any | None:
    """Return the transformers config object for `config`, or None where transformers has no such class.

    Args:
        config: the parsed ``config.json``.
        arguments: fields that mlx-lm reads beside those of the rope: their values have to be what transformers accepts.
        warnings: gets a line where it does not accept others.

    Raises:
        ConfigError: transformers does not accept the values, and not merely one that mlx-lm does not read.
    """
    from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
    from transformers import CONFIG_MAPPING

    if (model_type := config.get("model_type")) not in CONFIG_MAPPING:
        return None
    try:
        return CONFIG_MAPPING[model_type].from_dict(untagged(config))
    except (StrictDataclassError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        field = re.search(r"for field '(\w+)'", reason)
        unread = field is not None and field[1] not in {*arguments, *ROPE_FIELDS}
        if not (isinstance(error, StrictDataclassFieldValidationError) and unread):
            raise ConfigError(f"not what transformers expects of {model_type!r}: {reason}", hint=MEND) from error
        warnings.append(f"transformers cannot read this config, so what it leaves out is not filled in: {reason}")
        return None


def is_tied(config: Mapping[str, Any], reference: Any | None, text: Any | None) -> bool:
    """Say whether the output shares the embeddings: the whole model decides, not its text part."""
    inner = text_section(config) or {}
    values = (
        read(reference, "tie_word_embeddings"),
        read(text, "tie_word_embeddings"),
        config.get("tie_word_embeddings", MISSING),
        inner.get("tie_word_embeddings", MISSING),
    )
    return bool(next((value for value in values if value is not MISSING), False))


_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def untagged(value: Any) -> Any:
    """Return a deep copy of `value` with the floats that JSON cannot hold."""
    if isinstance(value, Mapping):
        if set(value) == {"__float__"}:
            return _FLOATS[value["__float__"]]
        return {key: untagged(item) for key, item in value.items()}
    return [untagged(item) for item in value] if isinstance(value, (list, tuple)) else value
