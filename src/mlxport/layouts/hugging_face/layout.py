"""The layout of Hugging Face's own folders, to which what was converted is brought back, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlxport.layouts.base import Layout, LayoutOptions, Refusal, captured_only

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion
    from mlxport.types import Checkpoint

__all__ = ["HUGGING_FACE"]

_USAGE = """\
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH")
```

`PATH` is this folder, or the repository that holds it. The exact options, versions and hashes of source and output are
in `mlxport.json`."""

_BACK = "for conversions to MLX, and --to hf is the way back"


def _opens(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    from mlxport.layouts.hugging_face.opening import open_restored

    return open_restored(checkpoint, options)


HUGGING_FACE = Layout(
    name="hf",
    opens=_opens,
    claims=lambda config, tensors: False,
    backwards=True,
    needs_torch=True,
    refuses=(
        captured_only("transformers"),
        Refusal(
            ("quantize", "q_bits", "q_group_size", "q_mode", "recipe", "quantizer"),
            "{given}: --to hf writes weights that are not quantized",
            "leave it out",
        ),
        Refusal(("calibrate", "distill", "report", "kv_bits", "text_only"), f"{{given}}: {_BACK}", "leave it out"),
        Refusal(
            ("fit", "target_size", "target_bpw"), f"--fit, --target-size and --target-bpw: {_BACK}", "leave it out"
        ),
    ),
    tokenizer=False,
    framework="pt",
    library="transformers",
    usage=_USAGE,
    verification="restored",
    not_generating=(
        "a folder of transformers, not of MLX",
        "convert it first: mlxport convert PATH DST",
    ),
)
