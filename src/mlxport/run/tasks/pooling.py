"""One vector of a text's many, as a sentence-transformers folder says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxport.errors import ConfigError, UnsupportedError
from mlxport.run.tasks.pipeline import Array
from mlxport.run.tasks.task_options import POOLINGS
from mlxport.source.jsonfile import read_list, read_object
from mlxport.source.sentence_folder import MODULES, SETTINGS

__all__ = ["Dense", "SentenceSettings", "pooled", "read_settings"]

# How a pooling's config.json spells them: by a flag each, in the order in which they are joined, or all under
# `pooling_mode`, in an order of its own.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
}


@dataclass(frozen=True)
class Dense:
    """A layer that stands after the pooling.

    Attributes:
        weight: float32, [out, in].
        bias: float32, [out], or None.
        activation: Name of torch's class.
    """

    weight: Array
    bias: Array | None
    activation: str

    def __call__(self, vectors: Array) -> Array:
        """Of [texts, in], [texts, out]."""
        out = vectors @ self.weight.T
        return np.asarray(_ACTIVATIONS[self.activation](out if self.bias is None else out + self.bias))


@dataclass(frozen=True)
class SentenceSettings:
    """What a sentence-transformers folder says.

    Attributes:
        poolings: Which vectors are joined.
        dense: Layers after that.
        normalize: Whether vectors have length 1.
        max_length: Tokens that a text is read to.
        lower: Whether texts are written in lower case first.
        prompts: What is put before texts, by the name of their kind.
        default_prompt: The kind that is meant where none is named.
        include_prompt: Whether the prompt's tokens count in the pooling.
    """

    poolings: tuple[str, ...] = ("mean",)
    dense: tuple[Dense, ...] = ()
    normalize: bool = False
    max_length: int | None = None
    lower: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    include_prompt: bool = True


def read_settings(folder: Path) -> SentenceSettings | None:
    """The settings of a folder, None where it is no sentence-transformers one.

    Raises:
        ConfigError: A file of them is missing or malformed.
        UnsupportedError: It has a module of a kind that is not known here.
    """
    path = folder / MODULES
    if not path.is_file():
        return None
    poolings: tuple[str, ...] = ()
    dense: list[Dense] = []
    normalize = False
    include = True
    for module in read_list(path, ConfigError):
        if not isinstance(module, Mapping):
            raise ConfigError(f"{path}: expected a list of objects", hint="get it again from where the model is from")
        kind = str(module.get("type", "")).rpartition(".")[2]
        place = folder / str(module.get("path", ""))
        match kind:
            case "Transformer":
                if place.resolve() != folder.resolve():
                    hint = "convert that folder by itself"
                    raise UnsupportedError(f"{path}: the model lies in {module.get('path')!r}", hint=hint)
            case "Pooling":
                settings = read_object(place / "config.json", ConfigError)
                poolings, include = _poolings(settings, place), settings.get("include_prompt", True) is not False
            case "Dense":
                dense.append(_dense(place))
            case "Normalize":
                normalize = True
            case _:
                raise UnsupportedError(
                    f"{path}: a module of the kind {kind!r}, expected Transformer, Pooling, Dense or Normalize",
                    hint="use its token vectors: mlxport run DST --task feature-extraction",
                )
    return SentenceSettings(poolings or ("mean",), tuple(dense), normalize, include_prompt=include, **_texts(folder))


def _poolings(settings: Mapping[str, Any], place: Path) -> tuple[str, ...]:
    given = settings.get("pooling_mode")
    if given is None:
        named = [name for flag, name in _FLAGS.items() if settings.get(flag) is True] or ["mean"]
    else:
        named = [given] if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else [given]
    if unknown := [name for name in named if name not in POOLINGS]:
        raise ConfigError(
            f"{place}/config.json: pooling {unknown[0]!r}, expected one of {', '.join(POOLINGS)}",
            hint="get it again from where the model is from",
        )
    return tuple(named)


def _dense(place: Path) -> Dense:
    settings = read_object(place / "config.json", ConfigError)
    activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        hint = "use its token vectors: mlxport run DST --task feature-extraction"
        known = ", ".join(_ACTIVATIONS)
        raise UnsupportedError(f"{place}: activation {activation!r}, expected one of {known}", hint=hint)
    file = place / "model.safetensors"
    if not file.is_file():
        hint = "save the model again with safetensors: SentenceTransformer(SRC).save_pretrained(NEW)"
        raise ConfigError(f"{file}: no such file", hint=hint)
    stored = {name.removeprefix("linear."): value for name, value in _loaded(file).items()}
    weights = {name: np.array(value.astype(mx.float32)) for name, value in stored.items()}
    if "weight" not in weights:
        raise ConfigError(f"{file}: no linear.weight", hint="get it again from where the model is from")
    return Dense(weights["weight"], weights.get("bias"), activation)


def _loaded(file: Path) -> dict[str, mx.array]:
    found = mx.load(str(file))
    assert isinstance(found, dict)
    return found


def _texts(folder: Path) -> dict[str, Any]:
    """What is said of texts: how long they may be, their case, and what is put before them."""
    made: dict[str, Any] = {}
    settings = folder / SETTINGS
    if settings.is_file():
        given = read_object(settings, ConfigError)
        longest = given.get("max_seq_length")
        made["max_length"] = longest if isinstance(longest, int) else None
        made["lower"] = given.get("do_lower_case") is True
    outer = folder / "config_sentence_transformers.json"
    if outer.is_file():
        given = read_object(outer, ConfigError)
        prompts = given.get("prompts")
        made["prompts"] = {str(k): str(v) for k, v in prompts.items()} if isinstance(prompts, Mapping) else {}
        default = given.get("default_prompt_name")
        made["default_prompt"] = default if isinstance(default, str) else None
    return made


def pooled(states: Array, mask: Array, kinds: Sequence[str], text: Array | None = None) -> Array:
    """One vector for each text.

    Args:
        states: float32, [texts, tokens, width].
        mask: 1 where a token counts, [texts, tokens].
        kinds: Of ``POOLINGS``; several are joined.
        text: 1 where a token is of the text, though it may not count, as those of a prompt; ``mask`` if None.

    Returns:
        float32, [texts, width * kinds].
    """
    counted = mask[..., None].astype(np.float32)
    total = np.maximum(counted.sum(axis=1), 1e-9)
    made = []
    for kind in kinds:
        match kind:
            case "cls":
                first = mask.argmax(axis=1)
                made.append(states[np.arange(len(states)), first])
            case "max":
                made.append(np.where(counted > 0, states, -1e9).max(axis=1))
            case "lasttoken":
                last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
                made.append(states[np.arange(len(states)), last])
            case "weightedmean":
                places = np.cumsum(mask if text is None else text, axis=1)  # from the first token of the text
                weights = counted * places[..., None].astype(np.float32)
                made.append((states * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9))
            case _:
                root = np.sqrt(total) if kind == "mean_sqrt_len_tokens" else total
                made.append((states * counted).sum(axis=1) / root)
    return np.concatenate(made, axis=-1)
