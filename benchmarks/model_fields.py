"""Fields of tiny configs, derived from the config classes of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VOCAB = 99
IMAGE = 64
LENGTH = 10

# Applied wherever a config class has the field.
TINY: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "text_vocab_size", "src_vocab_size", "tgt_vocab_size"), VOCAB),
    **dict.fromkeys(("vocab_size_per_layer_input", "t2u_vocab_size", "unit_hifi_gan_vocab_size"), VOCAB),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "encoder_hidden_size", "decoder_hidden_size"), 32),
    **dict.fromkeys(("embedding_size", "hidden_dim", "emb_dim", "text_hidden_size", "out_hidden_size", "dim"), 32),
    **dict.fromkeys(("projection_dim", "output_hidden_size", "attention_hidden_size", "encoder_hidden_dim"), 32),
    **dict.fromkeys(("pooler_output_size", "pooler_hidden_size", "projector_hidden_size", "embedding_dim"), 32),
    **dict.fromkeys(("fusion_hidden_size", "fpn_hidden_size", "mask_feature_size", "image_text_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "d_inner"), 48),
    **dict.fromkeys(("decoder_intermediate_size", "mlp_dim", "ffn_hidden_size", "dim_feedforward"), 48),
    **dict.fromkeys(("encoder_feedforward_dim", "speech_encoder_intermediate_size", "t2u_encoder_ffn_dim"), 48),
    **dict.fromkeys(("t2u_decoder_ffn_dim", "dff", "dim_ff", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers"), 2),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers", "num_encoder_layers", "decoder_num_hidden_layers"), 2),
    **dict.fromkeys(("t2u_encoder_layers", "t2u_decoder_layers", "speech_encoder_layers", "num_adapter_layers"), 2),
    **dict.fromkeys(("memory_attention_num_layers", "encoder_num_layers", "conf_num_hidden_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "decoder_num_attention_heads", "speech_encoder_attention_heads"), 4),
    **dict.fromkeys(("t2u_encoder_attention_heads", "t2u_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads"), 2),
    "swa_num_attention_heads": 4,
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "swa_head_dim", "kv_channels", "global_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "index_head_dim", "query_pre_attn_scalar"), 8),
    "qk_head_dim": 16,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"), 128),
    "max_source_positions": 50,
    "sliding_window": 4,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_top_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_expert_group"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    "shared_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "index_topk": 16,
    "index_n_heads": 16,
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("mamba_d_state", "state_size", "time_step_rank"), 8),
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank"), 8),
    **dict.fromkeys(("num_queries", "num_query_tokens"), 12),
    "num_denoising": 0,
    "num_mel_bins": 16,
    **dict.fromkeys(("codebook_size",), 32),
    **dict.fromkeys(("codevector_dim", "proj_codevector_dim", "xvector_output_dim", "classifier_proj_size"), 32),
    "conv_dim": (16, 16, 16),
    "conv_stride": (4, 2, 2),
    "conv_kernel": (8, 3, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "adapter_intermediate_size": 48,
    "upsample_initial_channel": 32,
    "upsample_groups": 32,
    "image_size": IMAGE,
    "pretrain_image_size": IMAGE,
    "num_frames": 4,
    "rotary_dim": 8,
    "relative_attention_num_buckets": 8,
    "layerdrop": 0.0,
    "num_buckets": 4,
    "axial_pos_shape": (4, 8),
    "axial_pos_embds_dim": (8, 24),
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "use_cache": False,
    "max_2d_position_embeddings": 128,
    "train_num_points": 16,
    "num_codevectors_per_group": 8,
    "max_text_len": 16,
    "bos_index": 0,
    "eos_index": 2,
    "pad_index": 1,
}
MULTIMODAL_TOKENS = ("image_token_id", "video_token_id", "audio_token_id", "image_token_index", "video_token_index",
                     "audio_token_index", "vision_start_token_id", "vision_end_token_id", "boi_token_id",
                     "eoi_token_id", "boa_token_id", "eoa_token_id", "image_start_token_id", "image_end_token_id",
                     "audio_start_token_id", "audio_end_token_id")  # fmt: skip
_MROPE = {"rope_type": "default", "rope_theta": 700.0, "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}
# Convolutions (kernel, stride, padding) over stripes of three lengths.
_STRIPES = {
    "reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0],
    **{f"vertical_long_to_small_conv_{name}ratio": [[size, 1], [1, 1], [size // 2, 0]]
       for name, size in (("long", 7), ("mid", 5), ("short", 3))},
    **{f"horizontal_small_to_long_conv_{name}ratio": [[1, size], [1, 1], [0, size // 2]]
       for name, size in (("long", 7), ("mid", 5), ("short", 3))},
    **{f"symmetric_conv_long_{name}ratio": [[size, size], [1, 1], [size // 2, size // 2]]
       for name, size in (("long", 7), ("mid", 5), ("short", 3))},
}  # fmt: skip
# What single types need besides; None as a value is the value.
SPECIFIC: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("autoformer", "informer", "time_series_transformer"), {"prediction_length": 4}),
    **dict.fromkeys(("beit", "data2vec-vision"), {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]}),
    "blt": {"encoder_hash_byte_group_vocab": 50, "encoder_hash_byte_group_size": [2, 3]},
    **dict.fromkeys(("chameleon", "emu3"), {"vocabulary_map": {
        "<image>": 98, "<|image|>": 98, "<|extra_200|>": 97, **{f"IMGIMGBSABCDEFGHIJ{n}Z": 10 + n for n in range(8)}
    }}),
    **dict.fromkeys(("qwen2_5_vl_text", "qwen2_vl_text", "glm4v_text", "glm4v_moe_text", "glm_image_text",
                     "ernie4_5_vl_moe_text"), {"rope_parameters": _MROPE}),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), {"head_dim": 8}),
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 700.0}}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 700.0, "clip_qkv": 8}},
    "sam2_hiera_det_model": {"blocks_per_stage": [1, 2, 3, 2], "global_attention_blocks": [4]},
    "clap_audio_model": {"num_mel_bins": 64, "hidden_size": ..., "num_attention_heads": ...},
    **dict.fromkeys(("blt_local_encoder", "blt_local_decoder"), {"hidden_size_global": 32}),
    "sam2_vision_model": {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
    "vitdet": {"out_features": None, "out_indices": [2]},
    "vitmatte": {"convstream_hidden_sizes": [8, 16, 32], "fusion_hidden_sizes": [32, 16, 8, 4]},
    "vitpose_backbone": {"out_features": None, "out_indices": [2], "part_features": 8, "num_experts": 1},
    "lw_detr_vit": {"num_hidden_layers": 10, "out_features": ["stage2", "stage4", "stage5", "stage9"],
                    "out_indices": [2, 4, 5, 9]},
    "lw_detr": {"projector_scale_factors": [1.0]},
    "uvdoc_backbone": {"out_features": [f"stage{number}" for number in range(1, 7)]},
    "pp_lcnet_v4": {"out_features": ["stage1", "stage2", "stage3", "stage4"]},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "nemotron3_5_transcribe_word_timestamp": {"vocab_size": 100, "blank_token_id": 99},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "muse_glimmer_assistant": {"target_layer_ids": [1]},
    "pix2struct_vision_model": {"patch_embed_hidden_size": 48},
    "pp_ocrv6_small_det": {"layer_list_out_channels": [96, 96, 192, 384]},
    "pp_ocrv6_medium_det": {"intraclass_block_config": _STRIPES},
    "hunyuan_vl_text": {"head_dim": 8, "rope_parameters": {**_MROPE, "mrope_section": [1, 1, 1, 1]}},
    "timesfm2_5": {"context_length": 128},  # its statistics are unrolled over the patches
    "reformer": {"is_decoder": True},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "kyutai_speech_to_text": {"pad_token_id": 98},
    "depth_pro": {"patch_size": 32},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "1/2"},
    "diffusion_gemma_text": {"top_k_experts": 2},
    "glm5_next_text": {"num_key_value_heads": 4, "qk_rope_head_dim": 0, "qk_head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
    "mpnet": {"relative_attention_num_buckets": 32},
    "gemma3n_text": {"num_hidden_layers": 6, "layer_types": ..., "num_kv_shared_layers": 0,
                     "activation_sparsity_pattern": None, "intermediate_size": 48},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_dense_layers": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {"lru_width": 32, "conv1d_width": 4, "block_types": ["recurrent", "attention"]},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16,
                       "indexer_compress_ratio": 4},
}  # fmt: skip


# Lists of how many blocks a stage has.
DEPTHS = ("depths", "stage_num_blocks", "num_block_repeats", "blocks_per_stage", "n_attn_blocks", "block_sizes",
          "stage_numb_of_layers", "block_repeats")  # fmt: skip
COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "depth")  # of layers
# Lists of the layers whose outputs are taken, and what their first layer is called.
TAKEN = {"out_indices": 1, "backbone_out_indices": 0, "_out_indices": 1, "vision_feature_layer": 0}


@dataclass(frozen=True)
class Variant:
    """A way to derive a tiny config; the first that a model runs with is taken.

    Attributes:
        fields: Over ``TINY``; ``...`` leaves a field at its default.
        scale: What widths that are left at their defaults are divided by, so that they stay in proportion.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    scale: int = 1


