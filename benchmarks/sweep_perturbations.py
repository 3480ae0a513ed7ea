"""Cases of the architecture sweep that change one field of a config each, to find what mlx-lm ignores."""

from __future__ import annotations

from typing import Any

from sweep_cases import Case, make_config

SKIP = (
    "dropout",
    "drop",
    "_token",
    "initializer",
    "router_aux",
    "output_",
    "use_cache",
    "return_dict",
    "dtype",
    "label",
    "chunk_size",
    "architectures",
    "problem_type",
    "transformers_version",
    "summary_",
    "scale_attn_weights_x",
    "jitter",
    "pretraining_tp",
    "rope_parameters",
    "vocab",
    "aux_loss",
    "use_mamba_kernels",
    "reorder",
    "time_step_floor",
    "rescale_",
    "residual_in_fp32",
    "num_logits_to_keep",
    "is_encoder_decoder",
    "name_or_path",
    "gradient",
    "z_loss",
    "model_type",
    "add_cross",
    "tie_word",
    "cache",
)


def perturbed(model_type: str) -> list[Case]:
    """List cases that each change one field of the text config, besides the sizes that shape the weights."""
    config = make_config(Case(model_type, "base"))
    text = config.get_text_config()
    wide = {"sliding_window": 64} if "sliding_window" in vars(text) and text.sliding_window else {}
    listed = [Case(model_type, "base", wide)]
    for name, value in sorted(vars(text).items()):
        if name.startswith("_") or any(part in name for part in SKIP):
            continue
        listed += [Case(model_type, f"{name}={other}", {**wide, name: other}) for other in _others(name, value)]
    if getattr(text, "rope_parameters", None) and "partial_rotary_factor" not in str(text.rope_parameters):
        listed.append(Case(model_type, "partial_rotary_factor=0.5", wide, rope={"partial_rotary_factor": 0.5}))
    return listed


def _others(name: str, value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if "act" in name and isinstance(value, (str, type(None))):
        return [other for other in ("silu", "relu", "gelu", "gelu_pytorch_tanh", "relu2") if other != value]
    if isinstance(value, float):
        return [0.05] if 0 < value < 1e-3 else [round(value * 1.7 + 0.3, 4)]
    if isinstance(value, int):
        return [value * 2] if value > 0 else [1]
    if "window" in name and value is None:
        return [8]
    if value is None and any(part in name for part in ("clip", "cap", "scal", "multiplier")):
        return [0.5]
    return []
