"""Names of Whisper's tensors in transformers and at OpenAI, and what mlx-whisper calls them."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["ENCODER_POSITIONS", "HEAD", "mlx_name"]

ENCODER_POSITIONS: Final = "encoder.positional_embedding"
"""A table that mlx-whisper computes anew."""
HEAD: Final = "proj_out.weight"
"""A copy of the token embedding, where it is stored."""

# Each is applied to what those before it have left; OpenAI's own names pass through but for the two of an MLP.
_RENAMES: Final = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^model\.", ""),
        (r"\.layers\.", ".blocks."),
        (r"\.self_attn_layer_norm\.", ".attn_ln."),
        (r"\.encoder_attn_layer_norm\.", ".cross_attn_ln."),
        (r"\.final_layer_norm\.", ".mlp_ln."),
        (r"\.self_attn\.", ".attn."),
        (r"\.encoder_attn\.", ".cross_attn."),
        (r"\.q_proj\.", ".query."),
        (r"\.k_proj\.", ".key."),
        (r"\.v_proj\.", ".value."),
        (r"\.out_proj\.", ".out."),
        (r"\.(?:fc1|mlp\.0)\.", ".mlp1."),
        (r"\.(?:fc2|mlp\.2)\.", ".mlp2."),
        (r"^encoder\.layer_norm\.", "encoder.ln_post."),
        (r"^decoder\.layer_norm\.", "decoder.ln."),
        (r"^decoder\.embed_tokens\.", "decoder.token_embedding."),
        (r"^(encoder|decoder)\.embed_positions\.weight$", r"\1.positional_embedding"),
    )
)


def mlx_name(name: str) -> str:
    """What mlx-whisper calls a tensor of transformers' or OpenAI's Whisper."""
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name
