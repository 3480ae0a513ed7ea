"""What a name, of a tensor or in a config, says of the part of a model that it is about."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["LAYER", "PICTURES", "PREDICTION", "TOWER", "kinds_of_tower", "predicts_further"]

# Words of names, by the kind of tower that they speak of; the last kind lies between a tower and the language model.
_TOWERS: Final = (
    ("vision", "visual", "image", "images", "img", "video", "vit", "siglip"),
    ("audio", "speech", "sound", "talker", "code", "codec", "token2wav", "code2wav", "vocoder", "depth"),
    ("resampler", "qformer", "projector", "connector", "aligner", "perceiver", "multimodal"),
)

PICTURES: Final = frozenset((0,))
"""The kind of tower that reads pictures, as ``kinds_of_tower`` gives it."""

TOWER: Final = re.compile(rf"(?:^|[._])(?:{'|'.join(word for words in _TOWERS for word in words)})(?=[._\d]|$)")
"""A part that has sizes of its own beside the language model (``decoder`` is not ``code``)."""

PREDICTION: Final = re.compile(r"(?:^|[._])(?:mtp|nextn)(?=[._\d]|$)")
"""Layers that predict further tokens: nothing needs them to compute the next one."""

LAYER: Final = re.compile(r"(?P<stack>(?:.*?\.)?(?:layers|layer|h|blocks|block))\.(?P<number>\d{1,6})(?:\.|$)")
"""A layer of a stack, and what is in it."""


def predicts_further(name: str, layers: int | None) -> bool:
    """Whether a name is of layers that predict further tokens: called so, or beyond the number of layers."""
    layer = LAYER.match(name)
    beyond = layer is not None and layers is not None and int(layer["number"]) >= layers
    return bool(PREDICTION.search(name)) or (beyond and not TOWER.search(name))


def kinds_of_tower(name: str) -> frozenset[int]:
    """The kinds of tower that the words of a name speak of; names that share one are about the same part."""
    words = set(re.split(r"[._]", name))
    return frozenset(kind for kind, listed in enumerate(_TOWERS) if not words.isdisjoint(listed))
