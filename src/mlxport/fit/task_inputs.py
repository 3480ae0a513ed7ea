"""Inputs of the sizes that a model is run with: a whole text, a picture as it is prepared, 30 seconds of sound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxport.source.processor_files import ProcessorInfo

__all__ = ["SECONDS", "Sizes", "patches", "sized"]

SECONDS = 30
"""Of sound: what speech models are run with at once."""
_RATE = 16_000  # what speech models hear, where their folder does not say
_WORDS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Sizes:
    """How large an input is.

    Attributes:
        tokens: Of a text.
        processor: What the model's folder says of pictures and sound.
    """

    tokens: int
    processor: ProcessorInfo | None

    @property
    def samples(self) -> int:
        """Of ``SECONDS`` of sound."""
        return SECONDS * ((self.processor and self.processor.rate) or _RATE)


def sized(example: Mapping[str, tuple[tuple[int, ...], mx.Dtype]], sizes: Sizes) -> dict[str, mx.array]:
    """One input of those sizes, as placeholders; what is of another kind stays as in the example.

    Args:
        example: Shapes and dtypes of the inputs that a model was captured with, by name.
        sizes: The sizes.
    """
    return {name: mx.zeros(_shape(name, shape, example, sizes), dtype) for name, (shape, dtype) in example.items()}


def _shape(name: str, shape: tuple[int, ...], example: Mapping[str, Any], sizes: Sizes) -> tuple[int, ...]:
    hears, known = "input_values" in example, sizes.processor
    if len(shape) == 2 and (name == "input_values" or (hears and name == "attention_mask")):
        return 1, sizes.samples
    if len(shape) == 2 and name in _WORDS:
        return 1, sizes.tokens
    if name == "pixel_values" and len(shape) == 4 and known is not None and known.height and known.width:
        return 1, shape[1], known.height, known.width
    return 1, *shape[1:]


def patches(config: Mapping[str, Any], height: int, width: int) -> int | None:
    """Patches that a picture is cut into by the config, None where that names no size of them."""
    eyes = config.get("vision_config")
    sizes = (part.get("patch_size") for part in (config, eyes if isinstance(eyes, Mapping) else {}))
    size = next((size for size in sizes if type(size) is int and size > 0), None)
    return None if size is None else (height // size) * (width // size)
