"""Rope settings as mlx-lm reads them: at the root, in the style of transformers 4."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxport.errors import ConfigError, UnsupportedError
from mlxport.layouts.mlx_lm.config_rules import NO_ROPE, Architecture, head_dim
from mlxport.layouts.mlx_lm.config_view import ConfigSection
from mlxport.layouts.mlx_lm.layer_kinds import all_slide

_LOCAL = "sliding_attention"


REFUSED = "mlxport refuses rather than write a model that computes something else"


class ConfigRefused(UnsupportedError, ValueError):
    """The config asks for something that mlx-lm would ignore or compute differently.

    Attributes:
        reason: what mlx-lm does not do.
        hint: what to do instead.
    """

    def __init__(self, reason: str, hint: str = REFUSED) -> None:
        super().__init__(reason, hint=hint)
        self.reason = reason


@dataclass(frozen=True)
class Rope:
    """One set of rope settings for all layers, or one per kind of layer.

    Attributes:
        main: the settings of all layers, or of those with full attention where there are any.
        local: the settings of the layers with sliding attention, where they have their own.
        raw: ``rope_parameters`` as transformers resolves it.
    """

    main: Mapping[str, Any]
    local: Mapping[str, Any] | None
    raw: Mapping[str, Any]


def read_rope(view: ConfigSection) -> Rope | None:
    """Return the rope settings of `view`, None where it has none."""
    raw = view.get("rope_parameters")
    if not isinstance(raw, Mapping) or not raw:
        return None
    nested = {key: value for key, value in raw.items() if isinstance(value, Mapping)}
    if not nested:
        return Rope(raw, None, raw)
    local = nested.get(_LOCAL)
    main = nested.get("full_attention") or next(iter(nested.values()))
    return Rope(local if local is not None and all_slide(view) else main, local, raw)


def rope_fields(
    rope: Rope, view: ConfigSection, rule: Architecture, arguments: Mapping[str, Any], long_context: bool = False
) -> dict[str, Any]:
    """Return the fields that carry `rope`, only those that mlx-lm's `arguments` read.

    Raises:
        ConfigError: the settings rotate more than a head has.
        ConfigRefused: the scaling is one that this architecture ignores.
    """
    for settings in (rope.main, rope.local or {}):
        _check_width(settings, view)
    if rule.raw_rope or "rope_scaling" not in arguments:
        for settings in (rope.main, rope.local or {}):
            _check_factor(settings, view)
    scaling = _scaling(rope.main, view, rule, knows(rule, arguments, rope.main), long_context)
    fields: dict[str, Any] = {"rope_scaling": scaling}
    for name in ("rope_theta", "partial_rotary_factor"):
        if rope.main.get(name) is not None:
            fields[name] = rope.main[name]
    if rope.local is not None:
        _check_local(rope, view, rule)
        fields["rope_local_base_freq"] = rope.local.get("rope_theta")
    if "rope_parameters" in arguments:
        fields["rope_parameters"] = {k: _given(v) if isinstance(v, Mapping) else v for k, v in _given(rope.raw).items()}
    return {
        name: value
        for name, value in fields.items()
        if name in arguments and not _says_already(view.section, name, value)
    }


def knows(rule: Architecture, arguments: Mapping[str, Any], main: Mapping[str, Any]) -> frozenset[str]:
    """Return the types of scaling that an architecture applies, none where its arguments have no place for them."""
    if not {"rope_scaling", "rope_parameters"} & set(arguments) or not set(rule.rope_needs) <= set(main):
        return NO_ROPE
    types = rule.rope_types
    if "partial_rotary_factor" in arguments and not rule.wide_rope:
        types -= {"proportional"}  # which spreads the rotated part over the whole head
    # long_factor is chosen in rope_scaling, so what reads rope_parameters as it stands cannot have it
    return types if "rope_scaling" in arguments else types - {"longrope"}


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` without what is null, which transformers takes as absent and mlx-lm computes with."""
    return {key: value for key, value in settings.items() if value is not None}


