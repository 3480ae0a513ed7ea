"""What a codec of transformers makes of a sound, in torch: no pipeline of transformers runs one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mlxport.run.tasks.recognizer import feature_extractor
from mlxport.run.tasks.sound_model import HeardExample
from mlxport.types import Checkpoint

__all__ = ["original_codec"]


def original_codec(checkpoint: Checkpoint) -> Callable[[HeardExample], dict[str, Any]]:
    """The original, called with an example: the codes, and the sound as long as the example, float32."""
    import transformers

    folder = str(checkpoint.root)
    extractor = feature_extractor(checkpoint.root)
    model = transformers.AutoModel.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32
    ).eval()
    chosen = _CHOSEN[str(model.config.model_type)]

    def heard(example: HeardExample) -> dict[str, Any]:
        samples = example.samples if len(example.samples) > 1 else example.samples[0]
        made = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        given = {name: made[name] for name in chosen.takes if name in made}
        with torch.inference_mode():
            found = model(**given, **chosen.option(model, example.count))
        audio = found.audio_values.numpy().astype(np.float32).reshape(len(example.samples), -1)
        return {"codes": found.audio_codes.numpy(), "audio": audio[:, : example.samples.shape[-1]]}

    return heard


@dataclass(frozen=True)
class _Chosen:
    """A class: how it is told the number of codebooks, and what it takes of its feature extractor."""

    option: Callable[[Any, int], Mapping[str, Any]]
    takes: tuple[str, ...] = ("input_values",)


def _bandwidth(model: Any, count: int) -> dict[str, float]:
    """The least of those that EnCodec uses so many codebooks for."""
    count_of = model.quantizer.get_num_quantizers_for_bandwidth
    return {"bandwidth": next(one for one in model.config.target_bandwidths if count_of(one) >= count)}


_CHOSEN: Mapping[str, _Chosen] = {
    "encodec": _Chosen(_bandwidth, ("input_values", "padding_mask")),
    "dac": _Chosen(lambda model, count: {"n_quantizers": count}),
    "mimi": _Chosen(lambda model, count: {"num_quantizers": count}),
}
