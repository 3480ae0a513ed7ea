"""Tiny models of pictures and text of several families, as their publishers lay them out, with processors of theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from vision_models import TEMPLATE, byte_tokenizer, save_spread

MEAN = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
SEEN: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": 56,
}
SHOWN = TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "PLACE")


@dataclass(frozen=True, kw_only=True)
class TinyFamily:
    """How a tiny checkpoint of a family is made.

    Attributes:
        model: Name of transformers' class.
        config: Its config, without ids of tokens.
        special: Special tokens; those in ``ids`` are named in the config.
        ids: Field of the config to token.
        place: What the chat template writes for a picture.
        files: Side files by name.
        tokenizer: What the tokenizer's config says besides.
        spread: Of the random weights: where states are divided by what may be near nothing, less of it.
    """

    model: str
    config: Mapping[str, Any]
    special: tuple[str, ...]
    ids: Mapping[str, str]
    place: str
    files: Mapping[str, Mapping[str, Any]]
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    spread: float = 0.8


_QWEN_PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor", "patch_size": 16,
    "temporal_patch_size": 2, "merge_size": 2, "size": {"shortest_edge": 4096, "longest_edge": 40960},
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
_TILES = {
    **MEAN, "image_processor_type": "SmolVLMImageProcessor", "size": {"longest_edge": 112},
    "max_image_size": {"longest_edge": 56}, "do_image_splitting": True, "do_pad": True,
}  # fmt: skip
_SMOLVLM = TinyFamily(
    model="SmolVLMForConditionalGeneration",
    config={
        "text_config": {**TEXT, "model_type": "llama"}, "vision_config": SEEN, "scale_factor": 2,
        "tie_word_embeddings": True,
    },
    special=(
        "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
        *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
    ),
    ids={"image_token_id": "<image>"},
    place="<image>",
    files={
        "preprocessor_config.json": _TILES,
        "processor_config.json": {"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
    },
)  # fmt: skip
_QWEN3_VL = TinyFamily(
    model="Qwen3VLForConditionalGeneration",
    config={
        "text_config": {**TEXT, "rope_parameters": {
            "rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True,
        }},
        "vision_config": {
            "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
        },
    },
    special=("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    ids={
        "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
    },
    place="<|vision_start|><|image_pad|><|vision_end|>",
    files={"preprocessor_config.json": _QWEN_PROCESSOR},
)  # fmt: skip
_MISTRAL3 = TinyFamily(
    model="Mistral3ForConditionalGeneration",
    config={
        "text_config": {**TEXT, "model_type": "mistral", "sliding_window": None},
        "vision_config": {**SEEN, "model_type": "pixtral", "image_size": 140, "head_dim": 16, "hidden_act": "silu"},
    },
    special=("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
    ids={"image_token_index": "[IMG]"},
    place="[IMG]",
    files={
        "preprocessor_config.json": {
            **MEAN, "image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 84},
            "patch_size": {"height": 28, "width": 28},
        },
        "processor_config.json": {
            "processor_class": "PixtralProcessor", "patch_size": 14, "spatial_merge_size": 2, "image_token": "[IMG]",
            "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]",
        },
    },
)  # fmt: skip
FAMILIES: dict[str, TinyFamily] = {
    "qwen3_vl": _QWEN3_VL,
    "qwen3_5": TinyFamily(
        model="Qwen3_5ForConditionalGeneration",
        config={
            "text_config": {
                **TEXT, "num_hidden_layers": 4, "head_dim": 32, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
                "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4,
                "layer_types": ["linear_attention", "full_attention"] * 2,
                "rope_parameters": {
                    "rope_type": "default", "rope_theta": 1e7, "mrope_section": [3, 3, 2], "mrope_interleaved": True,
                    "partial_rotary_factor": 0.5,
                },
            },
            "vision_config": {
                key: value for key, value in _QWEN3_VL.config["vision_config"].items() if "deepstack" not in key
            },
        },
        special=_QWEN3_VL.special, ids=_QWEN3_VL.ids, place=_QWEN3_VL.place, files=_QWEN3_VL.files,
        spread=0.4,
    ),
    "smolvlm": _SMOLVLM,
    "idefics3": replace(
        _SMOLVLM, model="Idefics3ForConditionalGeneration",
        files={
            "preprocessor_config.json": {**_TILES, "image_processor_type": "Idefics3ImageProcessor"},
            "processor_config.json": {"processor_class": "Idefics3Processor", "image_seq_len": 4},
        },
    ),
    "gemma3": TinyFamily(
        model="Gemma3ForConditionalGeneration",
        config={
            "text_config": {
                **TEXT, "hidden_size": 96, "sliding_window": 40, "sliding_window_pattern": 2,
                "query_pre_attn_scalar": 16, "pad_token_id": 256,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
            },
            "vision_config": {**SEEN, "vision_use_head": False},
            "mm_tokens_per_image": 4,
        },
        special=("<start_of_image>", "<image_soft_token>", "<end_of_image>"),
        ids={
            "image_token_index": "<image_soft_token>", "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
        },
        place="<start_of_image>",
        files={
            "preprocessor_config.json": {
                **MEAN, "image_processor_type": "Gemma3ImageProcessor", "size": {"height": 56, "width": 56},
            },
            "processor_config.json": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
        },
        tokenizer={"extra_special_tokens": {
            "boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>",
        }},
    ),
    "mistral3": _MISTRAL3,
    "ministral3": replace(_MISTRAL3, config={
        **_MISTRAL3.config, "text_config": {**TEXT, "model_type": "ministral3", "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 32,
            "max_position_embeddings": 512, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        }},
    }),
    "llava": TinyFamily(
        model="LlavaForConditionalGeneration",
        config={
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**SEEN, "model_type": "clip_vision_model", "num_hidden_layers": 3, "projection_dim": 32},
        },
        special=("<image>",),
        ids={"image_token_index": "<image>"},
        place="<image>",
        files={
            "preprocessor_config.json": {
                **MEAN, "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 56},
                "crop_size": {"height": 56, "width": 56}, "do_center_crop": True,
            },
            "processor_config.json": {
                "processor_class": "LlavaProcessor", "patch_size": 14, "num_additional_image_tokens": 1,
                "vision_feature_select_strategy": "default", "image_token": "<image>",
            },
        },
    ),
}  # fmt: skip


def write_family(folder: Path, name: str) -> Path:
    """A checkpoint in bfloat16, as transformers 5 saves it."""
    family = FAMILIES[name]
    made = byte_tokenizer(family.special)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>", **family.tokenizer
    ).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(SHOWN.replace("PLACE", family.place))
    for file, values in family.files.items():
        (folder / file).write_text(json.dumps(values))
    ids = {key: made.token_to_id(token) for key, token in family.ids.items()}
    text = {**family.config["text_config"], "vocab_size": made.get_vocab_size()}
    kind = getattr(transformers, family.model)
    given = {**family.config, **ids, "text_config": text, "eos_token_id": made.token_to_id("<|im_end|>")}
    torch.manual_seed(0)
    save_spread(folder, kind(kind.config_class(**given)), family.spread)
    return folder


def config_of_2025(config: dict[str, Any]) -> dict[str, Any]:
    """The same config as transformers 4 wrote it: rotary embeddings said in two fields, defaults left out."""
    text = dict(config["text_config"])
    rope = text.pop("rope_parameters")
    if "full_attention" in rope:
        text["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        text["sliding_window_pattern"] = text.pop("_sliding_window_pattern")
        rope = rope["full_attention"]
    if {"llama_4_scaling_beta", "partial_rotary_factor"} & rope.keys():  # never saved otherwise than today
        return config
    text["rope_theta"] = rope["rope_theta"]
    if scaled := {key: value for key, value in rope.items() if key not in ("rope_theta", "mrope_interleaved")}:
        text["rope_scaling"] = scaled if set(scaled) > {"rope_type"} else None
    for usual in ("attention_bias", "hidden_act", "mlp_bias", "attention_dropout", "initializer_range"):
        text.pop(usual, None)
    made = {key: value for key, value in config.items() if key not in ("text_config", "dtype")}
    return {**made, "text_config": {**text, "torch_dtype": "bfloat16"}, "torch_dtype": "bfloat16"}


def names_of_2025(name: str) -> str:
    """A tensor as checkpoints of 2025 call it, whose towers keep a level that transformers 5 leaves out."""
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1) if _joined(name) else name


def names_in_memory(name: str) -> str:
    """A tensor as transformers 5 calls it in memory, and saves it where nothing says otherwise."""
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    name = name.replace("language_model.model.", "language_model.", 1)
    return f"model.{name}" if _joined(name) else name


def _joined(name: str) -> bool:
    return name.startswith(("language_model.", "vision_tower.", "multi_modal_projector."))
