"""Configs of tiny models, and the comparison of their logits with transformers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from mlxport.layouts.mlx_lm.normalize import normalize_config
from mlxport.layouts.mlx_lm.weight_repairs import prepare_weights

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def new_style(model_type: str, rope: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    rope_parameters = {"rope_type": "default", "rope_theta": 700.0, **(rope or {})}
    return {"model_type": model_type, **SIZES, "rope_parameters": rope_parameters, **fields}


def assert_parity(config: dict[str, Any], folder: Path) -> None:
    """Compare logits in float32, once in one pass and once with a cache."""
    torch = pytest.importorskip("torch")
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    fields = {key: value for key, value in copy.deepcopy(config).items() if key != "model_type"}
    reference = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[config["model_type"]](**fields), attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for value in reference.parameters():
            value.add_(torch.randn_like(value) * (0.2 if value.ndim < 2 else value.shape[-1] ** -0.5))
    reference.save_pretrained(folder / "source")
    ids = [[(7 * i + 3) % 96 for i in range(20)], [(11 * i + 5) % 96 for i in range(20)]]
    with torch.no_grad():
        expected = reference(input_ids=torch.tensor(ids), use_cache=False).logits.numpy()

    done = normalize_config(json.loads((folder / "source/config.json").read_text()))
    (folder / "out").mkdir(parents=True)
    (folder / "out/config.json").write_text(json.dumps(done.config))
    weights = prepare_weights(mx.load(str(folder / "source/model.safetensors")), done.config)
    mx.save_safetensors(str(folder / "out/model.safetensors"), weights)
    model = load_model(folder / "out")[0]
    cache = make_prompt_cache(model)
    steps = [model(mx.array(ids)[:, part], cache=cache) for part in (slice(0, 17), slice(17, 18), slice(18, 20))]
    for found in (model(mx.array(ids)), mx.concatenate(steps, axis=1)):
        assert found.shape == expected.shape
        np.testing.assert_allclose(np.array(found), expected, rtol=0, atol=2e-5 * np.abs(expected).max())
