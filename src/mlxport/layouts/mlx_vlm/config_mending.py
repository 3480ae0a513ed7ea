"""What is done to configs so that mlx-vlm reads what transformers reads, or why it cannot: one function a rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlxport.errors import ConfigError, UnsupportedError

__all__ = ["no_windows", "only", "sections_of_rope", "text_at_the_root", "vision_named"]

# Of a part of a config, what is the part's alone.
_OF_THE_PART = ("model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
_ROPE_THETA = 1_000_000.0  # transformers' default for these types
_OTHERWISE = "convert the text model alone with --text-only, or the original's own runtime has to be used"


def text_at_the_root(config: dict[str, Any]) -> None:
    """Put the fields of ``text_config`` where configs of 2025 have them, which is where mlx-vlm looks."""
    text = config.pop("text_config", None)
    if not isinstance(text, Mapping):
        return
    for key, value in text.items():
        if key not in _OF_THE_PART and value is not None and not (key == "tie_word_embeddings" and key in config):
            config[key] = value
    for key in ("dtype", "torch_dtype"):
        if key in text:
            config.setdefault(key, text[key])


def sections_of_rope(config: dict[str, Any]) -> None:
    """Say the base of the rotary embeddings at the root, and their sections as ``mrope``.

    Raises:
        ConfigError: There are no sections.
        UnsupportedError: They are scaled, which mlx-vlm does not compute.
    """
    found = config.pop("rope_parameters", None) or {}
    old = config.get("rope_scaling") or {}
    if not isinstance(found, Mapping) or not isinstance(old, Mapping):
        raise ConfigError("rope_parameters and rope_scaling are expected to be objects")
    said = {**old, **found}
    kind = said.get("rope_type", said.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise UnsupportedError(f"mlx-vlm does not compute rotary embeddings of type {kind!r}", hint=_OTHERWISE)
    sections = said.get("mrope_section")
    if not isinstance(sections, list) or not all(isinstance(part, int) for part in sections):
        raise ConfigError("mrope_section is missing from rope_parameters (or rope_scaling)")
    config["rope_theta"] = said.get("rope_theta", config.get("rope_theta", _ROPE_THETA))
    config["rope_scaling"] = {"type": "mrope", "mrope_section": sections}


def vision_named(model_type: str) -> Callable[[dict[str, Any]], None]:
    """Call the vision part by the name that mlx-vlm checks; it also says its channels otherwise."""

    def rule(config: dict[str, Any]) -> None:
        vision = dict(config["vision_config"])
        if "in_chans" in vision:
            vision.setdefault("in_channels", vision["in_chans"])
        config["vision_config"] = {**vision, "model_type": model_type}

    return rule


def only(place: tuple[str, str], *allowed: str) -> Callable[[dict[str, Any]], None]:
    """Refuse another value than those that mlx-vlm computes whatever the config says; ``text`` is the root."""
    part, key = place

    def rule(config: dict[str, Any]) -> None:
        value = (config if part == "text" else config[part]).get(key, allowed[0])
        if value not in allowed:
            where = key if part == "text" else f"{part}.{key}"
            message = f"{where} is {value!r}, and mlx-vlm computes {' or '.join(allowed)} for every model of this type"
            raise UnsupportedError(message, hint=_OTHERWISE)

    return rule


def no_windows(config: dict[str, Any]) -> None:
    """Refuse attention within a window in some layers, which mlx-vlm computes over everything."""
    kinds = config.get("layer_types") or ()
    layers, first = config.get("num_hidden_layers"), config.get("max_window_layers")
    counted = isinstance(layers, int) and isinstance(first, int) and first < layers
    if "sliding_attention" in kinds or (config.get("use_sliding_window") is True and counted and not kinds):
        raise UnsupportedError("some layers attend within a window, which mlx-vlm does not compute", hint=_OTHERWISE)
