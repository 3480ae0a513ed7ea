"""config.json: read it, say whether it needs code of its own, and compare it with the weights."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxport.errors import ConfigError, UnsafeError, UnsupportedError
from mlxport.model_config import ModelConfig
from mlxport.source.jsonfile import read_object
from mlxport.source.part_names import LAYER, PREDICTION, TOWER
from mlxport.source.timm_config import with_transformers_fields
from mlxport.types import TensorRef

_EMBEDDING = re.compile(
    r"(?:.*\.)?(?:embed_tokens|tokens_embed|wte|word_embeddings?|embed_in|embeddings|tok_embeddings|token_embedding|shared)\.weight"
)
_EMBEDDING_WIDTH = re.compile(r"emb\w*_(?:size|dim|rank)|d_emb")
_NORM = re.compile(r"norm|ln_|layernorm", re.IGNORECASE)
_FLOATS = {"F16", "BF16", "F32", "F64"}
# Settings under which layers are legitimately absent from the weights.
_IRREGULAR = ("block_configs", "block_sizes", "layer_sharing", "share_layers", "num_hidden_groups", "prune_layers")


def read_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The config, with the fields by which transformers reads one of timm, and what is odd in it.

    Raises:
        ConfigError: Not readable, not UTF-8, not JSON, not an object, without a model_type, or with a size below one.
    """
    repeated: list[str] = []
    config = read_object(path, ConfigError, unique=False, repeated=repeated)
    try:
        json.dumps(config, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{path} holds text that is not valid Unicode", hint="get config.json again") from error
    config = with_transformers_fields(config)
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind.isprintable() or not kind:
        if isinstance(part := config.get("_class_name"), str):
            raise UnsupportedError(
                f"{path} describes {part[:80]!r} of diffusers, which is no model of transformers",
                hint=f"port it by a function that returns diffusers.{part[:80]}.from_pretrained({str(path.parent)!r}) "
                "with example inputs: mlxport port FILE.py:FACTORY DST",
            )
        found = "is missing" if kind is None else f"is not a name but {str(kind)[:80]!r}"
        raise ConfigError(
            f"{path}: model_type {found}", hint='add the model_type that the model\'s documentation gives, e.g. "llama"'
        )
    ModelConfig(config).check(path)
    return config, [f"config.json gives {key!r} twice; the last value counts" for key in repeated]


def needs_remote_code(config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint brings code for its model (``auto_map``); whether that is needed the target knows."""
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, Mapping):
        return bool(auto_map)
    return any(str(key) == "AutoConfig" or str(key).startswith("AutoModel") for key in auto_map)


def refuse_remote_code(config: Mapping[str, Any], source: str) -> None:
    """Raise UnsafeError for a checkpoint that brings code for its model."""
    if needs_remote_code(config):
        raise UnsafeError(
            f"{source} names code of its own in config.json (auto_map), which was not run",
            hint="read that code, then add --trust-remote-code",
        )


def check_consistency(config: Mapping[str, Any], tensors: Mapping[str, TensorRef]) -> list[str]:
    """Compare config and weights of the text stack; returns what is odd but not wrong.

    Judges only what cannot be explained otherwise: padded vocabularies, extra prediction layers, factored
    embeddings, towers of multimodal models, packed (quantized) embeddings and shared layers are all left alone.

    Raises:
        ConfigError: The hidden size differs, or layers are missing; names both numbers and the tensor.
    """
    # The text part alone: what lies around it may be about a tower of the model.
    text = ModelConfig(ModelConfig(config).text)
    embeddings = [ref for name, ref in tensors.items() if _EMBEDDING.fullmatch(name) and not _beside(name)]
    if not embeddings:  # not a language model, whose words for sizes we know
        return []
    return [*_check_embedding(text, embeddings, tensors), *_check_layers(text, tensors)]


def _check_embedding(text: ModelConfig, embeddings: list[TensorRef], tensors: Mapping[str, TensorRef]) -> list[str]:
    found = [ref for ref in embeddings if len(ref.shape) == 2 and ref.dtype in _FLOATS]
    hidden = text.hidden_size
    if not found or hidden is None:
        return []
    ref = found[0]
    # A model may embed in another width and project. Then its norms still have the hidden size, or the config says so.
    told = any(_EMBEDDING_WIDTH.search(key) and value == ref.shape[1] for key, value in text.values.items())
    norms = (other.shape for name, other in tensors.items() if _NORM.search(name))
    if not told and all(other.shape[1] != hidden for other in found) and (hidden,) not in norms:
        found_shape = f"{ref.name} is {ref.shape[0]} x {ref.shape[1]} in {ref.path.name}"
        raise ConfigError(
            f"config.json says {next(iter(text.fields('hidden_size')))} {hidden}, but {found_shape}",
            hint="config.json and weights are of different models; get both from the same place",
        )
    vocabulary = text.vocabulary
    if vocabulary is not None and len(found) == 1 and ref.shape[0] < vocabulary:
        return [f"config.json says vocab_size {vocabulary}, but {ref.name} has {ref.shape[0]} rows"]
    return []


def _check_layers(text: ModelConfig, tensors: Mapping[str, TensorRef]) -> list[str]:
    # Of several counts the smallest: which one is about the stack cannot be told.
    expected = min(text.fields("layers").values(), default=None)
    if expected is None or any(text.values.get(key) for key in ("is_encoder_decoder", *_IRREGULAR)):
        return []
    stacks: dict[str, dict[int, str]] = defaultdict(dict)
    for name in tensors:
        match = LAYER.match(name)
        if match and not _beside(match["stack"]):
            stacks[match["stack"]].setdefault(int(match["number"]), name)
    if len(stacks) != 1:  # which of several the number is about cannot be told
        return []
    ((stack, layers),) = stacks.items()
    # The first gap, found among the layers that exist: the config may name any number.
    absent = next((index for index, number in enumerate(sorted(layers)) if index != number), len(layers))
    if absent < expected:
        last = layers[max(layers)]
        raise ConfigError(
            f"config.json says {expected} layers, the weights hold {len(layers)}: "
            f"{stack}.{absent} is missing (the last tensor of the stack is {last})",
            hint="config.json and weights are of different models, or a part of the weights is missing",
        )
    extra = len(layers) - expected - (text.count("num_nextn_predict_layers", "num_mtp_layers") or 0)
    if extra > 0:
        return [f"config.json says {expected} layers, the weights hold {len(layers)}"]
    return []


def _beside(name: str) -> bool:
    """Whether a name is of a part beside the text stack, with sizes of its own."""
    return bool(TOWER.search(name) or PREDICTION.search(name))
