"""What the numbers of a config can be: one table of fields, and what settings of rope ask of each other.

A value that no model has fails far from here, in words of whatever computes with it, fills the memory, or gives numbers
that agree with nothing. It is named where the config is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlxport.errors import ConfigError

__all__ = ["check_values", "tables"]

_NESTED = 8  # as deep as a field is looked for
_MOST = 1e18  # far above any setting there is; its square is still a float32
_FLOAT32 = 3.5e38  # and a little
_LONGEST_CONTEXT = 10_000_000_000  # some give -1, or a float: that is then unknown


@dataclass(frozen=True)
class _Number:
    """What a field can hold beside null. A list is of one for each layer, or, of whole numbers, for each stage.

    Attributes:
        least: The smallest value.
        most: The largest.
        whole: Only whole numbers.
        above: ``least`` itself is too small.
        listed: A list is what is expected.
    """

    least: float = -_MOST
    most: float = _MOST
    whole: bool = False
    above: bool = False
    listed: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a single value is one of these."""
        if type(value) is not int and (self.whole or type(value) is not float):
            return False
        return (self.least < value if self.above else self.least <= value) and value <= self.most

    def expected(self, value: Any) -> str:
        """What is expected instead of a single value."""
        if self.whole:
            few = type(value) is int and value < self.least
            return f"at least {self.least:.0f}" if few else f"a whole number from {self.least:.0f} to {self.most:,.0f}"
        number = "a number"
        if self.above:
            number += f" above {self.least:g}"
        elif self.least != -_MOST:
            number += f" of at least {self.least:g}"
        large = type(value) in (int, float) and value > self.most
        return f"{number} and at most {self.most:g}" if large else number


def _count(most: int) -> _Number:
    """Far above any model there is, and far below what would fill the memory before a weight is looked at."""
    return _Number(0, most, whole=True)


_POSITIVE, _EPSILON = _Number(0, above=True), _Number(0, 1)
_ANY = _Number()
# How many layers and experts there can be with the weights at hand their headers say: `source/declared_counts.py`.
_LAYERS, _HEADS, _WIDTH = _count(2_000), _count(65_536), _count(10_000_000)

_TABLE: Mapping[str, _Number] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_nextn_predict_layers"), _LAYERS),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"), _LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), _HEADS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"), _HEADS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "head_dim", "q_lora_rank", "kv_lora_rank"), _WIDTH),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "n_inner", "ffn_dim", "d_ff"), _WIDTH),
    **dict.fromkeys(("n_group", "topk_group"), _HEADS),
    "vocab_size": _count(100_000_000),
    "num_labels": _count(200_000),  # of which transformers makes a table of names
    **dict.fromkeys(("rope_theta", "rotary_emb_base", "rope_local_base_freq"), _POSITIVE),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), _POSITIVE),
    **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor", "attention_factor"), _POSITIVE),
    **dict.fromkeys(("beta_fast", "beta_slow", "query_pre_attn_scalar", "logits_scaling"), _POSITIVE),
    "original_max_position_embeddings": _Number(0, _LONGEST_CONTEXT, above=True),
    **dict.fromkeys(("short_factor", "long_factor"), _Number(0, above=True, listed=True)),
    **dict.fromkeys(("mscale", "mscale_all_dim", "short_mscale", "long_mscale"), _Number(0)),
    **dict.fromkeys(
        ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon"), _Number(0, 1)
    ),
    **dict.fromkeys(("attention_dropout", "initializer_range"), _ANY),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "attention_multiplier"), _ANY),
    **dict.fromkeys(("final_logit_softcapping", "attn_logit_softcapping"), _ANY),
    "sliding_window": _Number(-1, whole=True),  # some switch it off by -1
}
# The ends of names of sizes, whichever model has them: a number there may be 0, and is not negative.
_SIZES = ("state_size", *("_dim", "_rank", "_heads", "_experts", "_kernel", "_groups", "_d_state", "_d_conv", "_d_ssm"))
# Of none of these can a language model have less than one; other spellings mean other things in other models.
_AT_LEAST_ONE = (
    *("num_hidden_layers", "n_layer", "hidden_size", "n_embd"),
    *("num_attention_heads", "n_head", "num_key_value_heads", "vocab_size"),
    *("n_group", "topk_group"),
)
_MAY_BE_INFINITE = ("limit", "max", "clip", "cap")  # what they limit is then not limited
_NAMES = ("architectures", "layer_types")  # lists of them
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_sequence_length")

_ROPE_TABLES = ("rope_scaling", "rope_parameters")
# Kind of rope scaling -> what it computes with, and which therefore is not null.
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_LONGROPE = ("short_factor", "long_factor", "original_max_position_embeddings")
_COMPUTED_WITH: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("linear", "dynamic"), ("factor",)),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": _LLAMA3,
    **dict.fromkeys(("longrope", "su"), _LONGROPE),
}


