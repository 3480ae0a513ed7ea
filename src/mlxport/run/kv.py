"""A quantized key-value cache: its settings, whether a model can have one, and the caches to generate with."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxport.errors import ConfigError, QuantizationError, UsageError
from mlxport.quant import DEFAULT_MODE, MODES

__all__ = ["KVQuant", "check_model", "chosen_kv", "make_kv", "prompt_cache", "recorded_kv"]

_FIELDS = ("kv_bits", "kv_group_size", "quantized_kv_start")  # names of mlx-lm's options, and of the record
_OFF = "none"
_CACHED = MODES[DEFAULT_MODE]  # mlx-lm's caches name no mode


@dataclass(frozen=True, slots=True)
class KVQuant:
    """How keys and values are quantized, as of ``mlx_lm.generate``.

    Attributes:
        bits: Bits of a value.
        group_size: Values that share a scale and a bias; must divide the size of a head.
        start: Tokens from which on a cache is quantized; None is mlx-lm's own number.
    """

    bits: int
    group_size: int = 64
    start: int | None = None

    def __post_init__(self) -> None:
        asked = (("--kv-bits", self.bits, _CACHED.bits), ("--kv-group-size", self.group_size, _CACHED.groups))
        for option, value, allowed in asked:
            if isinstance(value, bool) or value not in allowed:
                choices = ", ".join(map(str, sorted(allowed)))
                raise UsageError(f"{option} {value} does not exist", hint=f"choose from {choices}")
        if self.start is not None and (isinstance(self.start, bool) or self.start < 0):
            raise UsageError(f"--quantized-kv-start {self.start}: expected 0 or more", hint="0 is from the first token")

    def options(self) -> dict[str, int]:
        """Keyword arguments of mlx-lm's generation, and what is recorded."""
        from mlx_lm.generate import DEFAULT_QUANTIZED_KV_START

        start = int(DEFAULT_QUANTIZED_KV_START) if self.start is None else self.start
        return dict(zip(_FIELDS, (self.bits, self.group_size, start), strict=True))

    def note(self) -> str:
        """From where on the cache is quantized, for the user: mlx-lm's own number is far."""
        start = self.options()["quantized_kv_start"]
        return f"--kv-bits {self.bits}: generate quantizes the cache from {start:,} tokens on (--quantized-kv-start)"


def make_kv(bits: int | None, group_size: int | None = None, start: int | None = None) -> KVQuant | None:
    """Settings of the options, None without them.

    Raises:
        UsageError: A value that does not exist, or one that has no effect without ``bits``.
    """
    if bits is None:
        _refuse_alone(group_size, start)
        return None
    return chosen_kv(None, bits, group_size, start)


def chosen_kv(
    recorded: KVQuant | None, bits: int | str | None, group_size: int | None = None, start: int | None = None
) -> KVQuant | None:
    """The settings to generate with: those of the folder, changed by what was asked for now.

    Args:
        recorded: Those of the folder.
        bits: Bits, ``"none"`` for a plain cache, or None for those of the folder.
        group_size: None for the folder's, or 64.
        start: None for the folder's, or mlx-lm's.

    Raises:
        UsageError: A value that does not exist, or one that has no effect.
    """
    if bits == _OFF or (bits is None and recorded is None):
        _refuse_alone(group_size, start)
        return None
    if isinstance(bits, str):
        if not bits.isascii() or not bits.isdecimal():
            raise UsageError(f"--kv-bits {bits!r} is no number", hint=f"give bits such as 8, or {_OFF}")
        bits = int(bits)
    changes = {"bits": bits, "group_size": group_size, "start": start}
    given = {name: value for name, value in changes.items() if value is not None}
    return replace(recorded, **given) if recorded is not None else KVQuant(**given)  # type: ignore[arg-type]


def _refuse_alone(group_size: int | None, start: int | None) -> None:
    for option, value in (("--kv-group-size", group_size), ("--quantized-kv-start", start)):
        if value is not None:
            raise UsageError(f"{option} {value} has no effect without --kv-bits", hint="add --kv-bits 8")


def recorded_kv(folder: Path) -> KVQuant | None:
    """What ``convert --kv-bits`` wrote into the folder's record, None where there is nothing.

    Raises:
        ConfigError: The record holds something else there.
    """
    from mlxport.output.record import read_record

    found = read_record(folder).get("generation")
    if found is None:
        return None
    try:
        if not isinstance(found, Mapping) or any(type(found[name]) is not int for name in _FIELDS):
            raise UsageError(f"expected whole numbers {', '.join(_FIELDS)}")
        return KVQuant(*(found[name] for name in _FIELDS))
    except (UsageError, KeyError) as error:
        hint = "convert the model again, or remove that entry"
        raise ConfigError(f"{folder / 'mlxport.json'}, generation: {error}", hint=hint) from error


