"""What is done to configs so that mlx-vlm reads what transformers reads, or why it cannot: one function a rule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from mlxport.errors import ConfigError, UnsupportedError

__all__ = [
    "ConfigRule",
    "by_text",
    "every_nth_in_full",
    "heads_of_usual_size",
    "kept_rope",
    "no_windows",
    "no_windows_at_all",
    "one_layer_of_features",
    "only",
    "picture_tokens_with_text",
    "plain_rope",
    "rope_of_windows",
    "said_in_full",
    "sections_of_rope",
    "text_at_the_root",
    "text_named",
    "vision_named",
]

ConfigRule = Callable[[dict[str, Any]], None]

# Of a part of a config, what is the part's alone.
_OF_THE_PART = ("model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
_ROPE_BASES = ("rope_theta", "rope_local_base_freq")
_ROPE_THETA = 1_000_000.0  # transformers' default for these types
_WINDOWED = (("sliding", ("default",)), ("full", ("default", "linear")))
_OTHERWISE = "convert the text model alone with --text-only, or the original's own runtime has to be used"


def said_in_full(config: dict[str, Any]) -> None:
    """Say in each part what transformers takes for what is left out: mlx-vlm may take something else.

    Raises:
        ConfigError: transformers cannot read it.
    """
    from transformers import CONFIG_MAPPING, PretrainedConfig

    try:
        full = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config)).to_dict()
    except Exception as error:  # whatever its checks of values raise
        raise ConfigError(f"transformers cannot read the config: {type(error).__name__}: {error}") from error
    beside = PretrainedConfig().to_dict().keys() - {"model_type"}
    for key, value in full.items():
        if isinstance(value, dict) and key.endswith("_config"):
            config[key] = _filled(config.get(key) or {}, {k: v for k, v in value.items() if k not in beside})
        elif key not in beside and config.get(key) is None and value is not None:
            config[key] = value


def _filled(part: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, Any]:
    """A part with what it leaves out; its rotary embeddings are spelt as transformers 5 does, whatever it has."""
    own = {key: value for key, value in part.items() if key not in _OF_THE_PART or key == "model_type"}
    made = {key: value for values in (full, own) for key, value in values.items() if value is not None}
    if "rope_parameters" in full:
        made = {key: value for key, value in made.items() if key not in ("rope_scaling", *_ROPE_BASES)}
        made["rope_parameters"] = full["rope_parameters"]
    return made


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


def sections_of_rope(part: str, kind: str) -> ConfigRule:
    """Say the base of the rotary embeddings beside the sizes of the text model, and their sections in ``rope_scaling``.

    Args:
        part: Where mlx-vlm looks for them: a part of the config, or ``""`` for its root.
        kind: What the type of scaling is called there.

    The rule raises:
        ConfigError: There are no sections.
        UnsupportedError: They are scaled, which mlx-vlm does not compute.
    """

    def rule(config: dict[str, Any]) -> None:
        text = config[part] if part else config
        said = _taken_rope(text, "default", "mrope")
        sections = said.get("mrope_section")
        if not isinstance(sections, list) or not all(isinstance(size, int) for size in sections):
            raise ConfigError("mrope_section is missing from rope_parameters (or rope_scaling)")
        text["rope_theta"] = said.get("rope_theta", text.get("rope_theta", _ROPE_THETA))
        text["rope_scaling"] = {"type": kind, "mrope_section": sections}

    return rule


def plain_rope(*kinds: str) -> ConfigRule:
    """Say the base of the rotary embeddings beside the sizes of the text model, and one of ``kinds`` of scaling."""

    def rule(config: dict[str, Any]) -> None:
        text = config["text_config"]
        said = _taken_rope(text, "default", *kinds)
        text["rope_theta"] = said["rope_theta"]
        if (kind := said.get("rope_type", "default")) != "default":
            text["rope_scaling"] = {**said, "type": kind}

    return rule


def kept_rope(*kinds: str) -> ConfigRule:
    """Leave rotary embeddings as transformers 5 says them, where mlx-vlm computes one of ``kinds`` of scaling."""

    def rule(config: dict[str, Any]) -> None:
        text = config["text_config"]
        text["rope_parameters"] = _taken_rope(text, *kinds)

    return rule


def by_text(**rules: ConfigRule) -> ConfigRule:
    """A rule for each type of text model that mlx-vlm has code for within this type; others are refused."""

    def rule(config: dict[str, Any]) -> None:
        text_named(*rules)(config)
        rules[config["text_config"]["model_type"]](config)

    return rule


def rope_of_windows(config: dict[str, Any]) -> None:
    """Say the bases of the rotary embeddings within windows and without, and the scaling of the latter.

    Raises:
        UnsupportedError: They are scaled otherwise than mlx-vlm computes.
    """
    text = config["text_config"]
    said = text.pop("rope_parameters")
    near, far = (_taken_rope({"rope_parameters": said[f"{kind}_attention"]}, *allowed) for kind, allowed in _WINDOWED)
    text["rope_local_base_freq"] = near["rope_theta"]
    text["rope_theta"] = text["rope_global_base_freq"] = far.pop("rope_theta")
    if far["rope_type"] != "default":
        text["rope_scaling"] = far


def every_nth_in_full(field: str) -> ConfigRule:
    """Say which layers attend to everything as mlx-vlm asks for it: every n-th, n in ``field``.

    The rule raises:
        UnsupportedError: It is others.
    """

    def rule(config: dict[str, Any]) -> None:
        text = config["text_config"]
        far = [kind == "full_attention" for kind in text["layer_types"]]
        period = far.index(True) + 1 if any(far) else 0
        if not period or far != [(index + 1) % period == 0 for index in range(len(far))]:
            message = "mlx-vlm computes models of this type in which every n-th layer attends to everything"
            raise UnsupportedError(f"{message}, and layer_types has others", hint=_OTHERWISE)
        text[field] = period

    return rule


def picture_tokens_with_text(config: dict[str, Any]) -> None:
    """Say of pictures what mlx-vlm asks the text part for, and what it takes for the width of the text.

    It divides features of pictures by the root of that width, to multiply everything by the root of the text's in
    bfloat16: the number here is the one with which both are the same.
    """
    import mlx.core as mx  # not above: the table of layouts is read before anything large

    text = config["text_config"]
    text["mm_tokens_per_image"] = config["mm_tokens_per_image"]
    config["pad_token_id"] = config.get("pad_token_id", text.get("pad_token_id", 0))
    width = float(mx.array(text["hidden_size"] ** 0.5, mx.bfloat16)) ** 2
    config["hidden_size"] = int(width) if width.is_integer() else width


def _taken_rope(text: dict[str, Any], *kinds: str) -> dict[str, Any]:
    """What a config says of rotary embeddings, old or new, taken out of it.

    Raises:
        UnsupportedError: They are of none of ``kinds``.
    """
    found, old = text.pop("rope_parameters", None) or {}, text.pop("rope_scaling", None) or {}
    if not isinstance(found, Mapping) or not isinstance(old, Mapping):
        raise ConfigError("rope_parameters and rope_scaling are expected to be objects")
    said = {**old, **found}
    kind = said.get("rope_type", said.get("type", "default"))
    if kind not in kinds:
        raise UnsupportedError(f"mlx-vlm does not compute rotary embeddings of type {kind!r}", hint=_OTHERWISE)
    return said


def text_named(*allowed: str) -> ConfigRule:
    """Refuse another text model than those that mlx-vlm has code for within this type."""
    return only(("text_config", "model_type"), *allowed)


def one_layer_of_features(config: dict[str, Any]) -> None:
    """Refuse features of several layers of the tower, which mlx-vlm cannot put together."""
    if not isinstance(layer := config["vision_feature_layer"], int):
        message = f"vision_feature_layer is {layer!r}, and mlx-vlm takes the features of one layer"
        raise UnsupportedError(message, hint=_OTHERWISE)


def heads_of_usual_size(config: dict[str, Any]) -> None:
    """Refuse heads of another size than the width by their number, which mlx-vlm computes with."""
    text = config["text_config"]
    usual = text["hidden_size"] // text["num_attention_heads"]
    if (size := text.get("head_dim", usual)) != usual:
        message = f"text_config.head_dim is {size}, and mlx-vlm computes with {usual}, hidden_size by the heads"
        raise UnsupportedError(message, hint=_OTHERWISE)


def vision_named(model_type: str) -> ConfigRule:
    """Call the vision part by the name that mlx-vlm checks; it also says its channels otherwise."""

    def rule(config: dict[str, Any]) -> None:
        vision = dict(config["vision_config"])
        if "in_chans" in vision:
            vision.setdefault("in_channels", vision["in_chans"])
        config["vision_config"] = {**vision, "model_type": model_type}

    return rule


def only(place: tuple[str, str], *allowed: object) -> ConfigRule:
    """Refuse another value than those that mlx-vlm computes whatever the config says; the part ``""`` is the root."""
    part, key = place

    def rule(config: dict[str, Any]) -> None:
        value = (config[part] if part else config).get(key, allowed[0])
        if value not in allowed:
            where = f"{part}.{key}" if part else key
            said = f"{where} is {value!r}, and mlx-vlm computes {' or '.join(map(str, allowed))}"
            raise UnsupportedError(f"{said} for every model of this type", hint=_OTHERWISE)

    return rule


def no_windows_at_all(config: dict[str, Any]) -> None:
    """Refuse attention within a window in every layer, which mlx-vlm computes over everything."""
    if (size := config["text_config"].get("sliding_window")) is not None:
        message = f"text_config.sliding_window is {size}: layers attend within a window, which mlx-vlm does not compute"
        raise UnsupportedError(message, hint=_OTHERWISE)


def no_windows(config: dict[str, Any]) -> None:
    """Refuse attention within a window in some layers, which mlx-vlm computes over everything."""
    kinds = config.get("layer_types") or ()
    layers, first = config.get("num_hidden_layers"), config.get("max_window_layers")
    counted = isinstance(layers, int) and isinstance(first, int) and first < layers
    if "sliding_attention" in kinds or (config.get("use_sliding_window") is True and counted and not kinds):
        raise UnsupportedError("some layers attend within a window, which mlx-vlm does not compute", hint=_OTHERWISE)
