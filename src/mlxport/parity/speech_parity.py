"""A Whisper that mlx-whisper loads against the original: the encoder's states and the decoder's logits of a recording.

mlx-whisper's own, unmodified model computes them, in float32 on the stored weights. Of a quantized output three things
are shown instead, as of a port: with the original's weights the model computes what the original does, the packed
weights are the original's, and they are computed with as with the values that they stand for.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from mlx.utils import tree_map

from mlxport.errors import UnsupportedError
from mlxport.graph.capture.examples import Example
from mlxport.layouts.mlx_whisper.dimensions import read_dimensions
from mlxport.layouts.mlx_whisper.opening import plain_weights, tensors_by_name
from mlxport.layouts.mlx_whisper.weight_names import mlx_name
from mlxport.model.memory import refuse_large
from mlxport.parity.plain_ports import PlainPorts, plain_ports
from mlxport.parity.port_bisect import wrong_weights
from mlxport.parity.port_parity import verify_port
from mlxport.parity.port_report import PortParity
from mlxport.parity.torch_rows import read_tensor
from mlxport.quant.tolerances import SPEECH, lossless
from mlxport.run.media.made_voice import made_voice
from mlxport.transform import float32, st_dtype
from mlxport.types import Checkpoint

__all__ = ["LOADER", "MISSING", "compare_speech"]

LOADER = "mlx_whisper.load_models"
MISSING = "mlx-whisper is not installed (pip install 'mlxport[whisper]')"
_TOKENS = (5, 17, 900, 31, 2048, 220)
_COPIES = 4  # of the weights in float32, of a quantized output: two in MLX beside the stored ones, and torch's


def compare_speech(
    folder: Path, checkpoint: Checkpoint, *, dtype: str, bits: int | None, parameters: int
) -> PortParity:
    """Run both on one clip of 30 seconds.

    Args:
        folder: The output.
        checkpoint: The original.
        dtype: Of the output's floating tensors.
        bits: Fewest bits of a quantized module, None where nothing is quantized.
        parameters: Of the model.

    Raises:
        UnsupportedError: mlx-whisper is not installed, or the two need more memory than is free.
    """
    if importlib.util.find_spec(LOADER.partition(".")[0]) is None:
        raise UnsupportedError(MISSING, hint="pip install 'mlxport[whisper]', then: mlxport verify DST --against SRC")
    needed = 4 * parameters * (_COPIES if bits is not None else 2)
    refuse_large(needed, "the models' {} run in memory")
    model, wanted = _loaded(folder), plain_weights(checkpoint, dtype)
    original = _Original(_original(checkpoint, np.array(model.encoder._positional_embedding)))
    wrong, plain = wrong_weights(model, wanted), None
    if bits is not None:
        found = plain_ports(model, lambda: _empty(model), wanted)
        found.original.update(tree_map(float32, found.original.parameters()))  # half precision would be a difference
        plain = PlainPorts(_Output(found.original), _Output(found.dequantized), found.weights)
    else:
        model.update(tree_map(float32, model.parameters()))
    sources = {ref.dtype for ref in checkpoint.tensors.values()}
    stored = st_dtype(getattr(mx, dtype))
    row = SPEECH if all(lossless(source, stored) for source in sources) else dtype
    report = verify_port(_Output(model), lambda: original, [_example(model)], dtype=row, bits=bits, plain=plain)
    report = report.with_wrong(wrong)
    return replace(report, notes=(*report.notes, "computed in float32 on both sides, by mlx-whisper's own model"))


class _Original(torch.nn.Module):  # type: ignore[misc]
    """Transformers' Whisper with the states of its encoder among its outputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_features: torch.Tensor, decoder_input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """States [1, positions, width] and logits [1, tokens, vocabulary]."""
        made = self.model(input_features=input_features, decoder_input_ids=decoder_input_ids, use_cache=False)
        return {"encoder": made.encoder_last_hidden_state, "logits": made.logits}


class _Output(nn.Module):  # type: ignore[misc]
    """mlx-whisper's model, called as transformers' is."""

    def __init__(self, whisper: Any) -> None:
        super().__init__()
        self.whisper = whisper

    def __call__(self, input_features: mx.array, decoder_input_ids: mx.array) -> dict[str, mx.array]:
        states = self.whisper.encoder(input_features.transpose(0, 2, 1))
        return {"encoder": states, "logits": self.whisper.decoder(decoder_input_ids, states)[0]}


def _loaded(folder: Path) -> Any:
    """By mlx-whisper's own loader."""
    loading = importlib.import_module(LOADER)
    return loading.load_model(str(folder), dtype=mx.float32)


def _empty(model: Any) -> Any:
    """The same model with nothing quantized; its weights are those that it is made with."""
    whisper = importlib.import_module("mlx_whisper.whisper")
    return whisper.Whisper(model.dims, mx.float32)


def _original(checkpoint: Checkpoint, positions: np.ndarray[Any, Any]) -> Any:
    """The checkpoint's model in torch, by transformers' own code, in float32.

    Args:
        checkpoint: The original.
        positions: The encoder's sinusoids as mlx-whisper computes them: a stored table is rounded (it is compared when
            the checkpoint is opened), and silent frames make 50 times as much of that.
    """
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = read_dimensions(checkpoint.config, "config.json")
    config = WhisperConfig(**sizes.as_transformers(), attn_implementation="eager")
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    held = tensors_by_name(checkpoint.tensors)
    state: Mapping[str, torch.Tensor] = {
        name: read_tensor(held[mlx_name(name)]).to(torch.float32)
        for name in model.state_dict()
        if mlx_name(name) in held
    }
    model.load_state_dict(state, strict=False, assign=True)
    model.model.encoder.embed_positions.weight = torch.nn.Parameter(torch.from_numpy(positions), requires_grad=False)
    model.tie_weights()
    return model.eval()


def _example(model: Any) -> Example:
    """Features of 30 seconds of made sound, by transformers' extractor."""
    from transformers import WhisperFeatureExtractor

    sizes = model.dims
    extractor = WhisperFeatureExtractor(feature_size=sizes.n_mels)
    made = extractor(made_voice(30.0, extractor.sampling_rate, 0), sampling_rate=extractor.sampling_rate)
    features = torch.from_numpy(np.asarray(made["input_features"], np.float32))
    tokens = torch.tensor([[sizes.n_vocab - 1607, *_TOKENS]])  # the one that every text begins with, first
    return Example("a clip of 30 s", (), {"input_features": features, "decoder_input_ids": tokens})
