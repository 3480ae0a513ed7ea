"""The layout of language models that mlx-lm does not have, as data: source of their own, which mlx-lm runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from mlxport.layouts.base import PORT_FILE, Layout, LayoutOptions
from mlxport.layouts.generated.layout import NO_MLXFN, claims_class

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion, TracedModel
    from mlxport.types import Checkpoint

__all__ = ["GENERATED_LM"]

_USAGE = """\
## Use

```bash
pip install mlx-lm
mlx_lm.generate --model PATH --trust-remote-code --prompt "Hello" --max-tokens 100
```

`PATH` is this folder. `model.py` is the model in MLX, on mlx-lm's caches: read it, then trust it. The exact options,
versions and hashes of source and output are in `mlxport.json`."""


def _claims(config: Mapping[str, Any], tensors: Collection[str]) -> bool:
    """Whether transformers has the class as a language model, and torch is there to capture it."""
    return claims_class(config, tensors, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")


def _opens(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    from mlxport.layouts.generated.language_model import open_language_model

    return open_language_model(checkpoint, options)


def _traces(checkpoint: Checkpoint, dtype: str) -> TracedModel:
    from mlxport.layouts.generated.language_model import traced_language_model

    return traced_language_model(checkpoint, dtype)


GENERATED_LM = Layout(
    name="generated-lm",
    summary="MLX source of its own, which mlx-lm runs",
    claims=_claims,
    opens=_opens,
    traces=_traces,
    needs_torch=True,
    refuses=(NO_MLXFN,),
    records=("fold_batchnorm",),
    files=(PORT_FILE, "__pycache__/model.*.pyc"),
    task="text-generation",
    usage=_USAGE,
    verification="logits",
    verifies_generation=True,
    run_by="mlxport generate and chat, and mlx_lm.generate --trust-remote-code",
    wrote=lambda config: False,
)
