"""From OpenCLIP's tensors to the parameters of transformers' CLIP, as transformers describes such changes.

The names are those of https://github.com/mlfoundations/open_clip, src/open_clip/transformer.py: an attention holds its
three projections as one (``nn.MultiheadAttention``), and projections into the common space are applied from the right.
Every entry has an inverse: concatenation, transposing, the other name.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from transformers.core_model_loading import Chunk, Transpose, WeightConverter, WeightRenaming

__all__ = ["is_of_open_clip", "open_clip_mapping"]

# In order: what one leaves, the next may change further. Names of transformers itself match none.
_RENAMED = {
    r"^text\.": "",  # of classes that hold their text tower as a part
    r"^transformer\.resblocks\.": "text_model.encoder.layers.",
    r"^visual\.transformer\.resblocks\.": "vision_model.encoder.layers.",
    r"^token_embedding\.": "text_model.embeddings.token_embedding.",
    r"^positional_embedding$": "text_model.embeddings.position_embedding.weight",
    r"^ln_final\.": "text_model.final_layer_norm.",
    r"^visual\.class_embedding$": "vision_model.embeddings.class_embedding",
    r"^visual\.positional_embedding$": "vision_model.embeddings.position_embedding.weight",
    r"^visual\.conv1\.": "vision_model.embeddings.patch_embedding.",
    r"^visual\.ln_pre\.": "vision_model.pre_layrnorm.",
    r"^visual\.ln_post\.": "vision_model.post_layernorm.",
    r"\.attn\.out_proj\.": ".self_attn.out_proj.",
    r"\.ln_1\.": ".layer_norm1.",
    r"\.ln_2\.": ".layer_norm2.",
    r"\.mlp\.c_fc\.": ".mlp.fc1.",
    r"\.mlp\.c_proj\.": ".mlp.fc2.",
}
_TURNED = {r"^text_projection$": "text_projection.weight", r"^visual\.proj$": "visual_projection.weight"}


def is_of_open_clip(names: Collection[str]) -> bool:
    """Whether tensors have the names of OpenCLIP."""
    return any("resblocks." in name and name.endswith("attn.in_proj_weight") for name in names)


def open_clip_mapping() -> list[Any]:
    """What makes the parameters of transformers' CLIP, in its order."""
    in_proj = [
        WeightConverter(
            f"attn.in_proj_{kind}", [f"self_attn.{part}_proj.{kind}" for part in "qkv"], operations=[Chunk(dim=0)]
        )
        for kind in ("weight", "bias")
    ]
    turned = [WeightConverter(name, there, operations=[Transpose()]) for name, there in _TURNED.items()]
    return [*(WeightRenaming(name, there) for name, there in _RENAMED.items()), *in_proj, *turned]
