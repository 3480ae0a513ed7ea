"""A config of another depth, with other kinds of layers, builds the model that it says."""

from __future__ import annotations

from types import SimpleNamespace

import mlx.core as mx
import torch
import torch.nn.functional as F
from steps import VOCABULARY, Model, Pair, causal

from mlxport.graph.write.execute_source import execute
from mlxport.graph.write.port_weights import from_torch

WINDOW = 5


def of_kinds(*kinds):
    def attend(query, key, value, past, layer):
        mask = causal(past, query.shape[2])
        if kinds[layer] == "sliding_attention":
            rows = torch.arange(past, past + query.shape[2])[:, None]
            mask = mask & (torch.arange(past + query.shape[2]) > rows - WINDOW)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    model = Model(attend, layers=len(kinds))
    given = dict(num_hidden_layers=len(kinds), layer_types=list(kinds), sliding_window=WINDOW)
    text = SimpleNamespace(vocab_size=VOCABULARY)
    model.config = SimpleNamespace(get_text_config=lambda: text, to_dict=lambda: given)
    return model


def test_other_layers(tmp_path):
    near, far = "sliding_attention", "full_attention"
    pair = Pair(of_kinds(near, near, far), tmp_path)
    assert "range(3)" not in pair.source and "RotatingKVCache(max_size=self.args.sliding_window)" in pair.source
    pair.check()
    other = of_kinds(far, near, far, far, near).eval()
    namespace = execute(pair.source)
    built = namespace.Model(namespace.ModelArgs(num_hidden_layers=5, layer_types=[far, near, far, far, near]))
    built.load_weights([(name, from_torch(array.detach())) for name, array in other.named_parameters()])
    ids = torch.arange(1, 13)[None]
    wanted, cache = from_torch(other(ids).logits.detach()), built.make_cache()
    parts = [built(mx.array(ids.numpy())[:, at : at + 4], cache=cache) for at in (0, 4, 8)]
    assert mx.allclose(mx.concatenate(parts, axis=1), wanted, atol=1e-4)
