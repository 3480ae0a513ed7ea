"""Write config.json the way mlx-lm reads it.

mlx-lm reads rope settings, sizes and switches at the root of a config (or of its ``text_config``) and falls back to
defaults of its own. transformers 5 nests rope settings in ``rope_parameters``, and omits what equals its class default.
Both readings of one file then differ silently. :func:`normalize_config` asks transformers what the file means, writes
that down where mlx-lm looks for it, and refuses what mlx-lm would ignore. The knowledge about single architectures is
data, in ``mlx_lm_rules``.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlxport.errors import ConfigError, MlxportError
from mlxport.layouts.mlx_lm import built_in_values as limits
from mlxport.layouts.mlx_lm import config_rules as rules
from mlxport.layouts.mlx_lm.architecture import architecture_of, has_module, text_model_alone
from mlxport.layouts.mlx_lm.config_view import (
    MEND,
    MISSING,
    ROPE_FIELDS,
    ConfigSection,
    is_tied,
    read,
    reference_of,
    text_section,
)
from mlxport.layouts.mlx_lm.layer_kinds import all_slide
from mlxport.layouts.mlx_lm.rope_settings import (
    ConfigRefused,
    kind_of,
    knows,
    read_rope,
    rope_fields,
    rotated,
    yarn_rounding,
)
from mlxport.layouts.mlx_lm.text_models import as_inner_model, composite_of
from mlxport.model_config import ModelConfig

__all__ = ["ConfigRefused", "NormalizedConfig", "normalize_config"]

_MOST = 100_000  # layers, heads, experts
_MOST_ROUNDING = 1e-3  # radians a position; gpt-oss, which runs with it, has 2e-4


@dataclass(frozen=True)
class NormalizedConfig:
    """What to write as ``config.json`` and why.

    Attributes:
        config: the whole config, JSON-serializable.
        changes: one readable line per field that was added or replaced.
        warnings: conditions under which mlx-lm still deviates from transformers, such as a context length.
        exact_tokens: the length of text up to which mlx-lm computes the same; None for any length.
        approximate: mlx-lm computes a close variant of some function, such as another gelu: visible in float32 only.
        near_attention: what is approximate is in attention, where it may grow with the position.
        tied: the output shares the embeddings, as transformers reads the config.
        text_part: keys that lead to the part of the original config that this is of, where mlx-lm has no code for the
            whole; empty otherwise.
    """

    config: dict[str, Any]
    changes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    exact_tokens: int | None = None
    approximate: bool = False
    near_attention: bool = False
    tied: bool = False
    text_part: tuple[str, ...] = ()


def normalize_config(config: Mapping[str, Any], *, long_context: bool = False) -> NormalizedConfig:
    """Return `config` with every setting where mlx-lm looks for it.

    Old-style configs keep their meaning, and normalizing twice changes nothing more.

    Args:
        config: a parsed ``config.json``, as saved by any version of transformers.
        long_context: take longrope's factors for texts beyond the original length; mlx-lm has only one set.

    Raises:
        ConfigRefused: mlx-lm has no such architecture, or its implementation would ignore or compute differently
            something that the config asks for.
        ConfigError: a value is of another type, or out of the range, that transformers and mlx-lm expect.
    """
    try:
        return _normalized(config, long_context)
    except MlxportError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Their classes compute with the values of the config, and fail in their own words where one is odd.
        reason = " ".join(str(error).split())[:300]
        kind = config.get("model_type")
        raise ConfigError(f"not what transformers and mlx-lm expect of {kind!r}: {reason}", hint=MEND) from error


def _normalized(config: Mapping[str, Any], long_context: bool) -> NormalizedConfig:
    _check_counts(config)
    if (own := text_model_alone(config)) is not None:
        alone, path = _normalized(own, long_context), ModelConfig(config).path
        said = f"config.json is {'.'.join(path)} alone: mlx-lm has no architecture {config.get('model_type')!r}"
        return replace(alone, changes=(said, *alone.changes), text_part=path)
    work = _Work([], [], None, long_context)
    if (whole := composite_of(str(config.get("model_type")), has_module)) is not None:
        work.changes.append(f"model_type {whole} with this text_config: mlx-lm runs {config['model_type']} as that")
        out = as_inner_model(config, whole)
    else:
        out = copy.deepcopy(dict(config))
    module = architecture_of(out)
    inner = rules.inner_arguments(module, out)
    reference = reference_of(out, _arguments(*(inner or (module, "ModelArgs"))), work.warnings)
    text = None if reference is None else reference.get_text_config()
    tied = is_tied(out, reference, text)
    if inner is None:
        section = _Section(out, reference, tuple(dict.fromkeys((str(out["model_type"]), module))), "")
        section.normalize(_arguments(module, "ModelArgs"), work)
    else:
        part = text_section(out)
        nested, prefix, values = (False, "", out) if part is None else (True, "text_config.", part)
        section = _Section(values, text, _names(module, str(values.get("model_type")), inner[0]), prefix)
        arguments = _arguments(*inner)
        if nested and "tie_word_embeddings" in arguments and "tie_word_embeddings" not in section.rule.derived:
            section.put("tie_word_embeddings", tied, work, "as the whole model has it")
        section.normalize(arguments, work)
        if nested and "vocab_size" in _arguments(module, "ModelArgs"):
            _Section(out, None, (), "").put("vocab_size", section.values["vocab_size"], work, "as text_config has it")
    return NormalizedConfig(
        out,
        tuple(work.changes),
        tuple(work.warnings),
        work.exact_tokens,
        work.approximate or work.near_attention,
        work.near_attention,
        tied,
    )


def _check_counts(config: Mapping[str, Any]) -> None:
    """Refuse a number of layers, heads or experts for which transformers would fill the memory with lists."""
    for section in ModelConfig(config).parts:
        for name, value in section.items():
            if type(value) is int and value > _MOST and ("layer" in name or name.startswith(("num_", "n_"))):
                raise ConfigError(f"{name} is {value}, which no model has", hint=MEND)


@dataclass
class _Work:
    """What one run has to say."""

    changes: list[str]
    warnings: list[str]
    exact_tokens: int | None
    long_context: bool
    approximate: bool = False
    near_attention: bool = False

    def limit(self, tokens: int, why: str) -> None:
        self.exact_tokens = min(tokens, self.exact_tokens or tokens)
        self.warnings.append(why)


@dataclass(frozen=True)
class _Section:
    """The root of a config or its ``text_config``, changed in place."""

    values: dict[str, Any]
    reference: Any | None
    names: tuple[str, ...]
    prefix: str

    @property
    def rule(self) -> rules.Architecture:
        """The row of the first name that has one."""
        return rules.architecture(*self.names)

    def normalize(self, arguments: Mapping[str, Any], work: _Work) -> None:
        """Write what mlx-lm's `arguments` need; refuse what it would compute differently."""
        view = ConfigSection(self.values, self.reference)
        self._refuse(view)
        rope = read_rope(view)
        if rope is not None:
            for name, value in rope_fields(rope, view, self.rule, arguments, work.long_context).items():
                self.put(name, value, work, "from the rope settings")
        for name, derive in self.rule.derived.items():
            if (value := _derived(derive, view, name)) is not MISSING:
                self.put(name, _plain(value), work, "as mlx-lm names it")
        self._fill(arguments, work)
        self._limit(view, arguments, work)

    def put(self, name: str, value: Any, work: _Work, why: str) -> None:
        """Set a field and say so, unless it has the value."""
        if name not in self.values or self.values[name] != value:
            self.values[name] = value
            work.changes.append(f"{self.prefix}{name} {value} {why}")

    def _fill(self, arguments: Mapping[str, Any], work: _Work) -> None:
        """Add the fields that mlx-lm reads and the file lacks, with the value that transformers gives them."""
        missing = []
        for name, default in arguments.items():
            if self.values.get(name) is not None or (name in ROPE_FIELDS and default is not MISSING):
                continue
            value = _plain(read(self.reference, name))
            if name == "head_dim" and value in (None, MISSING):
                value = rules.head_dim(ConfigSection(self.values, self.reference))
            if name == "rope_scaling":
                value = None
            if value is MISSING and default is MISSING and name not in self.values:
                missing.append(name)
            elif value is not MISSING and (default is MISSING or (value is not None and value != default)):
                self.put(name, value, work, "as transformers resolves it")
        if missing:
            raise ConfigRefused(f"mlx-lm needs {', '.join(missing)}, and the config does not say")

    def _refuse(self, view: ConfigSection) -> None:
        kind = view.model_type
        for name in self.names:
            for demand, kept in limits.DEMANDS.get(name, ()):
                if not kept(view):
                    raise ConfigRefused(f"mlx-lm's {kind}: {demand}")
            for field, allowed in limits.ONLY.get(name, {}).items():
                value = view.rope(field, MISSING) if field in ROPE_FIELDS else view.get(field, MISSING)
                if value is not MISSING and value not in allowed:
                    known = " or ".join(repr(item) for item in allowed)
                    raise ConfigRefused(f"mlx-lm's {kind} computes {field} {known}; the config says {value!r}")

    def _limit(self, view: ConfigSection, arguments: Mapping[str, Any], work: _Work) -> None:
        """Say up to which length, or how closely, mlx-lm computes the same."""
        kind, longest = view.model_type, view.get("max_position_embeddings") or math.inf
        longest = longest if longest > 0 else math.inf  # some give -1
        window, kinds = view.get("sliding_window"), view.get("layer_types")
        asked = (kinds is None or "sliding_attention" in kinds) and view.get("use_sliding_window", True)
        if asked and window is not None and window < 1:
            raise ConfigError(f"sliding_window is {window}, expected at least 1, or null", hint=MEND)
        slides = window and window < longest and (kinds is None or "sliding_attention" in kinds)
        if slides and not limits.IGNORES_WINDOW.isdisjoint(self.names):
            why = f"mlx-lm's {kind} attends to all tokens, not to the last {window}: exact up to {window} tokens"
            work.limit(window, why)
        if slides and all_slide(view) and not limits.LAST_IS_FULL.isdisjoint(self.names):
            work.limit(window, f"mlx-lm's {kind} attends to all tokens in the last layer: exact up to {window} tokens")
        for field in (limits.SPARSE[name] for name in self.names if name in limits.SPARSE):
            if (tokens := view.get(field)) and tokens < longest:
                why = f"mlx-lm's {kind} takes other tokens than transformers beyond {field}: exact to {tokens} tokens"
                work.limit(tokens, why)
        for switches, field, default in (limits.GROWS[name] for name in self.names if name in limits.GROWS):
            if left_out := [switch for switch in switches if view.get(switch, True)]:
                tokens = view.get(field) or default
                without = " and ".join(left_out)
                work.limit(tokens, f"mlx-lm's {kind} is without {without}: exact up to {tokens} tokens ({field})")
                if longest > tokens:  # runtimes look there for the longest text
                    self.put("max_position_embeddings", tokens, work, f"as {field} has it, beyond which it is wrong")
        if (rope := read_rope(view)) is not None:
            self._limit_rope(rope.main, view, longest, arguments, work)
        for field, exact in ((f, e) for name in self.names for f, e in limits.NEAR.get(name, {}).items()):
            if (value := view.get(field, MISSING)) is not MISSING and value not in exact:
                work.near_attention = True  # of a norm, whose output attention reads
                work.warnings.append(f"mlx-lm's {kind} computes with {field} {exact[0]}, not {value}")
        self._check_activation(view, work)

    def _limit_rope(
        self, rope: Mapping[str, Any], view: ConfigSection, longest: float, arguments: Mapping[str, Any], work: _Work
    ) -> None:
        scaling = kind_of(rope)
        if scaling == "yarn" and rope.get("truncate") is False:
            self._round_yarn(rope, view, work)
        if scaling == "dynamic" and scaling not in knows(self.rule, arguments, rope) and longest < math.inf:
            work.limit(int(longest), f"mlx-lm ignores dynamic rope scaling here: exact up to {longest} tokens")
        if scaling == "longrope" and rope["short_factor"] != rope["long_factor"]:
            original = rope["original_max_position_embeddings"]
            if work.long_context:
                work.warnings.append(f"mlx-lm has one set of longrope factors: exact only beyond {original} tokens")
            else:
                work.limit(original, f"mlx-lm has one set of longrope factors: exact up to {original} tokens")

    def _round_yarn(self, rope: Mapping[str, Any], view: ConfigSection, work: _Work) -> None:
        """Say how far a rounded correction range is off, or refuse where that is far."""
        dims = rotated(rope, view)
        why = (
            "mlx-lm rounds yarn's correction range, the config says truncate: false: "
            f"angles are off by up to {(off := yarn_rounding(rope, dims)):.2g} radians a position"
        )
        if off > _MOST_ROUNDING:
            raise ConfigRefused(why)
        work.near_attention = True
        work.warnings.append(why)

    def _check_activation(self, view: ConfigSection, work: _Work) -> None:
        kind = view.model_type
        built_in = next((limits.ACTIVATION[n] for n in self.names if n in limits.ACTIVATION), limits.SILU)
        field = view.declared(limits.ACTIVATION_FIELDS)
        value = None if field is None else view.get(field)
        if not built_in or value is None or (function := limits.FUNCTIONS.get(value, value)) == built_in:
            return
        if {function, built_in} != {limits.GELU, limits.GELU_TANH}:
            raise ConfigRefused(f"mlx-lm's {kind} computes {built_in}; {field} is {value!r}")
        work.approximate = True
        work.warnings.append(f"mlx-lm's {kind} computes {built_in} where {field} is {value!r}: off by about 1e-3")


def _names(module: str, text_type: str, inner: str) -> tuple[str, ...]:
    """Return the names whose rows hold for an inner text model; its own type only if that is what mlx-lm runs."""
    from mlx_lm.utils import MODEL_REMAPPING

    own = (text_type,) if MODEL_REMAPPING.get(text_type, text_type) == inner else ()
    return tuple(dict.fromkeys((module, *own, inner)))


def _arguments(module: str, class_name: str) -> dict[str, Any]:
    """Map each field of an mlx-lm arguments class to its default, MISSING where it has none."""
    args_class = getattr(importlib.import_module(f"mlx_lm.models.{module}"), class_name)
    fields = inspect.signature(args_class).parameters.values()
    return {field.name: MISSING if field.default is field.empty else field.default for field in fields}


def _derived(derive: rules.Derive, view: ConfigSection, name: str) -> Any:
    try:
        return derive(view)
    except TypeError as error:
        if view.reference is not None:
            raise
        raise ConfigRefused(f"mlx-lm needs {name}, and the config does not say enough to derive it") from error


def _plain(value: Any) -> Any:
    """Return `value` as JSON can hold it; transformers tags infinities the same way."""
    if isinstance(value, float) and not math.isfinite(value):
        tag = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return {"__float__": tag}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    return value
