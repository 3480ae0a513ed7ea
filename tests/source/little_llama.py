"""The weights of a llama that takes no time to write."""

from __future__ import annotations

import numpy as np

HIDDEN, LAYERS, VOCABULARY = 8, 2, 16


def llama_weights(layers: int = LAYERS, hidden: int = HIDDEN) -> dict[str, np.ndarray]:
    """What a llama of this size would be saved as, fewer tensors."""
    random = np.random.default_rng(0)
    weights = {"model.embed_tokens.weight": random.standard_normal((VOCABULARY, hidden), np.float32)}
    for layer in range(layers):
        weights[f"model.layers.{layer}.mlp.up_proj.weight"] = random.standard_normal((3, hidden)).astype(np.float16)
        weights[f"model.layers.{layer}.input_layernorm.weight"] = np.ones(hidden, np.float32)
    weights["model.norm.weight"] = np.ones(hidden, np.float32)
    return weights
