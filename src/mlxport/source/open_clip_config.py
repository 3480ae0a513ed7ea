"""Configs of OpenCLIP: what transformers calls the same model, where it has it.

The fields and what they default to are those of https://github.com/mlfoundations/open_clip, src/open_clip/model.py
(CLIPVisionCfg, CLIPTextCfg) and transform.py (PreprocessCfg).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mlxport.errors import ConfigError, UnsupportedError
from mlxport.source.jsonfile import read_object

__all__ = ["OPEN_CLIP", "clip_config", "config_name", "is_open_clip", "picture_processor_of"]

OPEN_CLIP = "open_clip_config.json"
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_PILLOW = {"nearest": 0, "bilinear": 2, "bicubic": 3}
_TOWERS = ("vision_cfg", "text_cfg")
_TOWER = {"mlp_ratio": 4.0, "patch_size": 16, "head_width": 64, "image_size": 224, "width": 768, "layers": 12}
_WORDS = {"mlp_ratio": 4.0, "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
# Fields that change nothing where they say this, of what transformers' CLIP does not have, or only for training.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "pool_type": ("tok", "argmax"),
    "pos_embed_type": ("learnable",),
    "proj_type": ("linear",),
    "block_type": (None, "default"),
}
_NO_MATTER = frozenset(
    "patch_dropout attn_pooler_queries attn_pooler_heads output_tokens pad_id eos_id hf_tokenizer_name tokenizer_mode "
    "tokenizer_kwargs timm_model_pretrained timm_pool timm_proj timm_proj_bias timm_drop timm_drop_path "
    "hf_model_pretrained hf_proj_type hf_pooler_type".split()
)
_OTHER = "port it by a function that returns the module with example inputs: mlxport port FILE.py:FACTORY DST"


def config_name(present: Collection[str]) -> str:
    """The file that says what a folder's weights are of: OpenCLIP's only where there is no ``config.json``."""
    return OPEN_CLIP if "config.json" not in present and OPEN_CLIP in present else "config.json"


def is_open_clip(root: Path) -> bool:
    """Whether a folder is of OpenCLIP alone."""
    return config_name([name for name in ("config.json", OPEN_CLIP) if (root / name).is_file()]) == OPEN_CLIP


def clip_config(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config of transformers' CLIP that computes what a model of OpenCLIP does.

    Args:
        given: The parsed ``open_clip_config.json``.
        where: What to call it in an error.

    Raises:
        ConfigError: A part is absent, or a size no whole number.
        UnsupportedError: transformers' CLIP has not what the model has (CoCa, other towers); names the field.
    """
    model = _part(given, "model_cfg", where)
    for name in ("multimodal_cfg", "init_logit_bias", "vision_cfg_2", "audio_cfg"):
        if model.get(name) is not None:
            raise UnsupportedError(f"{where}: {name}: transformers' CLIP has no such part", hint=_OTHER)
    vision, text = (_part(model, name, where) for name in _TOWERS)
    _refuse_others(vision, _TOWER, f"{where}: vision_cfg")
    _refuse_others(text, _WORDS, f"{where}: text_cfg")
    vision, text = {**_TOWER, **vision}, {**_WORDS, **text}
    width = _size(model, "embed_dim", where)
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    heads = _size(vision, "width", where) // _size(vision, "head_width", where)
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": width,
        "vision_config": {
            **_layers(vision, heads, activation, where), "projection_dim": width,
            "image_size": _size(vision, "image_size", where), "patch_size": _size(vision, "patch_size", where),
        },
        "text_config": {
            **_layers(text, _size(text, "heads", where), activation, where), "projection_dim": width,
            "vocab_size": _size(text, "vocab_size", where),
            "max_position_embeddings": _size(text, "context_length", where),
            "eos_token_id": 2,  # by which transformers takes the state at the highest id, as OpenCLIP does
        },
    }  # fmt: skip


def picture_processor_of(root: Path) -> dict[str, Any]:
    """``preprocessor_config.json`` of transformers' CLIP that prepares pictures as a folder of OpenCLIP says.

    Raises:
        UnsupportedError: They are resized in a way that it has not.
    """
    return _picture_processor(read_object(root / OPEN_CLIP, ConfigError, unique=False), str(root / OPEN_CLIP))


def _picture_processor(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    pictures = given.get("preprocess_cfg")
    pictures = pictures if isinstance(pictures, Mapping) else {}
    edge = _size({**_TOWER, **_part(_part(given, "model_cfg", where), "vision_cfg", where)}, "image_size", where)
    mode, filtered = pictures.get("resize_mode") or "shortest", pictures.get("interpolation") or "bicubic"
    if mode not in ("shortest", "squash") or filtered not in _PILLOW:
        what = f"resize_mode {mode!r} with interpolation {filtered!r}"
        raise UnsupportedError(f"{where}: preprocess_cfg: {what} is not known to transformers' CLIP", hint=_OTHER)
    whole = {"height": edge, "width": edge}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": edge} if mode == "shortest" else whole,
        "crop_size": whole,
        "do_center_crop": mode == "shortest",
        "resample": _PILLOW[filtered],
        "image_mean": list(pictures.get("mean") or _MEAN),
        "image_std": list(pictures.get("std") or _STD),
    }


def _part(given: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    found = given.get(name)
    if not isinstance(found, Mapping):
        raise ConfigError(f"{where}: {name} is {str(found)[:80]!r}, expected an object", hint="get the file again")
    return found


def _refuse_others(part: Mapping[str, Any], sizes: Collection[str], where: str) -> None:
    """Refuse a tower with what transformers' CLIP has not, by the first field that says so."""
    for name, value in part.items():
        plain = name in sizes or name in _NO_MATTER or value in _PLAIN.get(name, (None, False))
        if not plain or (name == "layers" and isinstance(value, list)):
            raise UnsupportedError(
                f"{where}: {name} is {str(value)[:80]!r}, and transformers' CLIP has no such tower", hint=_OTHER
            )


def _layers(part: Mapping[str, Any], heads: int, activation: str, where: str) -> dict[str, Any]:
    """What a tower of transformers' CLIP is built of; its norms' epsilon is torch's."""
    width = _size(part, "width", where)
    return {
        "hidden_size": width,
        "intermediate_size": int(width * part["mlp_ratio"]),
        "num_hidden_layers": _size(part, "layers", where),
        "num_attention_heads": heads,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
    }


def _size(part: Mapping[str, Any], name: str, where: str) -> int:
    value = part.get(name)
    if name == "image_size" and isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    if type(value) is not int or value < 1:
        raise ConfigError(f"{where}: {name} is {str(value)[:80]!r}, expected a whole number", hint="get the file again")
    return value
