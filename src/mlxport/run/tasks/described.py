"""What the files beside a model describe, as transformers makes it of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlxport.errors import SourceError
from mlxport.source.processor_files import PROCESSORS
from mlxport.source.tokenizer_loading import reason, refusing

__all__ = ["load_described"]


def load_described(folder: Path, what: str, prepares: str, load: Callable[[], Any]) -> Any:
    """The processor that a folder describes.

    Args:
        folder: Of the model.
        what: What it is called, as ``the image processor``.
        prepares: What it is for, as ``pictures are prepared``.
        load: Makes it.

    Raises:
        SourceError: The folder describes none, or it does not load.
    """
    hint = "copy preprocessor_config.json of the original model into the folder"
    if not any((folder / name).is_file() for name in PROCESSORS):
        raise SourceError(f"{folder} does not say how {prepares}: no {' or '.join(PROCESSORS)}", hint=hint)

    def failed(error: BaseException) -> SourceError:
        return SourceError(f"{what} of {folder} does not load: {reason(error)}", hint=hint)

    with refusing(failed):
        return load()
