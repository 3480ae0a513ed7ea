"""Tiny random models of every transformers type, and inputs for them, derived from the config classes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

VOCAB = 99
IMAGE = 64
LENGTH = 10
LARGEST = 200_000_000  # parameters of a model that is tried

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
    "index_n_heads": 2,
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
# What single types need besides; None as a value is the value.
SPECIFIC: dict[str, dict[str, Any]] = {
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
    "mpnet": {"relative_attention_num_buckets": 32},
    "gemma3n_text": {"num_hidden_layers": 6, "layer_types": ..., "num_kv_shared_layers": 0,
                     "activation_sparsity_pattern": None, "intermediate_size": 48},
    "qwen2_5_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0, "mrope_section": [1, 1, 2]}},
    "qwen2_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0, "mrope_section": [1, 1, 2]}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_dense_layers": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "glm5_next_text": {"num_key_value_heads": 4},
}  # fmt: skip


def shrunk(name: str, value: Any) -> Any:
    """A list of sizes per stage, smaller."""
    if name in ("depths", "stage_num_blocks", "num_block_repeats", "blocks_per_stage", "n_attn_blocks", "block_sizes",
                "stage_numb_of_layers", "block_repeats"):  # fmt: skip
        return type(value)(min(item, 2) for item in value)
    return value


# Fields that decide how wide, not how deep, a model is: left at their defaults if a type does not take ours.
_WIDTHS = {name for name, value in TINY.items() if value in (8, 12, 16, 32, 48) or isinstance(value, tuple)}
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4, "head_dim": ...},
    {"image_size": ..., "pretrain_image_size": ..., "num_key_value_heads": ...},
    {"num_key_value_heads": ..., "swa_num_key_value_heads": ..., **dict.fromkeys(_WIDTHS, ...)},
    {"image_size": ..., "pretrain_image_size": ..., "num_attention_heads": ..., "num_key_value_heads": ...,
     "swa_num_key_value_heads": ..., "layer_types": ..., **dict.fromkeys(_WIDTHS, ...)},
)  # fmt: skip
_OPTIONAL = ("head_dim", "num_key_value_heads", "q_lora_rank", "sliding_window", "index_topk")


def tiny(model_type: str | None, config_class: Any, variant: dict[str, Any], probe: Any = None) -> dict[str, Any]:
    """Fields for a tiny config of ``config_class``, sub-configs included."""
    probe = probe if probe is not None else config_class()
    aliases = getattr(probe, "attribute_map", {})
    real = {**vars(probe), **{key: getattr(probe, key, None) for key in aliases}}
    fields: dict[str, Any] = {}
    for name, value in {**TINY, **variant}.items():
        if name not in real or value is ... or (name in _OPTIONAL and real[name] is None):
            continue
        if isinstance(real[name], list | tuple) != isinstance(value, tuple) or isinstance(real[name], dict):
            continue
        if aliases.get(name, name) not in fields:
            fields[aliases.get(name, name)] = value
    if isinstance(real.get("image_size"), list | tuple) and "image_size" not in variant:
        fields["image_size"] = type(real["image_size"])([IMAGE] * len(real["image_size"]))
    for name, value in real.items():
        if isinstance(value, list | tuple) and (smaller := shrunk(name, value)) != value:
            fields[name] = smaller
    for index, name in enumerate(MULTIMODAL_TOKENS):
        if isinstance(real.get(name), int):
            fields[name] = VOCAB - 1 - index
    kinds = real.get("layer_types")
    if isinstance(kinds, list | tuple) and len(set(kinds)) > 1 and "layer_types" not in variant:
        fields["layer_types"] = list(dict.fromkeys(kinds))
        fields["num_hidden_layers"] = len(fields["layer_types"])
    for name in config_class.sub_configs:
        inner = getattr(probe, name, None)
        if inner is not None and not isinstance(inner, dict):
            fields[name] = tiny(getattr(inner, "model_type", None), type(inner), variant, inner)
            if getattr(inner, "model_type", None):
                fields[name]["model_type"] = inner.model_type
    fields.update(SPECIFIC.get(model_type or "", {}))
    return {name: value for name, value in fields.items() if value is not ...}


def make_config(model_type: str, variant: dict[str, Any]) -> Any:
    """The tiny config of a model type."""
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    config = config_class(**tiny(model_type, config_class, variant))
    for part in [config, *(getattr(config, name, None) for name in config.sub_configs)]:
        if part is not None and hasattr(part, "_experts_implementation"):
            part._experts_implementation = "batched_mm"
    return config


HEADS = """
CAUSAL_LM IMAGE_TEXT_TO_TEXT SEQ_TO_SEQ_CAUSAL_LM SPEECH_SEQ_2_SEQ MASKED_LM CTC RNNT TDT
OBJECT_DETECTION UNIVERSAL_SEGMENTATION SEMANTIC_SEGMENTATION INSTANCE_SEGMENTATION DEPTH_ESTIMATION
IMAGE_CLASSIFICATION VIDEO_CLASSIFICATION AUDIO_CLASSIFICATION ZERO_SHOT_OBJECT_DETECTION
MASK_GENERATION VISUAL_QUESTION_ANSWERING DOCUMENT_QUESTION_ANSWERING IMAGE_TO_IMAGE
KEYPOINT_DETECTION KEYPOINT_MATCHING POSE_ESTIMATION IMAGE_MATTING POINTMAP_ESTIMATION
NORMAL_ESTIMATION TEXT_RECOGNITION TABLE_RECOGNITION TIME_SERIES_PREDICTION
TIME_SERIES_CLASSIFICATION TIME_SERIES_REGRESSION TEXT_TO_SPECTROGRAM TEXT_TO_WAVEFORM
MASKED_IMAGE_MODELING IMAGE_SEGMENTATION SEQUENCE_CLASSIFICATION TOKEN_CLASSIFICATION
QUESTION_ANSWERING TABLE_QUESTION_ANSWERING RETRIEVAL DECISION MULTIMODAL_LM PRETRAINING BACKBONE
""".split()  # MODEL_FOR_…; the first that maps a type is its main head


def cases() -> list[tuple[str, str, str]]:
    """Model type, part (base, head) and class name of everything that the sweep tries."""
    from transformers.models.auto import modeling_auto as auto

    found = []
    types = dict(auto.MODEL_MAPPING_NAMES)
    mappings = [getattr(auto, f"MODEL_FOR_{head}_MAPPING_NAMES") for head in HEADS]
    for model_type in sorted(set(types).union(*mappings)):
        base = types.get(model_type)
        base = base[0] if isinstance(base, list | tuple) else base
        if base:
            found.append((model_type, "base", base))
        heads = (mapping[model_type] for mapping in mappings if model_type in mapping)
        head = next(heads, None)
        head = head[0] if isinstance(head, list | tuple) else head
        if head and head != base:
            found.append((model_type, "head", head))
    return found


def make_model(model_type: str, class_name: str, variant: dict[str, Any]) -> Any:
    """The model with seeded random weights that hide nothing: no zeros, no ones.

    Raises:
        ValueError: if it would be too large.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    config = make_config(model_type, variant)
    model_class = getattr(transformers, class_name)
    wanted = getattr(model_class, "config_class", None)
    if wanted is not None and not isinstance(config, wanted):
        parts = (getattr(config, name, None) for name in config.sub_configs)
        config = next((part for part in parts if isinstance(part, wanted)), config)
    if variant:
        with torch.device("meta"):
            count = sum(p.numel() for p in model_class(copy.deepcopy(config)).parameters())
        if count > LARGEST:
            raise ValueError(f"{count / 1e6:.0f} M parameters")
    model = model_class._from_config(config) if hasattr(model_class, "_from_config") else model_class(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            if value.is_floating_point() and value.device.type != "meta":
                noise = torch.randn(value.shape, generator=generator)
                if value.ndim >= 2:
                    value.copy_(noise * min(0.3, value[0].numel() ** -0.5))
                else:
                    value.add_(0.1 * noise)
        for name, value in model.named_buffers():
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif name.endswith("running_mean"):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return model.float().eval()


def inputs(model: Any) -> Iterator[dict[str, Any]]:
    """Inputs to try, the most telling first."""
    import torch

    torch.manual_seed(1)
    config = model.config
    parameters = inspect.signature(model.forward).parameters
    needed = [
        name for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]  # fmt: skip
    main = model.main_input_name
    main = main if isinstance(main, str) else next(iter(main), "")
    names = dict.fromkeys([*([main] if main in parameters else []), *needed])
    if "input_ids" in parameters and not names:
        names["input_ids"] = None
    extra = {"use_cache": False} if "use_cache" in parameters else {}
    if "return_loss" in parameters:
        extra["return_loss"] = False
    makers = _makers(config, model)
    optional = [
        name for name in ("attention_mask", "decoder_input_ids", "pixel_values", "input_values", "input_features",
                          "token_type_ids", "bbox", "pixel_mask") if name in parameters
    ]  # fmt: skip
    tried: list[list[str]] = []
    if "decoder_input_ids" in parameters:
        tried.append([*names, "attention_mask", "decoder_input_ids"])
    if "input_ids" in parameters:
        tried.append(["input_ids", "attention_mask", *names])
        if "pixel_values" in parameters:
            tried.insert(0, ["input_ids", "attention_mask", "pixel_values", *names])
    tried += [[*names], [*names, "decoder_input_ids"], [*names, *optional]]
    tried += [["pixel_values"], ["input_values"], ["input_features"], ["input_ids", "bbox", "pixel_values"]]
    seen = set()
    for wanted in tried:
        wanted = [name for name in dict.fromkeys(wanted) if name in parameters]
        if not wanted or tuple(sorted(wanted)) in seen or any(name not in makers for name in wanted):
            continue
        seen.add(tuple(sorted(wanted)))
        given = {**{name: makers[name]() for name in wanted}, **extra}
        yield given
        if "input_features" in given:  # time last in some
            yield {**given, "input_features": given["input_features"].transpose(1, 2).contiguous()}
    if missing := [name for name in names if name not in makers]:
        raise ValueError(f"no maker for the inputs {missing}")


def _first(config: Any, *names: str, default: Any = None) -> Any:
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]
    for part in parts:
        for name in names:
            value = getattr(part, name, None)
            if value is not None:
                return value
    return default


