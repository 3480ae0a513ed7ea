"""Tiny codecs of sound as publishers lay them out: EnCodec of one and of two channels, DAC and Mimi."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

SEANET: dict[str, Any] = {
    "num_filters": 4,
    "upsampling_ratios": [4, 3],
    "sampling_rate": 1200,
    "codebook_size": 16,
    "codebook_dim": 8,
}


def _spread(model: Any, latents: Callable[[Any], torch.Tensor] | None) -> None:
    """Random weights, and codebooks spread as what they are looked up for, so that codes differ."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.endswith("original0"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
            else:
                parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
        if latents is None:
            return
        found = latents(0.3 * torch.randn(1, model.config.audio_channels, 600, generator=generator))
        middle, wide = found.mean(dim=(0, 2)), found.std(dim=(0, 2))
        for layer, codebook in enumerate(module for module in model.modules() if hasattr(module, "codebook_size")):
            for name, buffer in codebook.named_buffers(recurse=False):
                if name in ("embed", "embed_sum"):
                    noise = torch.randn(buffer.shape, generator=generator)
                    buffer.copy_(middle * (layer == 0) + noise * wide * 0.7**layer)


def _saved(folder: Path, model: Any, extractor: Any, latents: Callable[[Any], torch.Tensor] | None = None) -> Any:
    _spread(model.eval(), latents)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return model


def save_encodec(folder: Path) -> Any:
    """As the one of 24 kHz: causal, one channel, a sound as a whole; three codebooks."""
    torch.manual_seed(0)
    config = transformers.EncodecConfig(**SEANET, hidden_size=8, num_lstm_layers=1, target_bandwidths=[0.4, 0.8, 1.2])
    extractor = transformers.EncodecFeatureExtractor(feature_size=1, sampling_rate=1200)
    model = transformers.EncodecModel(config)
    return _saved(folder, model, extractor, model.encoder)


def save_stereo(folder: Path) -> Any:
    """As the EnCodec of 48 kHz: two channels, chunks that overlap, loudness apart, norms over time."""
    torch.manual_seed(1)
    chunks = {"chunk_length_s": 0.2, "overlap": 0.05}
    config = transformers.EncodecConfig(
        **SEANET, **chunks, hidden_size=8, num_lstm_layers=1, target_bandwidths=[0.4, 0.8], audio_channels=2,
        normalize=True, norm_type="time_group_norm", use_causal_conv=False,
    )  # fmt: skip
    extractor = transformers.EncodecFeatureExtractor(feature_size=2, sampling_rate=1200, **chunks)
    model = transformers.EncodecModel(config)
    return _saved(folder, model, extractor, model.encoder)


def save_dac(folder: Path) -> Any:
    """Three codebooks, and a stride that is odd."""
    torch.manual_seed(2)
    config = transformers.DacConfig(
        encoder_hidden_size=4, downsampling_ratios=[3, 4], decoder_hidden_size=16, n_codebooks=3, codebook_size=16,
        codebook_dim=4, sampling_rate=1200,
    )  # fmt: skip
    extractor = transformers.DacFeatureExtractor(sampling_rate=1200, hop_length=12)
    return _saved(folder, transformers.DacModel(config), extractor)


def save_mimi(folder: Path) -> Any:
    """One codebook for what is said and two for how, and transformers on both sides of them."""
    torch.manual_seed(4)
    config = transformers.MimiConfig(
        **SEANET, hidden_size=16, num_quantizers=3, vector_quantization_hidden_dimension=8, upsample_groups=16,
        num_hidden_layers=1, intermediate_size=24, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        sliding_window=10, max_position_embeddings=64,
    )  # fmt: skip
    extractor = transformers.EncodecFeatureExtractor(feature_size=1, sampling_rate=1200)
    model = transformers.MimiModel(config)
    project = model.quantizer.acoustic_residual_vector_quantizer.input_proj
    return _saved(folder, model, extractor, lambda wave: project(model.encoder(wave).latents))


CODECS: dict[str, Callable[[Path], Any]] = {
    "encodec": save_encodec,
    "stereo": save_stereo,
    "dac": save_dac,
    "mimi": save_mimi,
}