def kind_of(settings: Mapping[str, Any]) -> str:
    """Return the type of scaling that `settings` name."""
    return str(settings.get("rope_type") or settings.get("type") or "default")


def rotated(settings: Mapping[str, Any], view: ConfigSection) -> int:
    """How many numbers of a head `settings` rotate."""
    return int(view.get("qk_rope_head_dim") or head_dim(view) * (settings.get("partial_rotary_factor") or 1))


def _check_width(settings: Mapping[str, Any], view: ConfigSection) -> None:
    """Refuse to rotate more than there is, and another number of factors than of frequencies."""
    hint = "get config.json again from where the weights are from"
    if (part := settings.get("partial_rotary_factor") or 0) > 1:
        raise ConfigError(f"partial_rotary_factor is {part}, expected at most 1", hint=hint)
    for name in ("short_factor", "long_factor"):
        factors = settings.get(name)
        if factors is not None and len(factors) != (frequencies := rotated(settings, view) // 2):
            raise ConfigError(f"{name} has {len(factors)} numbers, expected {frequencies}, one a frequency", hint=hint)


def _check_local(rope: Rope, view: ConfigSection, rule: Architecture) -> None:
    local = rope.local or {}
    if kind_of(local) != "default" and "rope_parameters" not in view.section:
        raise ConfigRefused(f"mlx-lm's {view.model_type} does not scale the rope of sliding layers")
    if rule.one_theta and local.get("rope_theta") != rope.main.get("rope_theta"):
        raise ConfigRefused(
            f"mlx-lm's {view.model_type} has one rope_theta; the config asks for {rope.main.get('rope_theta')} "
            f"and, in sliding layers, {local.get('rope_theta')}"
        )


def _scaling(
    main: Mapping[str, Any], view: ConfigSection, rule: Architecture, known: frozenset[str], long_context: bool
) -> dict[str, Any] | None:
    """Return the old-style ``rope_scaling`` for `main`."""
    kind = kind_of(main)
    if kind == "default" or (kind == "dynamic" and kind not in known):
        # dynamic scaling is of no effect up to the original length, which is said as a limit
        return dict(rule.default_scaling(view)) if rule.default_scaling else None
    if kind not in known:
        raise ConfigRefused(f"mlx-lm's {view.model_type} does not compute rope scaling of type {kind!r}")
    kept = {k: v for k, v in _given(main).items() if k not in ("rope_theta", "partial_rotary_factor")}
    if kind == "yarn":
        kept.update(_yarn_mscale(main))
    if kind == "proportional" and (part := main.get("partial_rotary_factor")) is not None:
        kept["partial_rotary_factor"] = part  # mlx-lm reads it among the settings of this type alone
    if kind == "longrope":
        kept.update(_longrope(main, view, long_context))
    return {**kept, "rope_type": kind, "type": kind}


def _longrope(main: Mapping[str, Any], view: ConfigSection, long_context: bool) -> dict[str, Any]:
    """Return the factors for texts on one side of the original length: mlx-lm knows only ``long_factor``."""
    if missing := {"short_factor", "long_factor", "original_max_position_embeddings"} - set(main):
        raise ConfigRefused(f"longrope needs {', '.join(sorted(missing))}, and the config does not say")
    length, original = view.get("max_position_embeddings"), main["original_max_position_embeddings"]
    scale = _longrope_scale(length / original, original)
    wanted = main.get("attention_factor") or _longrope_scale(main.get("factor") or length / original, original)
    mscales = {}
    if "long_mscale" in main:  # phimoe alone has scales of its own, and mlx-lm reads the long one
        wanted = main["long_mscale" if long_context else "short_mscale"]
        mscales = {"short_mscale": wanted, "long_mscale": wanted}
    if not mscales and abs(scale - wanted) > 1e-6:
        raise ConfigRefused(f"mlx-lm scales longrope by {scale:.6g}; the config asks for {wanted:.6g}")
    return {**mscales, "long_factor": main["long_factor" if long_context else "short_factor"]}


def _longrope_scale(factor: float, original: float) -> float:
    return 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))


