"""Pictures into files, several as a grid, with what made them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxport.run.media.extras import needed

__all__ = ["PICTURE_FILES", "fitted", "grid", "picture_file"]

PICTURE_FILES: Mapping[str, str] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""What can be written, by the ending of the name, as Pillow calls it."""

Pixels = npt.NDArray[np.uint8]


def grid(pictures: Pixels, rows: int) -> Pixels:
    """Pictures [count, height, width, 3] side by side in rows, as one; black where none is left for the last row."""
    columns = math.ceil(len(pictures) / rows)
    count, height, width, channels = pictures.shape
    padded = np.zeros((rows * columns, height, width, channels), np.uint8)
    padded[:count] = pictures
    return (
        padded.reshape(rows, columns, height, width, channels)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width, channels)
    )


def picture_file(pixels: Pixels, ending: str = ".png", said: Mapping[str, str] | None = None) -> bytes:
    """A file of a picture [height, width, 3].

    Args:
        pixels: The picture.
        ending: One of ``PICTURE_FILES``.
        said: Texts by their names, for the metadata of a PNG.

    Raises:
        UsageError: Pillow is not installed.
    """
    image = needed("PIL.Image", "vision", "writing a picture").fromarray(pixels)
    kind, options = PICTURE_FILES[ending], dict[str, Any]()
    if kind == "PNG":
        info = needed("PIL.PngImagePlugin", "vision", "writing a picture").PngInfo()
        for name, text in (said or {}).items():
            info.add_itxt(name, text) if not text.isascii() else info.add_text(name, text)
        options["pnginfo"] = info
    elif kind == "JPEG":
        options["quality"] = 95
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def fitted(picture: Any, height: int, width: int) -> npt.NDArray[np.float32]:
    """A ``PIL.Image.Image`` brought to a size, float32 [3, height, width] from -1 to 1, as diffusers does it."""
    lanczos = needed("PIL.Image", "vision", "reading a picture").Resampling.LANCZOS
    pixels = np.asarray(picture.resize((width, height), resample=lanczos), np.float32)
    return np.asarray(pixels.transpose(2, 0, 1) / 127.5 - 1, np.float32)
