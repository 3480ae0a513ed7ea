"""The ten sizes that mlx-whisper reads of a config, and what it cannot compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlxport.errors import ConfigError

__all__ = ["Dimensions", "read_dimensions", "why_not"]

# Fields of transformers' WhisperConfig with their defaults, and the other names that it takes for them.
_FIELDS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "num_mel_bins": (80, ()),
    "max_source_positions": (1500, ()),
    "d_model": (384, ("hidden_size",)),
    "encoder_attention_heads": (6, ("num_attention_heads",)),
    "encoder_layers": (4, ("num_hidden_layers",)),
    "vocab_size": (51865, ()),
    "max_target_positions": (448, ()),
    "decoder_attention_heads": (6, ()),
    "decoder_layers": (4, ()),
    "encoder_ffn_dim": (1536, ()),
    "decoder_ffn_dim": (1536, ()),
}
_MELS = (80, 128)
_POSITIONS = 1500  # 30 seconds: mlx-whisper cuts and pads to nothing else
_VOCABULARIES = {51864: "English", 51865: "99 languages", 51866: "100 languages"}
_CLASSES = ("WhisperForConditionalGeneration", "WhisperModel")


@dataclass(frozen=True)
class Dimensions:
    """``mlx_whisper.whisper.ModelDimensions``: its fields, in its order."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int

    def as_config(self) -> dict[str, int]:
        """What stands in config.json."""
        return asdict(self)

    def as_transformers(self) -> dict[str, Any]:
        """The config of the same model in transformers."""
        return {
            "model_type": "whisper",
            "architectures": [_CLASSES[0]],
            "num_mel_bins": self.n_mels,
            "max_source_positions": self.n_audio_ctx,
            "d_model": self.n_audio_state,
            "encoder_attention_heads": self.n_audio_head,
            "encoder_layers": self.n_audio_layer,
            "encoder_ffn_dim": 4 * self.n_audio_state,
            "vocab_size": self.n_vocab,
            "max_target_positions": self.n_text_ctx,
            "decoder_attention_heads": self.n_text_head,
            "decoder_layers": self.n_text_layer,
            "decoder_ffn_dim": 4 * self.n_text_state,
        }


def read_dimensions(config: Mapping[str, Any], where: str) -> Dimensions:
    """The sizes of a config.json of transformers' Whisper, in any of its spellings.

    Raises:
        ConfigError: One is no positive number.
    """
    size = {name: _size(config, name, where) for name in _FIELDS}
    return Dimensions(
        n_mels=size["num_mel_bins"],
        n_audio_ctx=size["max_source_positions"],
        n_audio_state=size["d_model"],
        n_audio_head=size["encoder_attention_heads"],
        n_audio_layer=size["encoder_layers"],
        n_vocab=size["vocab_size"],
        n_text_ctx=size["max_target_positions"],
        n_text_state=size["d_model"],
        n_text_head=size["decoder_attention_heads"],
        n_text_layer=size["decoder_layers"],
    )


def why_not(config: Mapping[str, Any], where: str = "config.json") -> str:
    """What of a Whisper's config mlx-whisper computes otherwise, or has no tokens for; empty where nothing is.

    Raises:
        ConfigError: A size is no positive number.
    """
    size = {name: _size(config, name, where) for name in _FIELDS}
    classes = config.get("architectures")
    if isinstance(classes, list) and classes and classes[0] not in _CLASSES:
        return f"mlx-whisper transcribes, and this is a {classes[0]}"
    for name in ("encoder_ffn_dim", "decoder_ffn_dim"):
        if size[name] != 4 * size["d_model"]:
            return f"{name} is {size[name]}, and mlx-whisper's is 4 * d_model, {4 * size['d_model']}"
    if (activation := config.get("activation_function", "gelu")) != "gelu":
        return f"activation_function is {activation!r}, and mlx-whisper's is gelu"
    if config.get("scale_embedding"):
        return "scale_embedding is set, and mlx-whisper does not scale embeddings"
    if config.get("tie_word_embeddings") is False:
        return "tie_word_embeddings is false, and mlx-whisper's output layer is the embedding"
    if size["num_mel_bins"] not in _MELS:
        return f"num_mel_bins is {size['num_mel_bins']}, and mlx-whisper has filters for 80 and 128"
    if size["max_source_positions"] != _POSITIONS:
        return f"max_source_positions is {size['max_source_positions']}, and mlx-whisper reads {_POSITIONS}"
    if size["vocab_size"] not in _VOCABULARIES:
        known = ", ".join(f"{count} ({what})" for count, what in _VOCABULARIES.items())
        return f"vocab_size is {size['vocab_size']}, and mlx-whisper has the tokens of {known}"
    return ""


def _size(config: Mapping[str, Any], name: str, where: str) -> int:
    default, others = _FIELDS[name]
    found = next((config[key] for key in (name, *others) if config.get(key) is not None), default)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        hint = "get config.json again from where the weights are from"
        raise ConfigError(f"{where}: {name} is {found!r}, expected a positive whole number", hint=hint)
    return found
