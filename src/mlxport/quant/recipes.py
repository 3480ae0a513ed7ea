"""Which module gets which quantization: one setting for all, mlx-lm's mixed recipes by name, or a file of rules."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mlxport.errors import QuantizationError
from mlxport.quant.modes import DEFAULT_MODE, MODES, is_linear, linear_modes, make_spec, plain_bits
from mlxport.types import QuantSpec

# mlx-lm's own (mlx_lm/convert.py, QUANT_RECIPES); a test holds that the two lists are equal.
MIXED = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
# How scales and biases are chosen, the default first: as mx.quantize does, or as quant/search.py.
QUANTIZERS = ("rtn", "search")
_FIELDS = {"mode", "bits", "group_size", "group", "keep"}


@dataclass(frozen=True, slots=True)
class Rule:
    """Modules whose path matches ``pattern`` get ``spec``; None keeps them as they are."""

    pattern: str
    spec: QuantSpec | None

    def matches(self, path: str) -> bool:
        """Shell-style match of the whole module path (``*`` spans dots)."""
        return fnmatchcase(path, self.pattern)


@dataclass(frozen=True, slots=True)
class QuantRequest:
    """What the user asked for.

    Attributes:
        spec: The default setting, written to config.json's ``quantization``.
        mixed: Name of one of mlx-lm's mixed recipes, or None.
        rules: Rules of a recipe file, the first that matches wins; empty without a file.
        quantizer: How the scales and biases of linear modules are chosen, one of ``QUANTIZERS``.
    """

    spec: QuantSpec
    mixed: str | None = None
    rules: tuple[Rule, ...] = ()
    quantizer: str = QUANTIZERS[0]

    @property
    def any_linear(self) -> bool:
        """Whether it has modules whose scales, biases and codes can be chosen."""
        specs = [rule.spec for rule in self.rules if rule.spec is not None] or [self.spec]
        return any(is_linear(spec.mode) for spec in specs)

    def rule(self, path: str) -> Rule | None:
        """The first rule that matches a module path."""
        return next((rule for rule in self.rules if rule.matches(path)), None)


def make_request(
    quantize: int | str | bool | None = None,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    mode: str | None = None,
    recipe: str | Path | None = None,
    quantizer: str | None = None,
) -> QuantRequest | None:
    """Read the options of ``convert`` (``quantize=4``, ``"mxfp4"``, ``"mixed_4_6"``, True …) into one request.

    Raises:
        QuantizationError: Settings that contradict each other, do not exist, or lack ``quantize``.
    """
    if quantizer not in (None, *QUANTIZERS):
        raise QuantizationError(f"unknown quantizer {quantizer!r}", hint=f"choose one of {', '.join(QUANTIZERS)}")
    request = _settings(quantize, bits, group_size, mode, recipe)
    if quantizer is None:
        return request
    if request is None:
        raise QuantizationError(f"--quantizer {quantizer} has no effect without --quantize", hint="add -q")
    if quantizer != QUANTIZERS[0] and not request.any_linear:
        message = f"--quantizer {quantizer} chooses scales and biases of {linear_modes()} modules, and here are none"
        raise QuantizationError(message, hint="leave it out, or quantize with bits")
    return replace(request, quantizer=quantizer)


def _settings(
    quantize: int | str | bool | None,
    bits: int | None,
    group_size: int | None,
    mode: str | None,
    recipe: str | Path | None,
) -> QuantRequest | None:
    """The request without its quantizer."""
    if recipe is not None and str(recipe) not in MIXED:
        asked = None if quantize is True else quantize
        _refuse_beside("--recipe", quantize=asked, bits=bits, group_size=group_size, mode=mode)
        return read_recipe(Path(recipe))
    asked = str(recipe) if recipe is not None else quantize
    if recipe is not None and quantize is not None and quantize is not True and str(quantize) != str(recipe):
        raise QuantizationError(f"--recipe {recipe} contradicts --quantize {quantize}", hint="give one of them")
    if asked is None or asked is False:
        for name, value in (("--q-bits", bits), ("--q-group-size", group_size), ("--q-mode", mode)):
            if value is not None:
                raise QuantizationError(f"{name} {value} has no effect without --quantize", hint="add -q")
        return None
    text = "" if asked is True else str(asked)
    number = int(text) if text.isascii() and text.isdecimal() else None
    if text in MIXED:
        _refuse_beside(text, bits=bits, mode=None if mode == DEFAULT_MODE else mode)
        return QuantRequest(make_spec(group_size=group_size), mixed=text)
    if text in MODES:
        if mode not in (None, text):
            raise QuantizationError(f"--quantize {text} contradicts --q-mode {mode}", hint="give one of them")
        return QuantRequest(make_spec(text, bits, group_size))
    if asked is not True and number is None:
        choices = [*map(str, plain_bits()), *MODES, *MIXED]
        raise QuantizationError(f"unknown quantization {text!r}", hint=f"choose one of {', '.join(choices)}")
    if number is not None and bits not in (None, number):
        raise QuantizationError(f"--quantize {text} contradicts --q-bits {bits}", hint="give one of them")
    return QuantRequest(make_spec(mode or DEFAULT_MODE, bits if number is None else number, group_size))


def _refuse_beside(what: str, **options: Any) -> None:
    given = [f"--{name.replace('_', '-')} {value}" for name, value in options.items() if value is not None]
    if given:
        raise QuantizationError(
            f"{what} already says what {' and '.join(given)} would say", hint="leave one of them out"
        )


def read_recipe(path: Path) -> QuantRequest:
    """Read a TOML file that maps globs of module paths to settings.

    Each key is a glob of module paths (quoted), each value a table ``{mode, bits, group_size}``, the number of bits,
    ``"keep"`` or ``{keep = true}``. The first match wins; a module that nothing matches is kept.

    Raises:
        QuantizationError: The file is absent, not TOML, or has a setting that does not exist.
    """
    from mlxport.source.safe_files import opened_by_user  # not above: that room imports more than a recipe needs

    try:
        with opened_by_user(path) as file:
            text = file.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        hint = f"give a TOML file, or one of {', '.join(MIXED)}"
        raise QuantizationError(f"cannot read the recipe {path}: {error}", hint=hint) from error
    return parse_recipe(text, path)


def parse_recipe(text: str, path: Path, quantizer: str = QUANTIZERS[0]) -> QuantRequest:
    """As ``read_recipe``, of the text of a file; ``path`` is for errors."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise QuantizationError(f"recipe {path} is not TOML: {error}", hint='quote globs: "*.v_proj" = 6') from error
    rules = tuple(Rule(pattern, _setting(path, pattern, value)) for pattern, value in _flatten(data).items())
    specs = [rule.spec for rule in rules if rule.spec is not None]
    if not specs:
        raise QuantizationError(f"recipe {path} quantizes nothing", hint='add a rule such as "*" = 4')
    catch_all = next((rule.spec for rule in rules if rule.pattern == "*" and rule.spec is not None), specs[0])
    return QuantRequest(catch_all, rules=rules, quantizer=quantizer)


