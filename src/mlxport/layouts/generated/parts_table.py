"""The table of models that are ported in parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxport.layouts.generated.codec_parts import CODECS
from mlxport.layouts.generated.diffusion_parts import DIFFUSION
from mlxport.layouts.generated.dual_encoder_parts import DUAL_ENCODERS
from mlxport.layouts.generated.model_parts import PartedModel
from mlxport.model_config import ModelConfig

__all__ = ["IN_PARTS", "parted"]

IN_PARTS: tuple[PartedModel, ...] = (*DUAL_ENCODERS, *CODECS, *DIFFUSION)


def parted(config: Mapping[str, Any]) -> PartedModel | None:
    """The entry that a checkpoint's config is of, None where there is none."""
    model_type = ModelConfig(config).model_type
    return next((known for known in IN_PARTS if model_type in known.model_types), None)