# Fields that decide how wide, not how deep, a model is: left at their defaults if a type does not take ours.
_WIDTHS = {name for name, value in TINY.items() if value in (8, 12, 16, 32, 48) or isinstance(value, tuple)}
_PROPORTIONS = {
    **dict.fromkeys(_WIDTHS, ...),
    **dict.fromkeys((name for name in TINY if "heads" in name), ...),
}
_DEPTHS = dict.fromkeys((*COUNTS, "decoder_layers"), ...)
_IMAGES = {"image_size": ..., "pretrain_image_size": ...}
VARIANTS: tuple[Variant, ...] = (
    Variant(),
    Variant({"num_key_value_heads": 4, "head_dim": ...}),
    Variant({**_IMAGES, "num_key_value_heads": ...}),
    Variant(_PROPORTIONS, scale=8),
    Variant({**_PROPORTIONS, **_DEPTHS}, scale=8),
    Variant({"num_key_value_heads": ..., "swa_num_key_value_heads": ..., **dict.fromkeys(_WIDTHS, ...)}),
    Variant({**_IMAGES, **_PROPORTIONS, "layer_types": ...}),
    Variant({**_IMAGES, **_PROPORTIONS, **_DEPTHS, "layer_types": ...}),
)
_OPTIONAL = ("head_dim", "num_key_value_heads", "q_lora_rank", "sliding_window", "index_topk")
_WIDE = re.compile(
    r"(size|sizes|dim|dims|channels|rank|width|d_model|n_embd|_planes|_section|dim_per_stage|channel_list)$"
)
_NOT_WIDE = re.compile(
    r"image|patch|kernel|vocab|window|chunk|batch|codebook|pool|stride|token|crop|hop|in_chan|num_chan"
)


