"""Tiny random models of every transformers type."""

from __future__ import annotations

import copy
from typing import Any

from model_fields import VARIANTS, Variant, tiny
from model_inputs import inputs

__all__ = ["VARIANTS", "cases", "inputs", "make_model"]

LARGEST = 100_000_000  # parameters of a model that is tried

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


def make_config(model_type: str, variant: Variant) -> Any:
    """The tiny config of a model type."""
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    config = config_class(**tiny(model_type, config_class, variant))
    for part in [config, *(getattr(config, name, None) for name in config.sub_configs)]:
        if part is not None and hasattr(part, "_experts_implementation"):
            part._experts_implementation = "batched_mm"
    return config


def make_model(model_type: str, class_name: str, variant: Variant, **changes: Any) -> Any:
    """The model with seeded random weights that hide nothing: no zeros, no ones.

    Args:
        model_type: Key of transformers' mappings.
        class_name: The class.
        variant: See ``VARIANTS``.
        changes: Fields of the config, set where it has them.

    Raises:
        ValueError: if it would be too large.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    config = make_config(model_type, variant)
    for name in changes.keys() & vars(config).keys():
        setattr(config, name, changes[name])
    model_class = getattr(transformers, class_name)
    wanted = getattr(model_class, "config_class", None)
    if wanted is not None and not isinstance(config, wanted):
        parts = (getattr(config, name, None) for name in config.sub_configs)
        config = next((part for part in parts if isinstance(part, wanted)), config)
    if variant != VARIANTS[0]:
        with torch.device("meta"):
            count = sum(p.numel() for p in model_class(copy.deepcopy(config)).parameters())
        if count > LARGEST:
            raise ValueError(f"{count / 1e6:.0f} M parameters")
    model = model_class._from_config(config) if hasattr(model_class, "_from_config") else model_class(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        computed = getattr(model, "_keys_to_ignore_on_save", None) or ()  # anew, from the config
        for name, value in model.named_parameters():
            if name not in computed and value.is_floating_point() and value.numel() and value.device.type != "meta":
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
