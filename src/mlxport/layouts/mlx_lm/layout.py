"""The layout of language models that mlx-lm runs, as data; what it says is imported when it is asked."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxport.layouts.base import Layout, LayoutOptions, captured_only
from mlxport.source.sentence_folder import VECTORS_WANTED

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion, TracedModel
    from mlxport.types import Checkpoint

__all__ = ["MLX_LM"]

_USAGE = """\
## Use

```bash
pip install mlx-lm
mlx_lm.generate --model PATH --prompt "Hello" --max-tokens 100
```

```python
from mlxport import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH")
inputs = tokenizer("Hello", return_tensors="np")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))
```

`PATH` is this folder, or the repository that holds it. The exact options, versions and hashes of source and output are
in `mlxport.json`."""


def _claims(config: Mapping[str, Any], tensors: Collection[str]) -> bool:
    from mlxport.layouts.mlx_lm.opening import has_architecture

    return not config.get(VECTORS_WANTED) and has_architecture(config)


def _check(config: Mapping[str, Any], where: str) -> None:
    from mlxport.layouts.mlx_lm.opening import check_supported

    check_supported(config, where)


def _opens(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    from mlxport.layouts.mlx_lm.opening import open_model

    return open_model(checkpoint, dtype=options.dtype).conversion(options.quant)


def _foresees(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    from mlxport.layouts.mlx_lm.opening import open_model

    return open_model(checkpoint, dtype=options.dtype, headers_only=True).conversion(options.quant)


def _traces(checkpoint: Checkpoint, dtype: str) -> TracedModel:
    from mlxport.layouts.mlx_lm.opening import open_model

    return open_model(checkpoint, dtype=dtype)


def _glance(config: Mapping[str, Any]) -> bool:
    """Whether mlx-lm has a file of the model type's name."""
    spec, name = importlib.util.find_spec("mlx_lm"), str(config.get("model_type"))
    places = spec.submodule_search_locations if spec is not None else None
    return name.isidentifier() and any((Path(place) / "models" / f"{name}.py").is_file() for place in places or ())


MLX_LM = Layout(
    name="mlx-lm",
    keeps_groups=True,
    claims=_claims,
    opens=_opens,
    foresees=_foresees,
    traces=_traces,
    check=_check,
    glance=_glance,
    refuses=(captured_only("mlx-lm"),),
    task="text-generation",
    usage=_USAGE,
    verification="logits",
)
