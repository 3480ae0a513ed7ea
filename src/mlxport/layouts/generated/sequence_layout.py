"""The layout of models that read a text with an encoder and write another with a decoder, as data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlxport.layouts.base import LayoutOptions, Refusal
from mlxport.layouts.generated.layout import GENERATED, NO_MLXFN, claims_class

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion
    from mlxport.types import Checkpoint

__all__ = ["GENERATED_SEQ2SEQ"]

_USAGE = """\
## Use

```bash
mlxport generate PATH --prompt "the text to read"
```

The encoder reads the prompt once, and the decoder writes on mlx-lm's caches. From Python:

```python
import mlxport

print(mlxport.generate("PATH", "the text to read").text)
```

`PATH` is this folder. `model.py` needs `mlx` and `mlx-lm`: `Model.encode` reads tokens into a cache of
`Model.make_cache`, which `mlx_lm.generate.generate_step` takes as its `prompt_cache`. The command `mlx_lm.generate`
has no place for a text to read. The inputs and outputs of one call are in `example_inputs.safetensors` and
`example_outputs.safetensors`, the exact options, versions and hashes of source and output in `mlxport.json`."""

_NOT_FOR = "for language models without an encoder"


def _claims(config: Mapping[str, Any], tensors: Collection[str]) -> bool:
    """Whether transformers has the class as a model of two texts, and torch is there to capture it."""
    both = config.get("is_encoder_decoder") is True
    return both and claims_class(config, tensors, "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES")


def _opens(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    from mlxport.layouts.generated.sequence_model import open_sequence_model

    return open_sequence_model(checkpoint, options)


GENERATED_SEQ2SEQ = replace(
    GENERATED,
    name="generated-seq2seq",
    summary="MLX source of its own for an encoder and a decoder, which writes on mlx-lm's caches",
    claims=_claims,
    opens=_opens,
    refuses=(
        Refusal(("distill", "report"), f"{{given}}: {_NOT_FOR}", "leave it out"),
        Refusal(("kv_bits",), f"--kv-bits: {_NOT_FOR}", "leave it out"),
        NO_MLXFN,
    ),
    records=("fold_batchnorm",),
    tokenizer=True,
    task="text2text-generation",
    usage=_USAGE,
    verification="sequences",
    run_by="mlxport generate",
    wrote=lambda config: False,
    not_generating=None,
)