def prompt_cache(model: Any, kv: KVQuant | None) -> list[Any]:
    """mlx-lm's empty caches; those that it has no quantized form of stay plain when it quantizes the others.

    Of a layer's list of caches, which mlx-lm leaves as it is, it quantizes keys and values.
    """
    from mlx_lm.models.cache import CacheList, make_prompt_cache

    caches: list[Any] = make_prompt_cache(model)
    for cache in caches if kv is not None else ():
        kind: type = type(cache)
        if isinstance(cache, CacheList):
            if places := _quantizable(cache):
                cache.__class__ = _in_parts(kind, tuple(places))
        elif _unquantizable(cache) and hasattr(cache, "to_quantized"):
            cache.__class__ = _staying(kind)
    return caches


def _unquantizable(cache: Any) -> bool:
    """Whether mlx-lm would leave an empty cache as it is, or raise."""
    try:
        return not hasattr(cache, "to_quantized") or cache.to_quantized() is cache
    except NotImplementedError:
        return True


@functools.cache
def _staying(cls: type) -> type:
    """A subclass whose quantized form is itself: mlx-lm's raises, in the middle of the answer."""

    def to_quantized(self: Any, **_: Any) -> Any:
        return self

    return type(cls.__name__, (cls,), {"to_quantized": to_quantized})


@functools.cache
def _in_parts(cls: type, places: tuple[int, ...]) -> type:
    """A subclass of ``CacheList`` whose quantized form has those of its parts at ``places``."""

    def to_quantized(self: Any, **options: Any) -> Any:
        parts = enumerate(self.caches)
        return cls(*[part.to_quantized(**options) if place in places else part for place, part in parts])

    def offset(self: Any) -> int:
        return max(int(self.caches[place].offset) for place in places)

    return type(cls.__name__, (cls,), {"to_quantized": to_quantized, "offset": property(offset)})


def _quantizable(cache: Any) -> list[int]:
    """Which of an empty cache's parts, or of the cache alone, can be quantized."""
    return [place for place, part in enumerate(_parts(cache)) if not _unquantizable(part)]


def _parts(cache: Any) -> list[Any]:
    """A cache, or those that it is a list of."""
    from mlx_lm.models.cache import CacheList

    return list(cache.caches) if isinstance(cache, CacheList) else [cache]


def check_model(model: Any, kv: KVQuant, name: str) -> tuple[str, ...]:
    """Try a quantized cache on a model's graph; nothing is evaluated, so the weights need not be there.

    Args:
        model: mlx-lm's model.
        kv: The settings.
        name: The model's type, for errors.

    Returns:
        Remarks: layers whose caches stay as they are.

    Raises:
        QuantizationError: No cache of this model can be quantized so.
    """
    import mlx.core as mx
    from mlx_lm.generate import maybe_quantize_kv_cache

    caches = prompt_cache(model, kv)
    quantized = [_parts(cache)[place] for cache in caches for place in _quantizable(cache)]
    kept = Counter(type(cache).__name__ for cache in caches if _unquantizable(cache))
    asked = f"--kv-bits {kv.bits}"
    if not quantized:
        shown = " and ".join(f"{count} {kind}" for kind, count in kept.items()) or "none"
        message = f"{asked}: {name} has no cache that mlx-lm can quantize (it has {shown})"
        raise QuantizationError(message, hint="leave it out")
    token = mx.zeros((1, 1), dtype=mx.int32)
    try:
        if hasattr(model, "encode"):
            model.encode(mx.zeros((1, 2), dtype=mx.int32), caches)
        model(token, cache=caches)
        _check_heads(quantized, kv)
        maybe_quantize_kv_cache(caches, 0, kv.group_size, kv.bits)
        model(token, cache=caches)
    except (AttributeError, IndexError, NotImplementedError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        message = f"{asked}: mlx-lm's attention of {name} cannot read a quantized cache ({reason})"
        raise QuantizationError(message, hint="leave it out") from error
    layers = [f"{count} {kind}" for kind, count in kept.items()]
    stay = f"{kept.total()} of {len(caches)} caches stay unquantized: mlx-lm cannot quantize {', '.join(layers)}"
    return (f"{asked}: {stay}",) if kept else ()


def _check_heads(caches: list[Any], kv: KVQuant) -> None:
    groups = sorted(_CACHED.groups)
    for cache in caches:
        sizes = {part.shape[-1] for part in (cache.keys, cache.values) if part is not None}
        if wrong := sorted(size for size in sizes if size % kv.group_size):
            fitting = [str(group) for group in groups if not any(size % group for size in sizes)]
            message = f"--kv-group-size {kv.group_size}: keys or values of a head have {wrong[0]} numbers"
            hint = f"choose {' or '.join(fitting)}" if fitting else "no group size fits: leave out --kv-bits"
            raise QuantizationError(f"{message}, which it does not divide", hint=hint)
