"""Pictures from files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlxport.errors import UsageError
from mlxport.run.media.extras import needed
from mlxport.run.media.files import readable_file

__all__ = ["read_picture"]


def read_picture(given: str | os.PathLike[str] | Any) -> Any:
    """A picture as processors take it: upright by its EXIF data, in RGB.

    Args:
        given: A file in any format that Pillow reads, or a ``PIL.Image.Image``.

    Returns:
        A ``PIL.Image.Image`` of mode RGB; of several frames the first. Transparency is dropped, as transformers does.

    Raises:
        UsageError: No such file, or not a picture.
    """
    image_module = needed("PIL.Image", "vision", "reading a picture")
    ops = needed("PIL.ImageOps", "vision", "reading a picture")
    if isinstance(given, image_module.Image):
        return ops.exif_transpose(given).convert("RGB")
    path = readable_file(given, "picture")
    return _opened(image_module, ops, path)


def _opened(image_module: Any, ops: Any, path: Path) -> Any:
    try:
        with image_module.open(path) as image:
            return ops.exif_transpose(image).convert("RGB")
    except image_module.DecompressionBombError as error:
        raise UsageError(f"{path}: {error}", hint="make it smaller first") from error
    except (image_module.UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, image_module.UnidentifiedImageError):
            what = f"{path.stat().st_size} bytes of no format that Pillow knows"
        hint = "give a PNG, JPEG, WebP, GIF, BMP or TIFF file"
        raise UsageError(f"{path} is not a picture that can be read: {what}", hint=hint) from error
