"""What transformers saves of the model that a config describes: names, shapes and dtypes, without its weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mlxport.layouts.generated.hf_model import empty_model
from mlxport.layouts.generated.hf_weights import saved_tensors
from mlxport.source.torch_file import DTYPES
from mlxport.types import Checkpoint, TensorRef

__all__ = ["SavedModel", "saved_model"]


@dataclass(frozen=True)
class SavedModel:
    """A folder that ``save_pretrained`` would write.

    Attributes:
        tensors: By name; where they would lie is not known.
        parameters: Those that transformers makes up where they are absent; others it computes.
        architecture: Name of the model's class.
    """

    tensors: Mapping[str, TensorRef]
    parameters: frozenset[str]
    architecture: str


def saved_model(checkpoint: Checkpoint, config: Mapping[str, Any]) -> SavedModel:
    """What would be saved of the model that ``config`` describes.

    Args:
        checkpoint: Whose config it is; floating tensors are said to be bfloat16.
        config: As transformers reads it; without ``architectures`` a language model is meant.

    Raises:
        UnsupportedError: transformers has no such model.
        ConfigError: It cannot build what the config describes.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not config.get("architectures"):
        known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(config.get("model_type")))
        config = {**config, **({"architectures": [known]} if known else {})}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        model = empty_model(replace(checkpoint, root=Path(folder), config=config), dtype=torch.bfloat16)
    tensors, parameters = saved_tensors(model)
    refs = {name: _ref(name, tensor, checkpoint.root) for name, tensor in tensors.items()}
    return SavedModel(refs, parameters, type(model).__name__)


def _ref(name: str, tensor: torch.Tensor, root: Path) -> TensorRef:
    return TensorRef(name, DTYPES[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape), root, 0)