def _flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Globs to settings; unquoted dotted keys (``[model.layers]``) are joined again."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict) and value and not set(value) & _FIELDS:
            flat.update(_flatten(value, name))
        else:
            flat[name] = value
    return flat


def _setting(path: Path, pattern: str, value: Any) -> QuantSpec | None:
    where = f"recipe {path}, {pattern!r}"
    if value == "keep" or value is False:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"bits": value}
    elif isinstance(value, str):
        value = {"mode": value}
    if not isinstance(value, dict) or not set(value) <= _FIELDS:
        raise QuantizationError(f'{where}: expected bits, a mode, a table or "keep", got {value!r}')
    if "keep" in value:
        if value["keep"] is not True or len(value) > 1:
            raise QuantizationError(f"{where}: keep = true stands alone, got {value!r}")
        return None
    for name in ("bits", "group_size", "group"):
        if name in value and (not isinstance(value[name], int) or isinstance(value[name], bool)):
            raise QuantizationError(f"{where}: {name} must be a whole number, got {value[name]!r}")
    if not isinstance(value.get("mode", ""), str) or {"group", "group_size"} <= set(value):
        raise QuantizationError(f"{where}: expected one mode by name and one group size, got {value!r}")
    try:
        group = value.get("group_size", value.get("group"))
        return make_spec(value.get("mode", DEFAULT_MODE), value.get("bits"), group)
    except QuantizationError as error:
        raise QuantizationError(f"{where}: {error.message}", hint=error.hint) from error