def tiny(model_type: str | None, config_class: Any, variant: Variant, probe: Any = None) -> dict[str, Any]:
    """Fields for a tiny config of ``config_class``, sub-configs included.

    Args:
        model_type: For ``SPECIFIC``.
        config_class: The class of the config.
        variant: How to derive it.
        probe: The config as the one around it has it by default; None for the outermost.
    """
    fields = {} if probe is None else _set_by_parent(config_class, probe)
    probe = probe if probe is not None else config_class()
    aliases = getattr(probe, "attribute_map", {})
    given = [key for key, name in aliases.items() if not isinstance(getattr(config_class, name, None), property)]
    real = {**vars(probe), **{key: getattr(probe, key, None) for key in given}}
    chosen: dict[str, Any] = {}
    for name, value in {**TINY, **variant.fields}.items():
        if name not in real or value is ... or (name in _OPTIONAL and real[name] is None):
            continue
        if isinstance(real[name], list | tuple) != isinstance(value, tuple) or isinstance(real[name], dict):
            continue
        chosen.setdefault(aliases.get(name, name), value)
    fields.update(_scaled(real, variant.scale))
    fields.update(chosen)
    if isinstance(real.get("image_size"), list | tuple) and "image_size" not in variant.fields:
        fields["image_size"] = type(real["image_size"])([IMAGE] * len(real["image_size"]))
    for index, name in enumerate(MULTIMODAL_TOKENS):
        if isinstance(real.get(name), int) or (name in real and re.match("(image|video)_token", name)):
            fields[name] = VOCAB - 1 - index
    fields.update(_layers(real, fields, aliases, variant))
    for name in config_class.sub_configs:
        inner = getattr(probe, name, None)
        if inner is not None and not isinstance(inner, dict):
            fields[name] = tiny(getattr(inner, "model_type", None), type(inner), variant, inner)
            if getattr(inner, "model_type", None):
                fields[name]["model_type"] = inner.model_type
    fields.update(_rope(real, fields))
    fields = {aliases.get(name, name): value for name, value in fields.items()}
    fields.update({aliases.get(name, name): value for name, value in SPECIFIC.get(model_type or "", {}).items()})
    return {name: value for name, value in fields.items() if value is not ...}


