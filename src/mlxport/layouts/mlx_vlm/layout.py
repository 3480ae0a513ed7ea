"""The layout of models of pictures and text that mlx-vlm runs, as data; what it says is imported when it is asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from mlxport.layouts.base import Layout, LayoutOptions, Refusal, captured_only, measured_on_text
from mlxport.layouts.mlx_vlm.families import family_of
from mlxport.source.part_names import TOWER

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion
    from mlxport.types import Checkpoint

__all__ = ["MLX_VLM"]

_USAGE = """\
## Use

```bash
pip install mlx-vlm
mlx_vlm.generate --model PATH --image picture.jpg --prompt "What is to be seen?" --max-tokens 100
```

`PATH` is this folder, or the repository that holds it. The exact options, versions and hashes of source and output are
in `mlxport.json`."""

_FOR_TEXT = "for language models alone, and this one reads pictures"


def _claims(config: Mapping[str, Any], tensors: Collection[str] = ()) -> bool:
    """Whether the type is one of ours, and the weights hold its vision part: an export of the text model does not."""
    seen = not tensors or any(TOWER.search(name) for name in tensors)
    return seen and family_of(config) is not None


def _check(config: Mapping[str, Any], where: str) -> None:
    from mlxport.layouts.mlx_vlm.opening import check_config

    check_config(config, where)


def _opens(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    from mlxport.layouts.mlx_vlm.opening import open_model

    return open_model(checkpoint, options)


MLX_VLM = Layout(
    name="mlx-vlm",
    summary="pictures and text",
    claims=_claims,
    opens=_opens,
    foresees=_opens,
    check=_check,
    glance=_claims,
    refuses=(
        captured_only("mlx-vlm"),
        Refusal(("distill", "report", "kv_bits"), f"{{given}}: {_FOR_TEXT}", "leave it out"),
        *measured_on_text(_FOR_TEXT),
    ),
    whole=True,
    task="image-text-to-text",
    usage=_USAGE,
    verification="pictures",
    run_by="mlxport run and mlx_vlm.generate",
    not_generating=(
        "a model of pictures and text",
        "for text alone, convert the original with --text-only",
    ),
)
