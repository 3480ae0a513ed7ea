"""What a config.json does not say, or gives as null or 0: it may be why the weights do not fit or nothing loads."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from mlxport.model_config import ModelConfig
from mlxport.progress import listed

__all__ = ["UnsaidSize", "in_question", "unsaid_size"]

_MOST_NAMED = 4
_NO_SIZES = ("_id", "_ids", "_window", "_position_embeddings", "_seq_len")  # no shape depends on them
_COUNTS_MODULES = re.compile(
    r"(?:num|n)_(?:\w+_)?(?:layers?|experts)\b|first_k_dense_replace"
)  # names of tensors depend on them


@dataclass(frozen=True)
class UnsaidSize:
    """A field that a config leaves out.

    Attributes:
        name: The field, as transformers calls it, and its other names.
        taken: What takes its place, a default or made of other fields.
    """

    name: str
    taken: int

    def __str__(self) -> str:
        return f"config.json does not say {self.name}, for which {self.taken} is taken"

    @property
    def hint(self) -> str:
        """What to do about it."""
        return f"get config.json again from where the weights are from, or add {self.name} to it"


def unsaid_size(
    config: Mapping[str, Any], expected: Sequence[int] = (), found: Sequence[int] = ()
) -> UnsaidSize | None:
    """The size left out of a config that best explains why weights have other shapes or names than it asks for.

    Args:
        config: The parsed ``config.json``, as it was found.
        expected: The shape that the config leads to, where a shape differs; none where names of tensors do.
        found: The shape that the tensor has.
    """
    unsaid = _unsaid_sizes(config)
    if not expected:
        return next((size for size in unsaid if _COUNTS_MODULES.match(size.name)), None)
    wrong = {length for length, held in zip_longest(expected, found) if length != held and length is not None}
    equal = [size for size in unsaid if size.taken in wrong]
    factors = [size for size in unsaid if size.taken > 1 and any(length % size.taken == 0 for length in wrong)]
    sums = next((size for size in unsaid if "head" in size.name), None)  # queries, keys and values in one tensor
    return next(iter(equal), max(factors, key=lambda size: size.taken, default=sums))


def in_question(config: Mapping[str, Any]) -> str:
    """The fields of a config of which one may be why code fails that computes with them, in words; none: ``""``."""
    said = [f"config.json gives {what} as {listed(names)}" for what, names in _odd_fields(config) if names]
    said += [f"config.json does not say {name}, for which {token} is taken" for name, token in _ids_beyond(config)]
    return "; ".join(said or map(str, _unsaid_sizes(config)[:_MOST_NAMED]))


def _odd_fields(config: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """The fields that the text part gives as null, or as 0, where the default is a value, or there is none."""
    text = ModelConfig(config).text
    defaults = {**_of_transformers({"model_type": text.get("model_type")})[0], **_of_mlx_lm(config)}
    usual = [name for name, default in defaults.items() if default is not None and not name.endswith(_NO_SIZES)]
    yield "null", [name for name in usual if text.get(name, name) is None]
    yield "0", [name for name in usual if type(text.get(name)) in (int, float) and text[name] == 0 != defaults[name]]


def _ids_beyond(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The token ids that a config leaves out, and what is taken for them: none of its vocabulary."""
    model = ModelConfig(config)
    rows = model.vocabulary
    for name, token in _of_transformers(model.text)[0].items():
        if name.endswith("_token_id") and type(token) is int and rows is not None and token >= rows:
            if all(name not in part for part in model.parts):
                yield name, token


def _unsaid_sizes(config: Mapping[str, Any]) -> list[UnsaidSize]:
    """The whole numbers that are taken for what the text part of a config leaves out, those of transformers first."""
    return [UnsaidSize(name, taken) for name, taken in _defaults(config)]


def _defaults(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    text = ModelConfig(config).text
    for defaults, canonical in (_of_transformers(text), (_of_mlx_lm(config), {})):
        given = {canonical.get(name, name) for name, value in text.items() if value is not None}
        if given >= {"hidden_size", "num_attention_heads"}:
            given.add("head_dim")  # follows from these
        for name, value in defaults.items():
            if type(value) is int and name not in given and not name.endswith(_NO_SIZES):
                others = [other for other, meant in canonical.items() if meant == name]
                yield " or ".join((name, *others)), value


def _of_transformers(text: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """What transformers' class makes of a config, and what other names its fields have."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, PretrainedConfig

    if (kind := text.get("model_type")) not in CONFIG_MAPPING:
        return {}, {}
    made, shared = CONFIG_MAPPING[kind], PretrainedConfig().to_dict()
    try:
        values = made.from_dict(dict(text)).to_dict()
    except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        values = made().to_dict()  # a field is odd: the others are taken from the class
    return {
        name: value for name, value in values.items() if name not in shared or name.endswith("_id")
    }, made.attribute_map


def _of_mlx_lm(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The defaults of the arguments of mlx-lm's model of a config."""
    from mlxport.layouts.mlx_lm.architecture import mlx_lm_architecture
    from mlxport.layouts.mlx_lm.rope_settings import ConfigRefused

    try:
        name = mlx_lm_architecture(config)
    except ConfigRefused:
        return {}
    module = importlib.import_module(f"mlx_lm.models.{name}")
    return {name: field.default for name, field in inspect.signature(module.ModelArgs).parameters.items()}
