"""Caches among what a forward returns are left out."""

from __future__ import annotations

import pytest
import torch
from comparing import randomised
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

import mlxport
from mlxport.graph.capture.export import capture
from mlxport.graph.write.port_weights import from_torch
from mlxport.layouts.generated.generation_step import emit_step

TINY = dict(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
)


class Cached(DynamicCache):
    """One that nobody has registered."""


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        cache = Cached()
        cache.update(x[:, None], x[:, None], 0)
        return {"encoder": BaseModelOutputWithPast(self.linear(x), past_key_values=cache), "all": (x * 2, cache)}


@pytest.mark.parametrize("written_before", [False, True], ids=["", "after a language model"])
def test_a_cache_among_the_outputs(written_before):
    module = randomised(Remembering())
    if written_before:
        emit_step(LlamaForCausalLM(LlamaConfig(**TINY)).eval())
    x = torch.randn(2, 3, 4)
    captured = capture(module, (x,))
    assert any("Cached is not among the outputs" in note for note in captured.notes)
    ported = mlxport.port(module, (x,))  # which is compared
    made = ported(from_torch(x))
    assert list(made["encoder"]) == ["last_hidden_state"] and made["all"][1] is None