def check_values(config: Mapping[str, Any], needed: tuple[Mapping[str, Any], ...], path: object) -> None:
    """Refuse what no model can have, in any part of a config.

    Args:
        config: The parsed config.
        needed: The parts that there is no model without: the config and those on the way to its text part.
        path: What to call the config in the error.

    Raises:
        ConfigError: Names the field, what it holds and what was expected.
    """
    ids = {id(part) for part in needed}
    for where, part, layers in tables(config):
        rope = any(name in _ROPE_TABLES for name in where)
        for key, value, expected in _wrong(part, id(part) in ids, layers, rope):
            if key == "hidden_size" and part is config and config is not needed[-1] and _is_square(value, needed[-1]):
                continue
            raise ConfigError(
                f"{path}: {'.'.join((*where, key))} is {repr(value)[:80]}, expected {expected}",
                hint="get config.json again from where the weights are from",
            )


def _is_square(value: Any, text: Mapping[str, Any]) -> bool:
    """Whether a width beside that of the text part is the square of the scale that its embeddings have in bfloat16.

    mlx-vlm divides features of pictures by the root of the one, and multiplies by the other.
    """
    width = text.get("hidden_size")
    return type(value) is float and type(width) is int and abs(value - width) < width / 64


def tables(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any], Any]]:
    """The config and every table in it: the keys that lead there, and the number of layers of what it is about."""
    waiting: list[tuple[tuple[str, ...], Mapping[str, Any], Any]] = [((), config, None)]
    while waiting:
        where, part, layers = waiting.pop()
        layers = part.get("num_hidden_layers", layers)
        yield where, part, layers
        if len(where) < _NESTED:
            waiting += (
                ((*where, str(key)), inner, layers) for key, inner in part.items() if isinstance(inner, Mapping)
            )


def _wrong(part: Mapping[str, Any], needed: bool, layers: Any, rope: bool) -> Iterator[tuple[str, Any, str]]:
    """Fields of one table that hold what they cannot: name, value, and what was expected."""
    for key, value in part.items():
        if expected := _expected(key, value, needed, layers):
            yield key, value, expected
    if rope:
        yield from _wrong_together(part)


def _expected(key: str, value: Any, needed: bool, layers: Any) -> str:
    """What a field should hold, if it holds something else; tables and null have meanings of their own."""
    if key in _NAMES:
        names = value if isinstance(value, (list, tuple)) else (value,)
        return "" if value is None or all(isinstance(name, str) for name in names) else "a list of names"
    if value is None or isinstance(value, Mapping):
        return ""
    if key in _CONTEXTS:
        return _expected_of_context(value)
    if (kind := _TABLE.get(key)) is None:
        if needed and _is_infinite(value) and not any(word in key for word in _MAY_BE_INFINITE):
            return "a number that float32 holds"
        negative = needed and key.endswith(_SIZES) and type(value) in (int, float) and value < 0
        return "at least 0" if negative else ""
    if kind.whole and needed and key in _AT_LEAST_ONE:
        kind = _Number(1, kind.most, whole=True)
    if isinstance(value, (list, tuple)):
        return _expected_of_list(kind, value, layers)
    if kind.listed:
        return f"a list, each {kind.expected(None)}"
    return "" if kind.holds(value) else kind.expected(value)


def _is_infinite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) > _FLOAT32


def _expected_of_context(value: Any) -> str:
    if type(value) not in (int, float):
        return "a number"
    return f"at most {_LONGEST_CONTEXT:,}" if value > _LONGEST_CONTEXT else ""


def _expected_of_list(kind: _Number, values: list[Any] | tuple[Any, ...], layers: Any) -> str:
    odd = [value for value in values if value is not None and not kind.holds(value)]
    if kind.listed:
        return f"a list, each {kind.expected(odd[0])}" if odd else ""
    if not kind.whole and type(layers) is int and len(values) < layers:
        return f"{kind.expected(None)}, or one for each of the {layers} layers"
    plain = [value for value in odd if not isinstance(value, (list, tuple, Mapping))]
    return f"each {kind.expected(plain[0])}" if plain else ""


def _wrong_together(rope: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Settings of rope that do not go with each other."""
    for key in ("rope_type", "type"):
        if key in rope and not isinstance(rope[key], str) and not isinstance(rope.get("rope_type"), str):
            yield key, rope[key], "the name of a kind of rope scaling"
    kind = rope.get("rope_type", rope.get("type"))
    for key in _COMPUTED_WITH.get(str(kind), ()):
        if key in rope and rope[key] is None:
            yield key, None, f"{_expected(key, '', False, None)}, which {kind!r} computes with"
    low, high = rope.get("low_freq_factor"), rope.get("high_freq_factor")
    if low is not None and high is not None and high <= low:
        yield "high_freq_factor", high, f"more than low_freq_factor, which is {low}"
    short, long = rope.get("short_factor"), rope.get("long_factor")
    if isinstance(short, (list, tuple)) and isinstance(long, (list, tuple)) and len(short) != len(long):
        yield "short_factor", short, f"as many numbers as long_factor has, {len(long)}; it has {len(short)}"
