"""Models of pictures beside texts, as data: a part for each, and one that scores them against each other."""

from __future__ import annotations

from typing import Any

from mlxport.layouts.generated.model_parts import Part, PartedModel
from mlxport.layouts.generated.patched_pictures import PATCHES, example_patches, image_of_patches

__all__ = ["DUAL_ENCODERS"]

_USAGE = """\
## Use

```python
import mlxport

model = mlxport.load("PATH")
texts = model.text(input_ids=ids, attention_mask=mask)  # projected, not normalised
images = model.image(pixel_values=pixels)
logits = model.score(image_embeds=images, text_embeds=texts)  # [images, texts]
```

`PATH` is this folder. Each part is a file that needs nothing but `mlx`, with a `load` of its own: `text.py`,
`image.py`, `score.py`. They share the weights. The exact options, versions and hashes of source and output are in
`mlxport.json`."""


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


_TEXT = Part("text", ("input_ids", "attention_mask", "token_type_ids"), _text)
_SCORE = Part("score", ("image_embeds", "text_embeds"), _score, {"image_embeds": "image", "text_embeds": "text"})


def _dual_encoder(model_types: set[str], image: Part) -> PartedModel:
    return PartedModel(
        mapping="MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        model_types=frozenset(model_types),
        task="zero-shot-image-classification",
        usage=_USAGE,
        parts=(_TEXT, image, _SCORE),
        whole=_logits_per_image,
    )


DUAL_ENCODERS = (
    _dual_encoder(
        {"clip", "siglip", "metaclip_2", "chinese_clip", "altclip", "blip", "align"},
        Part("image", ("pixel_values",), _image),
    ),
    _dual_encoder({"siglip2"}, Part("image", PATCHES, image_of_patches, example=example_patches)),
)
