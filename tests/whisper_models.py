"""Tiny random Whispers of the sizes that mlx-whisper has tokens and filters for, as publishers lay them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

WIDTH = 32
HEADS = [[0, 1], [1, 0]]
# transformers' names to OpenAI's, which are nearly mlx-whisper's.
_OPENAI = (
    ("model.", ""), (".layers.", ".blocks."), (".self_attn_layer_norm.", ".attn_ln."),
    (".encoder_attn_layer_norm.", ".cross_attn_ln."), (".final_layer_norm.", ".mlp_ln."), (".self_attn.", ".attn."),
    (".encoder_attn.", ".cross_attn."), (".q_proj.", ".query."), (".k_proj.", ".key."), (".v_proj.", ".value."),
    (".out_proj.", ".out."), (".fc1.", ".mlp.0."), (".fc2.", ".mlp.2."), ("encoder.layer_norm.", "encoder.ln_post."),
    ("decoder.layer_norm.", "decoder.ln."), ("decoder.embed_tokens.", "decoder.token_embedding."),
    ("embed_positions.weight", "positional_embedding"),
)  # fmt: skip


def make_whisper(**changed: Any) -> Any:
    """A seeded model of two layers whose tokens differ."""
    sizes: dict[str, Any] = {
        "vocab_size": 51864, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 4 * WIDTH, "decoder_ffn_dim": 4 * WIDTH,
        "decoder_start_token_id": 50257, "eos_token_id": 50256, "bos_token_id": 50256, "pad_token_id": 50256,
        "suppress_tokens": None, "begin_suppress_tokens": None,
    }  # fmt: skip
    torch.manual_seed(3)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**{**sizes, **changed})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoder.embed_positions" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def save_whisper(folder: Path, model: Any, *, shard: str = "1GB", dtype: torch.dtype = torch.float32) -> Path:
    """Save it with what generation and the extractor read."""
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text()) | {"alignment_heads": HEADS, "no_timestamps_token_id": 50362}
    path.write_text(json.dumps(generation))
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
    return folder


def save_openai(path: Path, model: Any) -> Path:
    """Save it as OpenAI does: ``dims`` and ``model_state_dict`` in one file."""
    config, state = model.config, {}
    for name, tensor in model.state_dict().items():
        if name == "proj_out.weight":
            continue
        for ours, theirs in _OPENAI:
            name = name.replace(ours, theirs)
        state[name] = tensor.half()
    dims = {
        "n_mels": config.num_mel_bins, "n_vocab": config.vocab_size, "n_audio_ctx": 1500, "n_audio_state": WIDTH,
        "n_audio_head": 2, "n_audio_layer": 2, "n_text_ctx": 448, "n_text_state": WIDTH, "n_text_head": 2,
        "n_text_layer": 2,
    }  # fmt: skip
    torch.save({"dims": dims, "model_state_dict": state}, path)
    return path
