"""Buffers that old checkpoints store beside their weights though they follow from the config: nothing needs them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import mlx.core as mx

from mlxport.layouts.mlx_lm.config_view import text_section
from mlxport.transform import lazy_arrays
from mlxport.types import TensorRef

__all__ = ["is_buffer", "stored_rope_note"]

_CLOSE = 0.02  # of a frequency: bfloat16 rounds by 0.4%, another theta is off by far more


_ROPE = r"(?:.*\.)?(?:rope|rotary_emb|rotary_pos_emb)"
_ATTENTION = r"(?:.*\.)?(?:attn|attention|self_attn)"
# Name, and numbers of dimensions: the bias of an attention is a vector where it is one, the triangle of a mask is not.
_REAL: Final = (
    (r"(?:.*\.)?(?:original_)?inv_freq", (1,)),
    (rf"{_ROPE}\.(?:freqs|(?:cos|sin)(?:_cached)?)", (1, 2, 3, 4)),
)
_WHOLE: Final = ((r"(?:.*\.)?position_ids", (1, 2)),)
_EITHER: Final = ((rf"{_ATTENTION}\.(?:masked_)?bias", (0, 4)), (r"(?:.*\.)?causal_mask", (2, 4)))


def is_buffer(name: str, array: mx.array) -> bool:
    """Whether a tensor is a buffer that follows from the config, by its name, kind of numbers and dimensions."""
    kind = _REAL if mx.issubdtype(array.dtype, mx.floating) else _WHOLE
    return any(re.fullmatch(pattern, name) and array.ndim in dims for pattern, dims in (*kind, *_EITHER))


def stored_rope_note(tensors: Mapping[str, TensorRef], unused: Iterable[str], config: Mapping[str, Any]) -> list[str]:
    """What to say where stored rotary frequencies are not those of the config; nothing where they are, or are scaled.

    Args:
        tensors: The checkpoint.
        unused: The names of its tensors that mlx-lm drops.
        config: As mlx-lm reads it.
    """
    text = text_section(config) or config
    theta = text.get("rope_theta")
    plain = not text.get("rope_scaling") and "rope_local_base_freq" not in text
    names = [name for name in unused if name.rpartition(".")[2] == "inv_freq" and len(tensors[name].shape) == 1]
    if not (isinstance(theta, (int, float)) and theta > 0 and plain and names):
        return []
    stored = lazy_arrays({names[0]: tensors[names[0]]})[names[0]].astype(mx.float32)
    expected = theta ** -(mx.arange(stored.size) / max(stored.size, 1))
    if mx.allclose(stored, expected, rtol=_CLOSE, atol=0):
        return []
    return [
        f"the stored {names[0]} is not of rope_theta {theta:g}, as the config says: "
        "transformers and mlx-lm compute with the config's"
    ]