def _set_by_parent(config_class: Any, probe: Any) -> dict[str, Any]:
    """What a sub-config has that its class would not have by itself."""
    try:
        alone = vars(config_class())
    except Exception:  # a config that is only made by another
        return {}
    private = ("_", "transformers_version", "model_type", "dtype", "architectures",
               "stage_names")  # fmt: skip
    stages = getattr(probe, "out_features", None)
    return {
        **({"out_features": list(stages)} if stages and stages != alone.get("_out_features") else {}),
        **{
            name: value for name, value in vars(probe).items()
            if not name.startswith(private) and name not in config_class.sub_configs and alone.get(name) != value
        },
    }  # fmt: skip


def _scaled(real: dict[str, Any], scale: int) -> dict[str, Any]:
    """Widths, also in lists, divided by ``scale`` where that goes."""
    found = {}
    for name, value in real.items():
        if scale == 1 or not _WIDE.search(name) or _NOT_WIDE.search(name):
            continue
        sizes = value if isinstance(value, list | tuple) else [value]
        if sizes and all(type(size) is int and size % scale == 0 and size >= 2 * scale for size in sizes):
            smaller = [size // scale for size in sizes]
            found[name] = type(value)(smaller) if isinstance(value, list | tuple) else smaller[0]
    return found


def _layers(real: dict[str, Any], fields: dict[str, Any], aliases: dict[str, str], variant: Variant) -> dict[str, Any]:
    """Fewer layers, and lists with an entry a layer or a stage to match."""
    found: dict[str, Any] = {}
    for name, value in real.items():
        if name in DEPTHS and isinstance(value, list | tuple):
            found[name] = type(value)(min(item, 2) if isinstance(item, int) else item for item in value)
    count = next((name for name in (aliases.get(name, name) for name in COUNTS) if name in fields), "")
    layers = real.get(count)
    if not isinstance(layers, int) or "layer_types" in variant.fields:
        return found
    kinds = real.get("layer_types")
    picked = list(range(fields[count]))
    if isinstance(kinds, list | tuple) and len(set(kinds)) > 1:
        picked = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    for name, base in TAKEN.items():
        taken = real.get(name)
        if isinstance(taken, list | tuple) and len(taken) > 1 and max(taken) > len(picked):
            picked = list(range(len(taken)))
            found[name.removeprefix("_")] = type(taken)(index + base for index in picked)
            found |= {"out_features": None} if name == "_out_indices" else {}
    for name, value in real.items():
        if not isinstance(value, list | tuple) or len(value) != layers or name.startswith("_") or name in found:
            continue
        if layers <= 6 and name != "layer_types":  # stages, each with sizes of its own
            return {**{name: value for name, value in found.items() if name in DEPTHS}, count: layers}
        if max(picked) < layers:
            found[name] = type(value)(fields.get(name, value)[index] for index in picked)
    return {**found, count: len(picked)}


def _rope(real: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """The parts of a head that turn by time, height and width, for the head that the fields have."""
    found = {}
    for name in ("rope_parameters", "rope_scaling"):
        rope = real.get(name)
        if not isinstance(rope, dict) or not isinstance(rope.get("mrope_section"), list | tuple):
            continue
        both = {**real, **{key: value for key, value in fields.items() if value is not ...}}
        head = both.get("head_dim") or both["hidden_size"] // both["num_attention_heads"]
        share = rope.get("partial_rotary_factor") or both.get("partial_rotary_factor") or 1
        half, parts = int(head * share) // 2, len(rope["mrope_section"])
        found[name] = {**rope, "mrope_section": [(half + parts - 1 - part) // parts for part in range(parts)]}
    return found
