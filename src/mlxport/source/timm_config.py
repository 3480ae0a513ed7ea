"""Configs as timm publishes them: of a classifier of pictures, without what transformers' own say of theirs.

The fields are those of https://github.com/huggingface/pytorch-image-models, timm/models/_hub.py (save_config_for_hf);
transformers reads such a folder with the classes that stand here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["arguments_once", "is_timm", "picture_shape", "with_transformers_fields"]

_TIMM = "timm_wrapper"  # what transformers calls a model of timm, whichever it is
_CLASSIFIER, _FEATURES = "TimmWrapperForImageClassification", "TimmWrapperModel"


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether timm has made a config."""
    named = config.get("model_type", _TIMM) == _TIMM
    return named and isinstance(config.get("pretrained_cfg"), Mapping) and isinstance(config.get("architecture"), str)


def with_transformers_fields(config: dict[str, Any]) -> dict[str, Any]:
    """A config of timm with the fields that transformers reads it by; another one as it is."""
    if not is_timm(config):
        return config
    made: dict[str, Any] = {
        "model_type": _TIMM,
        "architectures": [_CLASSIFIER if config.get("num_classes") != 0 else _FEATURES],
    }
    labels = config.get("label_names")
    if isinstance(labels, list):
        made["id2label"] = {str(index): str(label) for index, label in enumerate(labels)}
    return {**made, **config}


def arguments_once(arguments: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """``model_args`` of a config without the number of classes, which transformers takes from beside them.

    timm writes it to both places from 1.0.31 on, and refuses to be given it twice.
    """
    return None if arguments is None else {name: value for name, value in arguments.items() if name != "num_classes"}


def picture_shape(pretrained: Mapping[str, Any]) -> tuple[int, int, int]:
    """Channels, height and width of the pictures that a model of timm reads, by its ``pretrained_cfg``."""
    size = pretrained.get("input_size")
    if isinstance(size, list | tuple) and len(size) == 3 and all(type(item) is int and item > 0 for item in size):
        return size[0], size[1], size[2]
    return 3, 224, 224
