"""Models of timm: transformers builds them with that library, which only they need."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from mlxport.errors import UnsupportedError
from mlxport.source.timm_config import is_timm

__all__ = ["load_timm", "refuse_without_timm", "with_labels"]

_HINT = "pip install 'mlxport[timm]'"


def refuse_without_timm(config: Mapping[str, Any], where: str) -> None:
    """Refuse a model of timm where that is not installed.

    Raises:
        UnsupportedError: It is one.
    """
    absent = [name for name in ("timm", "torchvision") if importlib.util.find_spec(name) is None]
    if is_timm(config) and absent:
        what = f"{where} describes {str(config['architecture'])[:80]!r} of timm"
        raise UnsupportedError(f"{what}, and these are not installed: {', '.join(absent)}", hint=_HINT)


def load_timm() -> None:
    """Import timm, or say why that fails: transformers' own error is about something else.

    Raises:
        UnsupportedError: It does not load.
    """
    try:
        importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:
        raise UnsupportedError(
            f"timm does not load: {type(error).__name__}: {str(error).splitlines()[0]}",
            hint=f"{_HINT}; torchvision must be built for the torch that is installed: "
            "https://pytorch.org/get-started/locally names the right one",
        ) from error


def with_labels(config: Mapping[str, Any], read: Any) -> dict[str, Any]:
    """A config of timm with the labels that transformers reads in it, or knows of ImageNet: timm's run time has none.

    Args:
        config: The checkpoint's.
        read: The same as transformers reads it.
    """
    return {"id2label": {str(index): label for index, label in read.id2label.items()}, **config}