def _makers(config: Any, model: Any) -> dict[str, Any]:
    import torch

    vocab = _first(config, "vocab_size", default=VOCAB)
    size = _first(config, "image_size", default=IMAGE)
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels = _first(config, "num_channels", "in_channels", "in_chans", default=3)
    channels = channels if isinstance(channels, int) else 3
    bins = _first(config, "num_mel_bins", "feature_size", "input_feat_per_channel", "n_mels", default=16)
    hidden = _first(config, "hidden_size", "d_model", default=32)
    frames = _first(config, "num_frames", default=4)
    samples = 2048
    ids = torch.randint(5, max(min(vocab, VOCAB) - 24, 6), (2, LENGTH))
    video = "video" in type(model).__name__.lower() or any(
        word in type(model).__name__ for word in ("VideoMAE", "TimeSformer", "Vivit", "Timesformer", "VJEPA")
    )

    def features() -> Any:
        kind = getattr(config, "model_type", "")
        if kind in ("whisper", "qwen2_audio", "voxtral") or "whisper" in kind:
            return torch.randn(2, bins, 2 * _first(config, "max_source_positions", default=50))
        return torch.randn(2, 64, bins)

    return {
        "input_ids": lambda: ids.clone(),
        "decoder_input_ids": lambda: torch.randint(5, max(min(vocab, VOCAB) - 24, 6), (2, 7)),
        "attention_mask": lambda: torch.ones(2, LENGTH, dtype=torch.long),
        "token_type_ids": lambda: torch.zeros(2, LENGTH, dtype=torch.long),
        "bbox": lambda: torch.tensor([1, 2, 20, 30]).expand(2, LENGTH, 4).contiguous(),
        "pixel_values": lambda: torch.randn(2, frames, channels, height, width) if video
        else torch.randn(2, channels, height, width),
        "pixel_values_videos": lambda: torch.randn(2, frames, channels, height, width),
        "pixel_mask": lambda: torch.ones(2, height, width, dtype=torch.long),
        "input_values": lambda: torch.randn(2, samples),
        "input_features": features,
        "inputs_embeds": lambda: torch.randn(2, LENGTH, hidden),
        "hidden_states": lambda: torch.randn(2, LENGTH, hidden),
        "query_embeds": lambda: torch.randn(2, LENGTH, hidden),
        "input_features_mask": lambda: torch.ones(2, 64, dtype=torch.long),
        "latents": lambda: torch.randn(2, hidden, LENGTH),
        "past_values": lambda: torch.randn(2, _first(config, "context_length", default=32), *(
            (config.num_input_channels,) if hasattr(config, "num_input_channels") else ())),
    }  # fmt: skip
