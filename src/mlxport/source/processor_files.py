"""What the files beside a model say of its processor: how pictures, or sound, are prepared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxport.errors import SourceError
from mlxport.source.jsonfile import read_object
from mlxport.source.timm_config import is_timm

__all__ = ["PROCESSORS", "ProcessorInfo", "picture_settings", "read_processor"]

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""The files that describe one; transformers 5 writes the second, with that of pictures or sound inside."""
_INSIDE = ("image_processor", "feature_extractor")
_KINDS = ("image_processor_type", "feature_extractor_type", "processor_class")


@dataclass(frozen=True)
class ProcessorInfo:
    """A processor of pictures or of sound.

    Attributes:
        kind: Its class, None where no file names it.
        height: Rows of pixels that a picture is made to have, None where the files do not say, or it is of sound.
        width: Columns of them.
        rate: Samples a second of sound, None of pictures.
    """

    kind: str | None
    height: int | None = None
    width: int | None = None
    rate: int | None = None


def read_processor(files: Mapping[str, Path], config: Mapping[str, Any]) -> ProcessorInfo | None:
    """The processor of a model, None where it has none.

    Args:
        files: The files beside the weights, by name.
        config: Its config.json, which is where timm says it.

    Raises:
        SourceError: A file is no JSON object.
    """
    if is_timm(config):
        shape = config["pretrained_cfg"].get("input_size")
        sizes = shape[1:] if isinstance(shape, list) and len(shape) == 3 else [None, None]
        return ProcessorInfo("timm's transforms", *map(_count, sizes))
    found = [settings for name in PROCESSORS if name in files for settings in _described(files[name])]
    if not found:
        return None
    kind = next((one[key] for key in _KINDS for one in found if isinstance(one.get(key), str)), None)
    pictures = (_picture(one) for one in found)
    height, width = next((sizes for sizes in pictures if any(sizes)), (None, None))
    rate = next((rate for one in found if (rate := _count(one.get("sampling_rate")))), None)
    return ProcessorInfo(kind, height, width, rate)


def picture_settings(files: Mapping[str, Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the files say of the whole processor, and of that of pictures, as transformers reads them; {} for nothing.

    Args:
        files: The files beside the weights, by name.

    Raises:
        SourceError: A file is no JSON object.
    """
    inner, outer = (read_object(files[name], SourceError, unique=False) if name in files else {} for name in PROCESSORS)
    nested = outer.get(_INSIDE[0])
    return outer, dict(nested) if isinstance(nested, Mapping) else inner


def _described(path: Path) -> Iterator[Mapping[str, Any]]:
    settings = read_object(path, SourceError, unique=False)
    yield from (settings[name] for name in _INSIDE if isinstance(settings.get(name), Mapping))
    yield settings


def _picture(settings: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Height and width of what is cut out of a picture, else of what it is resized to."""
    for name in ("crop_size", "size"):
        size = settings.get(name)
        if isinstance(size, Mapping):
            edge = size.get("shortest_edge")
            size = [size.get("height", edge), size.get("width", edge)]
        pair: list[Any] = size if isinstance(size, list) and len(size) == 2 else [size, size]
        sizes = [_count(one) for one in pair]
        if all(sizes) and not (name == "crop_size" and settings.get("do_center_crop") is False):
            return sizes[0], sizes[1]
    return None, None


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < 1 << 31 else None
