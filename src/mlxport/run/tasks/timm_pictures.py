"""Pictures as timm prepares them for evaluation, with Pillow and NumPy.

What is done is that of https://github.com/huggingface/pytorch-image-models, timm/data/config.py (resolve_data_config)
and timm/data/transforms_factory.py (transforms_imagenet_eval), with torchvision's resizing and cropping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxport.errors import ConfigError
from mlxport.run.media.extras import needed
from mlxport.source.timm_config import picture_shape

__all__ = ["TimmPictures", "timm_pictures"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, where a config names none
_CROP = 0.875
_MODES = ("center", "squash", "border")
_FILTERS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class TimmPictures:
    """Makes pixels of pictures.

    Attributes:
        height: Of what the model reads.
        width: Of what the model reads.
        share: Of the resized picture's edge that is cut out.
        mode: ``center`` keeps the ratio and cuts the middle out, ``squash`` resizes both edges, ``border`` fits the
            whole picture in and fills up with the mean.
        interpolation: Pillow's name of the filter, in lower case.
        mean: Of each channel, of values of 0 to 1.
        std: Of each channel.
    """

    height: int
    width: int
    share: float
    mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Sequence[Any], return_tensors: str = "np") -> dict[str, npt.NDArray[np.float32]]:
        """``pixel_values``, [pictures, 3, height, width], of RGB pictures of Pillow."""
        return {"pixel_values": np.stack([self._pixels(image) for image in images])}

    def _pixels(self, image: Any) -> npt.NDArray[np.float32]:
        made = self._cropped(self._resized(image))
        scaled = np.asarray(made, np.uint8).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return np.asarray((scaled - mean) / std, np.float32)

    def _resized(self, image: Any) -> Any:
        tall, wide = (math.floor(edge / self.share) for edge in (self.height, self.width))
        if self.mode != "squash":
            tall, wide = self._kept_ratio(image.height, image.width, tall, wide)
        if (tall, wide) == (image.height, image.width):
            return image
        resampling = needed("PIL.Image", "vision", "resizing a picture").Resampling
        return image.resize((wide, tall), resampling[self.interpolation.upper()])

    def _kept_ratio(self, height: int, width: int, tall: int, wide: int) -> tuple[int, int]:
        """Height and width that keep a picture's ratio, so that it covers ``tall`` by ``wide``, or fits into it."""
        if self.mode != "border" and tall == wide:  # the shorter edge as said, the longer cut to a whole number
            longer = int(tall * max(height, width) / min(height, width))
            return (tall, longer) if height <= width else (longer, tall)
        ratios = height / tall, width / wide
        ratio = max(ratios) if self.mode == "border" else min(ratios)
        return round(height / ratio), round(width / ratio)

    def _cropped(self, image: Any) -> Any:
        """The middle; what is smaller is put into the middle of black, of the mean where the mode is ``border``."""
        if image.width < self.width or image.height < self.height:
            fill = tuple(round(255 * value) for value in self.mean) if self.mode == "border" else (0, 0, 0)
            wide, tall = max(image.width, self.width), max(image.height, self.height)
            padded = needed("PIL.Image", "vision", "padding a picture").new("RGB", (wide, tall), fill)
            padded.paste(image, ((wide - image.width) // 2, (tall - image.height) // 2))
            image = padded
        left = round((image.width - self.width) / 2)
        top = round((image.height - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height))


def timm_pictures(pretrained: Mapping[str, Any], where: str) -> TimmPictures:
    """What prepares pictures as a config's ``pretrained_cfg`` says.

    Args:
        pretrained: That part of the config.
        where: What to call it in an error.

    Raises:
        ConfigError: It reads no colours, or a value is none that timm knows.
    """
    channels, height, width = picture_shape(pretrained)
    if channels != 3:
        raise ConfigError(
            f"{where}: input_size has {channels} channels, and pictures have 3",
            hint="call the model from Python: mlxport.load(DST)(...)",
        )
    interpolation = pretrained.get("interpolation") or "bicubic"
    if interpolation not in _FILTERS:
        raise ConfigError(f"{where}: interpolation is {interpolation!r}", hint=f"known are {', '.join(_FILTERS)}")
    share = pretrained.get("crop_pct") or _CROP
    if not isinstance(share, int | float) or not 0.01 <= share <= 100:
        raise ConfigError(f"{where}: crop_pct is {share!r}, expected a number above 0", hint="timm's own is 0.875")
    mean, std = (_per_channel(pretrained, key, usual, where) for key, usual in (("mean", _MEAN), ("std", _STD)))
    mode = pretrained.get("crop_mode") or "center"
    if mode not in _MODES:
        raise ConfigError(f"{where}: crop_mode is {mode!r}", hint=f"known are {', '.join(_MODES)}")
    return TimmPictures(height, width, float(share), mode, interpolation, mean, std)


def _per_channel(pretrained: Mapping[str, Any], key: str, usual: tuple[float, ...], where: str) -> tuple[float, ...]:
    given = pretrained.get(key)
    if given is None:
        return usual
    if not isinstance(given, list) or len(given) not in (1, 3) or not all(isinstance(v, int | float) for v in given):
        raise ConfigError(f"{where}: {key} is {given!r}, expected 3 numbers", hint="get config.json again")
    return tuple(float(value) for value in (given if len(given) == 3 else given * 3))
