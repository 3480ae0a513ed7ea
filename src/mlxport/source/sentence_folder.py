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

__all__ = ["MODULES", "SETTINGS", "gives_vectors", "with_base_class"]

MODULES, SETTINGS = "modules.json", "sentence_bert_config.json"
_VECTORS = "feature-extraction"
_WRITES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")  # which the layouts of language models know


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
        config: config.json of a folder; returned as it is where that gives no vectors, or names no head.
        root: The folder.
    """
    names = ModelConfig(config).architectures
    if not names or names[0].endswith(_WRITES) or not gives_vectors(root):
        return config
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    known = MODEL_MAPPING_NAMES.get(str(config.get("model_type")), ())
    bases = (known,) if isinstance(known, str) else tuple(known)
    return config if not bases or names[0] in bases else {**config, "architectures": [bases[0]]}
