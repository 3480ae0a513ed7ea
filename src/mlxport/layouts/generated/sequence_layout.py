"""The layouts of models that read a text, or hear sound, with an encoder and write a text with a decoder, as data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlxport.layouts.base import LayoutOptions, Refusal, measured_on_text
from mlxport.layouts.generated.layout import GENERATED, NO_MLXFN, claims_class

if TYPE_CHECKING:
    from mlxport.layouts.conversion import Conversion, TracedModel
    from mlxport.types import Checkpoint

__all__ = ["GENERATED_SEQ2SEQ", "GENERATED_SPEECH"]

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

_NO_KV_BITS = Refusal(("kv_bits",), "--kv-bits: for models that read texts", "leave it out")


def _claims(config: Mapping[str, Any], tensors: Collection[str]) -> bool:
    """Whether transformers has the class as a model of two texts, and torch is there to capture it."""
    both = config.get("is_encoder_decoder") is True
    return both and claims_class(config, tensors, "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES")


def _opens(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    from mlxport.layouts.generated.sequence_model import open_sequence_model

    return open_sequence_model(checkpoint, options)


def _traces(checkpoint: Checkpoint, dtype: str) -> TracedModel:
    from mlxport.layouts.generated.sequence_model import traced_sequence_model

    return traced_sequence_model(checkpoint, dtype)


GENERATED_SEQ2SEQ = replace(
    GENERATED,
    name="generated-seq2seq",
    summary="MLX source of its own for an encoder and a decoder, which writes on mlx-lm's caches",
    claims=_claims,
    opens=_opens,
    traces=_traces,
    refuses=(NO_MLXFN,),
    records=("fold_batchnorm",),
    tokenizer=True,
    task="text2text-generation",
    usage=_USAGE,
    verification="sequences",
    run_by="mlxport run",
    wrote=lambda config: False,
    not_generating=None,
)


_HEARS = """\
## Use

```python
import mlx.core as mx
import mlxport
from mlx_lm.generate import generate_step

model = mlxport.load("PATH")
cache = model.make_cache()
model.encode(features, cache)  # of the model's own feature extractor, [batch, ...]
tokens = [token for token, _ in generate_step(mx.array([START]), model, prompt_cache=cache, max_tokens=100)]
```

`PATH` is this folder, `START` the tokens that a text begins with, `decoder_start_token_id` of generation_config.json
first. The encoder hears once, and the decoder writes on mlx-lm's caches. `model.py` needs `mlx` and `mlx-lm`. Inputs
and outputs of one call are in `example_inputs.safetensors` and `example_outputs.safetensors`; options, versions and
hashes of source and output are in `mlxport.json`."""

_FOR_TEXTS = "for models that read texts"


def _hears(config: Mapping[str, Any], tensors: Collection[str]) -> bool:
    """Whether transformers has the class as one that hears and writes, and torch is there to capture it."""
    both = config.get("is_encoder_decoder") is True
    return both and claims_class(config, tensors, "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES")


def _opens_speech(checkpoint: Checkpoint, options: LayoutOptions) -> Conversion:
    # Nothing else than the port and its verification knows how to run what reads no tokens.
    return replace(_opens(checkpoint, options), model=None)


GENERATED_SPEECH = replace(
    GENERATED_SEQ2SEQ,
    name="generated-speech",
    summary="MLX source of its own for an encoder that hears and a decoder that writes on mlx-lm's caches",
    claims=_hears,
    opens=_opens_speech,
    traces=None,
    refuses=(
        Refusal(("distill", "report"), f"{{given}}: {_FOR_TEXTS}", "leave it out"),
        _NO_KV_BITS,
        *measured_on_text(_FOR_TEXTS),
        NO_MLXFN,
    ),
    task="automatic-speech-recognition",
    usage=_HEARS,
    run_by="its encode and mlx-lm's generate_step, from Python",
    not_generating=(
        "a port that hears: it reads features of sound, not a prompt",
        "call it from Python: mlxport.load(PATH) has encode and make_cache, the folder's README.md says how",
    ),
)