def _yarn_mscale(main: Mapping[str, Any]) -> dict[str, float]:
    """Return mscale and mscale_all_dim whose ratio is the attention factor that transformers uses.

    transformers: ``attention_factor`` as given, else the ratio if both scales are given, else 0.1 ln(factor) + 1.
    mlx-lm: always the ratio, of missing scales 1 and 0. Some architectures scale attention by ``mscale_all_dim`` in
    both, so it stays as it is and ``mscale`` is solved for.
    """
    mscale, all_dim, wanted = main.get("mscale"), main.get("mscale_all_dim") or 0, main.get("attention_factor")
    log = 0.1 * math.log(main["factor"]) if main["factor"] > 1 else 0.0
    if not log:  # neither scales by anything else than a factor that is given
        if wanted not in (None, 1):
            raise ConfigRefused(f"mlx-lm scales yarn with factor {main['factor']} by 1; attention_factor is {wanted}")
        return {"mscale": mscale or 1, "mscale_all_dim": all_dim}
    if wanted is None and mscale and all_dim:
        return {}
    if wanted is None and not all_dim:
        return {"mscale": 1, "mscale_all_dim": 0}
    wanted = log + 1.0 if wanted is None else wanted
    return {"mscale": (wanted * (log * all_dim + 1.0) - 1.0) / log, "mscale_all_dim": all_dim}


def _check_factor(settings: Mapping[str, Any], view: ConfigSection) -> None:
    """Refuse an attention factor that mlx-lm does not come to where it reads settings as they stand."""
    if kind_of(settings) == "yarn":
        given = {"mscale": settings.get("mscale", 1), "mscale_all_dim": settings.get("mscale_all_dim") or 0}
        log = 0.1 * math.log(max(settings["factor"], 1.0))
        found, wanted = (
            (log * scales["mscale"] + 1.0) / (log * scales["mscale_all_dim"] + 1.0)
            for scales in (given, {**given, **_yarn_mscale(settings)})
        )
        if abs(found - wanted) > 1e-6:
            raise ConfigRefused(
                f"mlx-lm's {view.model_type} scales yarn by mscale and mscale_all_dim alone, here {found:.6g}; "
                f"the config asks for an attention_factor of {wanted:.6g}"
            )
    elif settings.get("attention_factor") is not None:
        raise ConfigRefused(f"mlx-lm's {view.model_type} does not read attention_factor")


def yarn_rounding(main: Mapping[str, Any], dims: int) -> float:
    """The most that the angle of a token is off, in radians a position, because mlx-lm rounds yarn's correction range.

    Args:
        main: Settings with ``truncate: false``; transformers then takes the range as it is.
        dims: Width of the rotated part of a head.
    """
    base, factor = float(main.get("rope_theta") or 10000.0), float(main["factor"])
    original = float(main.get("original_max_position_embeddings") or 4096)

    def place(rotations: float) -> float:
        return dims * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    def angle(index: int, low: float, high: float) -> float:
        low, high = max(low, 0), min(high, dims - 1)
        ramp = min(max((index - low) / max(high - low, 1e-3), 0.0), 1.0)
        return float(base ** (-2 * index / dims) * (1 - ramp + ramp / factor))

    low, high = place(float(main.get("beta_fast") or 32)), place(float(main.get("beta_slow") or 1))
    rounded = (math.floor(low), math.ceil(high))
    return max(abs(angle(index, *rounded) - angle(index, low, high)) for index in range(dims // 2))


def _says_already(section: Mapping[str, Any], name: str, value: Any) -> bool:
    if value is None:
        return name not in section or section[name] is None or kind_of(section[name]) in ("default", "mrope")
    present = section.get(name)
    if name != "rope_scaling" or not isinstance(present, Mapping):
        return bool(present == value)
    return None not in present.values() and all(present.get(key) == item for key, item in value.items())
