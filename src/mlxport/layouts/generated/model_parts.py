"""Models that are ported in parts, as data: which entry points a class has, and how each is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxport.layouts.generated.patched_pictures import PATCHES, example_patches, image_of_patches
from mlxport.model_config import ModelConfig

__all__ = ["IN_PARTS", "Part", "PartedModel", "parted"]


@dataclass(frozen=True)
class Part:
    """One entry point of a model.

    Attributes:
        name: What its file is called, and the function that it is.
        inputs: Names of what it takes, as the model's own method calls them; what a class does not have is left out.
        call: Computes it: the model, and its inputs by name, to one tensor.
        of_parts: Which of the inputs are what another part gives, to that part's name.
        example: Makes inputs to capture it with, of the model; None where names and config tell them.
    """

    name: str
    inputs: tuple[str, ...]
    call: Callable[..., Any]
    of_parts: Mapping[str, str] = field(default_factory=dict)
    example: Callable[[Any], dict[str, Any]] | None = None


@dataclass(frozen=True)
class PartedModel:
    """A kind of model, and its parts in an order in which none comes before what it takes.

    Attributes:
        mapping: The table of transformers that names its classes.
        model_types: Of the config, those that are known to convert.
        parts: The parts; the last gives what the whole model is for.
        whole: The same by the class's own forward: the model and the inputs of all parts, by name.
    """

    mapping: str
    model_types: frozenset[str]
    parts: tuple[Part, ...]
    whole: Callable[..., Any]


def _text(model: Any, **inputs: Any) -> Any:
    return model.get_text_features(**inputs).pooler_output


def _image(model: Any, **inputs: Any) -> Any:
    return model.get_image_features(**inputs).pooler_output


def _score(model: Any, image_embeds: Any, text_embeds: Any) -> Any:
    """Cosines, scaled (and moved) as the class's forward does it; [images, texts]."""
    image, text = (each / each.norm(p=2, dim=-1, keepdim=True) for each in (image_embeds, text_embeds))
    logits = image @ text.t()
    if hasattr(model, "temperature"):  # ALIGN's
        return logits / model.temperature
    logits = logits * model.logit_scale.exp()
    return logits + model.logit_bias if hasattr(model, "logit_bias") else logits


def _logits_per_image(model: Any, **inputs: Any) -> Any:
    return model(**inputs).logits_per_image


_ZERO_SHOT = "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES"
_TEXT = Part("text", ("input_ids", "attention_mask", "token_type_ids"), _text)
_SCORE = Part("score", ("image_embeds", "text_embeds"), _score, {"image_embeds": "image", "text_embeds": "text"})

IN_PARTS = (
    PartedModel(
        mapping=_ZERO_SHOT,
        model_types=frozenset({"clip", "siglip", "metaclip_2", "chinese_clip", "altclip", "blip", "align"}),
        parts=(_TEXT, Part("image", ("pixel_values",), _image), _SCORE),
        whole=_logits_per_image,
    ),
    PartedModel(
        mapping=_ZERO_SHOT,
        model_types=frozenset({"siglip2"}),
        parts=(_TEXT, Part("image", PATCHES, image_of_patches, example=example_patches), _SCORE),
        whole=_logits_per_image,
    ),
)


def parted(config: Mapping[str, Any]) -> PartedModel | None:
    """The entry that a checkpoint's config is of, None where there is none."""
    model_type = ModelConfig(config).model_type
    return next((known for known in IN_PARTS if model_type in known.model_types), None)
