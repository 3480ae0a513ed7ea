"""What is done to the files of a processor so that mlx-vlm prepares pictures as transformers does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from mlxport.source.processor_files import PROCESSORS, picture_settings
from mlxport.types import Checkpoint

__all__ = ["ProcessorRule", "llava_by_transformers", "mended_files"]

_INNER, _OUTER = PROCESSORS

ProcessorRule = Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], dict[str, dict[str, Any]]]
"""Of what the files say of the whole and of pictures, and config.json, what they are to say, by name."""


def mended_files(checkpoint: Checkpoint, rule: ProcessorRule | None) -> dict[str, str]:
    """The processor's files that a folder gets instead of the original's, by name; none without a rule.

    Raises:
        SourceError: One of the original's is no JSON object.
    """
    files = {path.name: path for path in checkpoint.side_files if path.parent == checkpoint.root}
    if rule is None or not files.keys() & {*PROCESSORS}:
        return {}
    made = rule(*picture_settings(files), checkpoint.config)
    return {name: f"{json.dumps(values, indent=2)}\n" for name, values in made.items()}


def llava_by_transformers(
    outer: Mapping[str, Any], pictures: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Let transformers' own processor of LLaVA prepare pictures: mlx-vlm's tells the one of pictures how to pad a text.

    mlx-vlm asks ``processor_config.json`` what the processor of pictures is like. Where that is null its own processor
    cannot be made, and it takes transformers', which then reads ``preprocessor_config.json``. What folders of 2023 do
    not say of the number of tokens of a picture is said as those of a CLIP tower are counted.
    """
    counted = {
        "patch_size": config["vision_config"].get("patch_size"),
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": config.get("vision_feature_select_strategy", "default"),
    }
    said = {key: value for values in (counted, outer) for key, value in values.items() if value is not None}
    return {
        _OUTER: {**said, "processor_class": "LlavaProcessor", "image_processor": None},
        _INNER: {key: value for key, value in pictures.items() if key != "processor_class"},
    }
