"""Small models with keys and values, their steps of generation written for mlx-lm, and both run side by side."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import torch
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from torch import nn
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from mlxport.graph.write.port_weights import from_torch, port_weights
from mlxport.layouts.generated.generation_step import emit_step

VOCABULARY, WIDTH, HEADS = 31, 32, 2
PROMPTS = [[5, 9, 2, 7, 11, 3, 8, 1, 4], [6, 2], [int(i * 7 % 29) + 1 for i in range(21)]]
STEPS = 8


def causal(past: int, rows: int) -> torch.Tensor:
    """Truth values [rows, past + rows]: each token sees those up to its own."""
    return torch.arange(past + rows) <= torch.arange(past, past + rows)[:, None]


class Attention(nn.Module):
    """Keys and values put after those before, and attention as ``attend`` of the model has it."""

    def __init__(self, number: int, attend: Any) -> None:
        super().__init__()
        self.number, self.attend, self.turn = number, attend, None
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)

    def forward(self, x, cache, past):
        parts = self.qkv(x).view(*x.shape[:2], 3 * HEADS, WIDTH // HEADS).transpose(1, 2)
        query, key, value = parts.chunk(3, dim=1)
        if self.turn is not None:
            query, key = self.turn(query, past), self.turn(key, past)
        key, value = cache.update(key, value, self.number)
        return x + self.attend(query, key, value, past, self.number).transpose(1, 2).reshape(x.shape)


class Model(nn.Module):
    """Layers of attention between an embedding and a head.

    Args:
        attend: ``(query, key, value, past, layer)`` to what the values give.
        embed: ``(x, past)`` to what is computed from the embeddings of tokens that come after ``past`` others.
        layers: How many.
    """

    def __init__(self, attend: Any, embed: Any = lambda x, past: x, layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.tokens = embed, nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Attention(number, attend) for number in range(layers))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=VOCABULARY))

    def forward(self, input_ids, past_key_values=None, use_cache=True):
        cache = DynamicCache() if past_key_values is None else past_key_values
        past = cache.get_seq_length()
        x = self.embed(self.tokens(input_ids), past)
        for layer in self.layers:
            x = layer(x, cache, past)
        return CausalLMOutputWithPast(logits=self.head(x), past_key_values=cache)


class Pair:
    """A model and its step, as mlx-lm loads it from a folder."""

    def __init__(self, model: nn.Module, folder: Any) -> None:
        self.model = model.eval()
        port = emit_step(self.model, model_type="steps")
        self.source, self.caches = port.source, port.caches
        held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        weights = port_weights(
            port.weights,
            port.folds,
            lambda name: from_torch((held.get(name) if name in held else port.captured.state[name]).detach()),
        )
        mx.save_safetensors(str(folder / "model.safetensors"), weights)
        (folder / "model.py").write_text(port.source)
        (folder / "config.json").write_text(
            json.dumps({**port.fields, "model_type": "steps", "model_file": "model.py"})
        )
        self.ported = load_model(folder, trust_remote_code=True)[0]

    def wanted(self, prompt: list[int]) -> list[int]:
        """The likeliest tokens after a prompt, all computed anew for each."""
        tokens = list(prompt)
        with torch.no_grad():
            for _ in range(STEPS):
                tokens.append(int(self.model(torch.tensor([tokens])).logits[0, -1].argmax()))
        return tokens[len(prompt) :]

    def generated(self, prompt: list[int], **options: Any) -> list[int]:
        """What mlx-lm generates after a prompt."""
        steps = generate_step(mx.array(prompt), self.ported, max_tokens=STEPS, **options)
        return [int(token) for (token, _), _ in zip(steps, range(STEPS), strict=False)]

    def in_a_batch(self) -> list[list[int]]:
        """What mlx-lm generates after all prompts at once."""
        batch = BatchGenerator(self.ported, stop_tokens=None)
        numbers = batch.insert(PROMPTS, [STEPS] * len(PROMPTS))
        made: dict[int, list[int]] = {number: [] for number in numbers}
        while any(len(tokens) < STEPS for tokens in made.values()):
            answers = batch.next()
            for answer in answers[1] if isinstance(answers, tuple) else answers:
                made[answer.uid].append(int(answer.token))
        return [made[number] for number in numbers]

    def check(self, batched: bool = True) -> None:
        """Hold plain generation, prefill in chunks, a cache without the prompt's end and a batch against torch."""
        wanted = [self.wanted(prompt) for prompt in PROMPTS]
        assert [self.generated(prompt) for prompt in PROMPTS] == wanted
        assert [self.generated(prompt, prefill_step_size=4) for prompt in PROMPTS] == wanted
        if batched:
            assert self.in_a_batch() == wanted
        for prompt, tokens in zip(PROMPTS, wanted, strict=True):
            cache = make_prompt_cache(self.ported)
            self.ported(mx.array(prompt[:-1])[None], cache=cache)
            assert self.generated(prompt[-1:], prompt_cache=cache) == tokens
            whole = self.ported(mx.array(prompt)[None])
            assert int(whole[0, -1].argmax()) == tokens[0]
