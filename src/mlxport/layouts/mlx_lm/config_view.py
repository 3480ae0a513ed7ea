"""One section of a config, as the file has it and as transformers reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mlxport.model_config import ModelConfig

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
