"""The layout of models that no runtime has, as data: MLX source of the model's own, with its weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from mlxport.layouts.base import PORT_FILE, Layout, LayoutOptions, Refusal
from mlxport.layouts.generated.packed_sources import refuse_quantized
from mlxport.layouts.generated.timm_models import refuse_without_timm

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion
    from mlxport.types import Checkpoint

__all__ = ["GENERATED", "NO_MLXFN", "claims_class"]

NO_MLXFN = Refusal(
    ("mlxfn",),
    "--mlxfn: for whole sequences, and this port takes mlx-lm's caches",
    "leave it out, or add --no-cache",
)
"""Of the layouts whose ports generate."""

_USAGE = """\
## Use

```python
import sys

sys.path.insert(0, "PATH")
from model import load

model = load("PATH")
```

`PATH` is this folder. `model.py` needs nothing but `mlx`; `mlxport.load("PATH")` does the same.
The inputs and outputs of one call are in `example_inputs.safetensors` and `example_outputs.safetensors`, the exact
options, versions and hashes of source and output in `mlxport.json`."""


def _claims(config: Mapping[str, Any], tensors: Collection[str]) -> bool:
    """Whether transformers has the architecture, and torch is there to capture it."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "accelerate")):
        return False
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return str(config.get("model_type")) in CONFIG_MAPPING


def claims_class(config: Mapping[str, Any], tensors: Collection[str], mapping: str) -> bool:
    """Whether the model can be captured, and its class is the one that a mapping of transformers has for its type."""
    if not _claims(config, tensors):
        return False
    from transformers.models.auto import modeling_auto

    known = getattr(modeling_auto, mapping).get(str(config.get("model_type")), ())
    classes = {known} if isinstance(known, str) else set(known)
    return not classes.isdisjoint(map(str, config.get("architectures") or ()))


def _check(config: Mapping[str, Any], where: str) -> None:
    refuse_quantized(config, where)
    refuse_without_timm(config, where)


def _opens(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    from mlxport.layouts.generated.opening import open_generated

    return open_generated(checkpoint, options)


GENERATED = Layout(
    name="generated",
    summary="MLX source of its own",
    claims=_claims,
    opens=_opens,
    check=_check,
    needs_torch=True,
    refuses=(
        Refusal(
            ("distill",),
            "--distill: for mlx-lm's layout only; the generated one is a program of its own",
            "leave it out, or add --layout mlx-lm",
        ),
        Refusal(
            ("kv_bits",),
            "--kv-bits: for mlx-lm's layout only; the generated one has no key-value cache",
            "leave it out, or add --layout mlx-lm",
        ),
        Refusal(
            ("report",),
            "--report: quality is measured with mlx-lm's models, and this layout brings code of its own",
            "leave it out: the conversion is verified against PyTorch",
        ),
        Refusal(
            ("calibrate",),
            "{given}: for mlx-lm's layout only, and this one is generated",
            "use --quantizer search instead, or leave --layout out",
        ),
        Refusal(
            ("fit", "target_size", "target_bpw"),
            "--fit, --target-size and --target-bpw measure mlx-lm's model, and this layout is generated",
            "choose bits with -q, or a recipe with --recipe",
        ),
    ),
    records=("dynamic", "fold_batchnorm"),
    files=(
        *(PORT_FILE, "__pycache__/model.*.pyc", "model.mlxfn"),
        *("example_inputs.safetensors", "example_outputs.safetensors"),
    ),
    tokenizer=False,
    usage=_USAGE,
    verification="outputs",
    wrote=lambda config: config.get("model_file") == PORT_FILE,
    not_generating=(
        "a port with code of its own and without a key-value cache: it computes whole sequences",
        "call it from Python: mlxport.load(PATH)(...), with inputs such as those in example_inputs.safetensors",
    ),
)
