"""Neural codecs of sound, as data: a part that makes codes of a wave, and one that makes a wave of codes.

The codebooks of a codec refine each other, so codes of fewer are the first rows of those of all: ``encode`` gives all,
and ``decode`` takes -1 for codes that are not there.
"""

from __future__ import annotations

from math import prod
from typing import Any

from mlxport.layouts.generated.model_parts import Part, PartedModel

__all__ = ["CODECS", "codebooks"]

_USAGE = """\
## Use

```python
import mlxport

model = mlxport.load("PATH")
found = model.encode(input_values=samples)  # float32, [batch, channels, samples], at the model's rate
wave = model.decode(**found)  # codes are found["audio_codes"], [batch, codebooks, frames]; -1 for one that is left out
```

`PATH` is this folder. Each part is a file that needs nothing but `mlx`, with a `load` of its own: `encode.py`,
`decode.py`. They share the weights. The exact options, versions and hashes of source and output are in
`mlxport.json`."""

_FRAMES = (5, 7)  # of the examples of encode and of decode


def _waves(model: Any) -> dict[str, Any]:
    """Noise in the place of sound, of a length that no stride divides."""
    import torch

    hop, channels = _hop(model.config), getattr(model.config, "audio_channels", 1)
    length = _FRAMES[0] * hop + hop // 2 + 1
    made = torch.randn(2, channels, length, generator=torch.Generator().manual_seed(0))
    return {"input_values": made.to(model.dtype)}


def _codes(model: Any) -> dict[str, Any]:
    """Any codes, and how loud they are where that is not coded."""
    import torch

    generator = torch.Generator().manual_seed(0)
    size = (3, codebooks(model.config), _FRAMES[1])
    made = {"audio_codes": torch.randint(0, model.config.codebook_size, size, generator=generator)}
    if getattr(model.config, "normalize", False):
        made["audio_scales"] = (torch.rand(3, 1, generator=generator) + 0.5).to(model.dtype)
    return made


def _hop(config: Any) -> int:
    """Samples of a frame."""
    return int(prod(config.upsampling_ratios))


def codebooks(config: Any) -> int:
    """How many codebooks the codec of a config of transformers has."""
    return int(config.n_codebooks if hasattr(config, "n_codebooks") else config.num_quantizers)


def _encodec_encode(model: Any, input_values: Any) -> dict[str, Any]:
    """As the class does it with a chunk: the wave, over its own loudness where the config says so."""
    scales = {}
    if model.config.normalize:
        mono = input_values.sum(dim=1, keepdim=True) / input_values.shape[1]
        loud = mono.pow(2).mean(dim=-1, keepdim=True).sqrt() + 1e-8
        input_values, scales = input_values / loud, {"audio_scales": loud[:, 0]}
    codes = model.quantizer.encode(model.encoder(input_values), model.config.target_bandwidths[-1])
    return {"audio_codes": codes.transpose(0, 1), **scales}


def _encodec_decode(model: Any, audio_codes: Any, audio_scales: Any = None) -> Any:
    return model._decode_frame(audio_codes, audio_scales)


def _encodec_whole(model: Any, input_values: Any) -> Any:
    codes, scales, short = model.encode(input_values, bandwidth=model.config.target_bandwidths[-1], return_dict=False)
    return model.decode(codes, scales, return_dict=False, last_frame_pad_length=short)[0]


def _dac_encode(model: Any, input_values: Any) -> dict[str, Any]:
    return {"audio_codes": model.encode(input_values, return_dict=False)[2]}


def _dac_decode(model: Any, audio_codes: Any) -> Any:
    return model.decode(audio_codes=audio_codes, return_dict=False)[0][:, None]


def _mimi_encode(model: Any, input_values: Any) -> dict[str, Any]:
    return {"audio_codes": model.encode(input_values, return_dict=True).audio_codes}


def _mimi_decode(model: Any, audio_codes: Any) -> Any:
    return model.decode(audio_codes, return_dict=True).audio_values


def _in_turn(encode: Any, decode: Any) -> Any:
    """The wave that a class makes of its own codes."""
    return lambda model, input_values: decode(model, **encode(model, input_values))


def _ready_for_capture(model: Any) -> None:
    from mlxport.layouts.generated.codec_capture import ready_for_capture

    ready_for_capture(model)


def _codec(model_type: str, encode: Any, decode: Any, whole: Any = None) -> PartedModel:
    of_encode = {"audio_codes": "encode", "audio_scales": "encode"}
    return PartedModel(
        mapping="MODEL_MAPPING_NAMES",
        model_types=frozenset({model_type}),
        task="audio-to-audio",
        usage=_USAGE,
        parts=(
            Part("encode", ("input_values",), encode, example=_waves),
            Part("decode", ("audio_codes", "audio_scales"), decode, of_encode, _codes),
        ),
        whole=whole or _in_turn(encode, decode),
        prepare=_ready_for_capture,
    )


CODECS = (
    _codec("encodec", _encodec_encode, _encodec_decode, _encodec_whole),
    _codec("dac", _dac_encode, _dac_decode),
    _codec("mimi", _mimi_encode, _mimi_decode),
)
