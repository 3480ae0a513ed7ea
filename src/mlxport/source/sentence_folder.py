"""Folders of sentence-transformers: what their files say of the model inside.

The files are those that https://github.com/huggingface/sentence-transformers writes; what is refused of them is refused
where vectors are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxport.errors import ConfigError
from mlxport.model_config import ModelConfig
from mlxport.source.jsonfile import read_object

__all__ = ["MODULES", "SETTINGS", "VECTORS_WANTED", "gives_vectors", "with_base_class"]

MODULES, SETTINGS = "modules.json", "sentence_bert_config.json"
_VECTORS = "feature-extraction"
VECTORS_WANTED = "gives_vectors"
"""Field of a config: that a model which could write is to give vectors of what it reads, so that no runtime of language
models is meant."""
_TWO_TEXTS = "ForConditionalGeneration"  # of which sentence-transformers takes the encoder


def gives_vectors(root: Path) -> bool:
    """Whether a folder is of a model that gives a vector of each text: of rerankers sentence-transformers writes too.

    Raises:
        ConfigError: A file of it is malformed.
    """
    if not (root / MODULES).is_file():
        return False
    settings: Mapping[str, Any] = {}
    if (root / SETTINGS).is_file():
        settings = read_object(root / SETTINGS, ConfigError)
    return bool(settings.get("transformer_task", _VECTORS) == _VECTORS)


def with_base_class(config: dict[str, Any], root: Path) -> dict[str, Any]:
    """A config with the class that sentence-transformers loads: without the head that the weights were trained with.

    Args:
        config: config.json of a folder; returned as it is where that gives no vectors.
        root: The folder.
    """
    names = ModelConfig(config).architectures
    if not names or names[0].endswith(_TWO_TEXTS) or not gives_vectors(root):
        return config
    from transformers.models.auto import modeling_auto as tables

    kind = str(config.get("model_type"))
    known = tables.MODEL_MAPPING_NAMES.get(kind, ())
    bases = (known,) if isinstance(known, str) else tuple(known)
    if not bases:
        return config
    writes = kind in tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in tables.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    said = {VECTORS_WANTED: True} if writes else {}
    return {**config, **said, "architectures": [names[0] if names[0] in bases else bases[0]]}
