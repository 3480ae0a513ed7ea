"""A tiny model of pictures and text as its publisher lays it out: shards, processor, chat template, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
OF_PICTURES = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
IDS = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}
VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "fullatt_block_indexes": [1],
    "window_size": 56,
}


def byte_tokenizer(special: Sequence[str]) -> Tokenizer:
    """A token for each byte, and special ones after these."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([*SPECIAL, *special])
    return made


def save_spread(folder: Path, model: Any, spread: float, **options: Any) -> None:
    """Save a model in bfloat16, its parameters spread so that tokens differ."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (spread / parameter.shape[-1] ** 0.5))
    model.to(torch.bfloat16).save_pretrained(folder, **options)


def write_tokenizer(folder: Path) -> dict[str, int]:
    """Bytes and special tokens; the ids that a config names."""
    made = byte_tokenizer(OF_PICTURES)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", *OF_PICTURES],
    ).save_pretrained(folder)  # fmt: skip
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return {name: made.token_to_id(token) for name, token in zip(IDS, OF_PICTURES, strict=True)}


def write_qwen(folder: Path) -> Path:
    """A checkpoint of Qwen2.5-VL, which Logics-Parsing is too, as transformers 5 saves it: three shards, bfloat16."""
    ids = write_tokenizer(folder)
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": 263}, vision_config=VISION, eos_token_id=258, **ids
    )
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    save_spread(folder, model, 0.8, max_shard_size="150KB")
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": 3136, "max_pixels": 60000, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def config_of_2025(config: dict[str, Any]) -> dict[str, Any]:
    """The same config as transformers 4 wrote it: text fields at the root, sections of the rope in rope_scaling."""
    text = {key: value for key, value in config["text_config"].items() if value is not None and key != "model_type"}
    rope = text.pop("rope_parameters")
    made = {key: value for key, value in config.items() if key not in ("text_config", "dtype")}
    vision = {**config["vision_config"], "in_chans": 3}
    vision.pop("model_type")
    return {
        **made, **text, "vision_config": vision, "torch_dtype": "bfloat16", "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }  # fmt: skip
