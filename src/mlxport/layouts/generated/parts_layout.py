"""The layout of models with several entry points, as data: MLX source of its own for each, over one set of weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlxport.layouts.base import LayoutOptions, Refusal
from mlxport.layouts.generated.layout import GENERATED, claims_class
from mlxport.layouts.generated.model_parts import IN_PARTS, parted
from mlxport.source.written_code import PARTS

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion
    from mlxport.types import Checkpoint

__all__ = ["GENERATED_PARTS"]

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


def _claims(config: Mapping[str, Any], tensors: Collection[str]) -> bool:
    """Whether the table has the model in parts, and torch is there to capture it."""
    known = parted(config)
    return known is not None and claims_class(config, tensors, known.mapping)


def _opens(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    from mlxport.layouts.generated.parts_opening import open_in_parts

    return open_in_parts(checkpoint, options)


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
    task="zero-shot-image-classification",
    usage=_USAGE,
    verification="parts",
    wrote=lambda config: PARTS in config,
    not_generating=(
        "a port in parts, each with code of its own",
        "call them from Python: mlxport.load(PATH) has each as a function; the folder's README.md says how",
    ),
)
