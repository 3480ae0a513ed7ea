"""The layout of models with several entry points, as data: MLX source of its own for each, over one set of weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlxport.layouts.base import LayoutOptions, Refusal
from mlxport.layouts.generated.layout import GENERATED, claims_class
from mlxport.layouts.generated.parts_table import IN_PARTS, parted
from mlxport.source.written_code import PARTS

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion
    from mlxport.types import Checkpoint

__all__ = ["GENERATED_PARTS"]


def _claims(config: Mapping[str, Any], tensors: Collection[str]) -> bool:
    """Whether the table has the model in parts; where transformers has it too, torch is to be there to capture it."""
    known = parted(config)
    return known is not None and (not known.mapping or claims_class(config, tensors, known.mapping))


def _opens(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    from mlxport.layouts.generated.parts_opening import open_in_parts

    return open_in_parts(checkpoint, options)


def _task(config: Mapping[str, Any]) -> str:
    known = parted(config)
    return "" if known is None else known.task


def _usage(config: Mapping[str, Any]) -> str:
    known = parted(config)
    return "" if known is None else known.usage


def _files() -> tuple[str, ...]:
    names = dict.fromkeys(part.name for known in IN_PARTS for part in known.parts)
    return tuple(pattern for name in names for pattern in (f"{name}.py", f"__pycache__/{name}.*.pyc"))


GENERATED_PARTS = replace(
    GENERATED,
    name="generated-parts",
    summary="MLX source of its own, one file for each entry point",
    claims=_claims,
    opens=_opens,
    refuses=(
        *GENERATED.refuses,
        Refusal(("mlxfn",), "--mlxfn: for models with one entry point", "leave it out, or add --layout generated"),
    ),
    files=_files(),
    task=_task,
    usage=_usage,
    verification="parts",
    wrote=lambda config: PARTS in config,
    not_generating=(
        "a port in parts, each with code of its own",
        "call them from Python: mlxport.load(PATH) has each as a function; the folder's README.md says how",
    ),
)
