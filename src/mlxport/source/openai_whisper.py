"""Whisper as OpenAI publishes it: one torch file of ``dims`` and ``model_state_dict``.

The format is that of https://github.com/openai/whisper, whisper/__init__.py (load_model).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlxport.errors import ConfigError
from mlxport.source.file_state import state_of
from mlxport.source.torch_file import read_torch_checkpoint
from mlxport.types import Checkpoint

__all__ = ["open_whisper_file"]

# What OpenAI calls each size, and transformers' field of it.
_SIZES = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}


def open_whisper_file(path: Path, check_config: Callable[[Mapping[str, Any]], None] | None) -> Checkpoint | None:
    """The checkpoint in a file, under a config as transformers has it; None where it is no Whisper of OpenAI's.

    Raises:
        SourceError: As of ``read_torch_file``.
        ConfigError: A size is absent, or no number.
    """
    state = state_of(path)
    tensors, _, beside = read_torch_checkpoint(path)
    dims = beside.get("dims")
    if not isinstance(dims, Mapping) or "encoder.positional_embedding" not in tensors:
        return None
    for name in _SIZES:
        if type(dims.get(name)) is not int:
            found, hint = dims.get(name), "get the file again from where it is from"
            raise ConfigError(f"{path}: dims: {name} is {found!r}, expected a whole number", hint=hint)
    if dims["n_audio_state"] != dims["n_text_state"]:
        hint = "port it as a module of your own: mlxport port FILE.py:FACTORY DST"
        raise ConfigError(f"{path}: dims: n_audio_state and n_text_state differ", hint=hint)
    width = dims["n_text_state"]
    config: dict[str, Any] = {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        **{field: dims[name] for name, field in _SIZES.items()},
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
    }
    if check_config is not None:
        check_config(config)
    return Checkpoint(
        root=path.parent, config=config, tensors=tensors, weight_files=(path,),
        states={path: state} if state is not None else {},
    )  # fmt: skip
