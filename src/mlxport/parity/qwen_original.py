"""Qwen of 2023 (``QWenLMHeadModel``) in torch: transformers has no such class, and code of a checkpoint is not run.

Written from what the model is, with the names of its weights. Beyond ``seq_length``, the length that it was trained
for, dynamic NTK turns by a larger base, the larger the longer the text (https://arxiv.org/abs/2309.16609, 2.3):
``base * alpha ** (d / (d - 2))`` with ``alpha = 2 ** ceil(log2(length / seq_length) + 1) - 1``; and LogN attention
multiplies the query of the t-th token by ``log(t) / log(seq_length)``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

__all__ = ["QWenConfig", "QWenLMHeadModel"]


class QWenConfig(PreTrainedConfig):  # type: ignore[misc]
    """Its settings; the defaults are those of its own code."""

    model_type = "qwen"

    vocab_size: int = 151936
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    kv_channels: int = 128
    intermediate_size: int = 22016
    layer_norm_epsilon: float = 1e-6
    rotary_emb_base: float = 10000.0
    seq_length: int = 8192
    max_position_embeddings: int = 8192
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    no_bias: bool = True
    tie_word_embeddings: bool = False
    use_cache: bool = True


class QWenRMSNorm(nn.Module):  # type: ignore[misc]
    """Normalisation by the root mean square."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[…, width]."""
        square = hidden_states.pow(2).mean(-1, keepdim=True)
        return hidden_states * torch.rsqrt(square + self.eps) * self.weight


def ntk_base(config: QWenConfig, length: int) -> float:
    """The base of rotations in a text of so many tokens."""
    base, width = config.rotary_emb_base, config.kv_channels
    if not config.use_dynamic_ntk or length <= config.seq_length:
        return float(base)
    alpha = max(2 ** math.ceil(math.log2(length / config.seq_length) + 1) - 1, 1)
    return float(base * alpha ** (width / (width - 2)))


def logn_scale(config: QWenConfig, positions: torch.Tensor) -> torch.Tensor:
    """What queries at positions (from 0) are multiplied by."""
    number = positions.to(torch.float32) + 1
    if not config.use_logn_attn:
        return torch.ones_like(number)
    return torch.where(number > config.seq_length, number.log() / math.log(config.seq_length), 1.0)


def _half_turned(states: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class QWenAttention(nn.Module):  # type: ignore[misc]
    """Causal attention on rotary positions."""

    def __init__(self, config: QWenConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        width = config.kv_channels * config.num_attention_heads
        self.c_attn = nn.Linear(config.hidden_size, 3 * width)
        self.c_proj = nn.Linear(width, config.hidden_size, bias=not config.no_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """[rows, tokens, hidden_size]; positions [rows or 1, tokens]."""
        rows, tokens, _ = hidden_states.shape
        shape = (rows, tokens, self.config.num_attention_heads, self.config.kv_channels)
        query, key, value = (part.view(shape).transpose(1, 2) for part in self.c_attn(hidden_states).chunk(3, dim=-1))
        cosine, sine = self._turns(position_ids)
        query = query * cosine + _half_turned(query) * sine
        key = key * cosine + _half_turned(key) * sine
        query = query * logn_scale(self.config, position_ids)[:, None, :, None]
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        scores = query @ key.transpose(-1, -2) * self.config.kv_channels**-0.5
        if attention_mask is not None:
            scores = scores + attention_mask
        mixed = F.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value
        return self.c_proj(mixed.transpose(1, 2).reshape(rows, tokens, -1))  # type: ignore[no-any-return]

    def _turns(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        base, width = ntk_base(self.config, int(position_ids.max()) + 1), self.config.kv_channels
        frequencies = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
        angles = position_ids.to(torch.float32)[:, None, :, None] * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


class QWenMLP(nn.Module):  # type: ignore[misc]
    """A gated layer; ``intermediate_size`` counts both of its halves."""

    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        width, bias = config.intermediate_size // 2, not config.no_bias
        self.w1 = nn.Linear(config.hidden_size, width, bias=bias)
        self.w2 = nn.Linear(config.hidden_size, width, bias=bias)
        self.c_proj = nn.Linear(width, config.hidden_size, bias=bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[…, hidden_size]."""
        return self.c_proj(self.w1(hidden_states) * F.silu(self.w2(hidden_states)))  # type: ignore[no-any-return]


class QWenBlock(nn.Module):  # type: ignore[misc]
    """One layer."""

    def __init__(self, config: QWenConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = QWenRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = QWenAttention(config, layer_idx)
        self.ln_2 = QWenRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = QWenMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """[rows, tokens, hidden_size]."""
        hidden_states = hidden_states + self.attn(
            self.ln_1(hidden_states), attention_mask, position_ids, past_key_values
        )
        hidden_states = hidden_states + self.mlp(self.ln_2(hidden_states))
        return hidden_states


class _QWenPreTrained(PreTrainedModel):  # type: ignore[misc]
    config_class = QWenConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["QWenBlock"]  # noqa: RUF012


class QWenModel(_QWenPreTrained):
    """Tokens to hidden states."""

    def __init__(self, config: QWenConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList([QWenBlock(config, number) for number in range(config.num_hidden_layers)])
        self.ln_f = QWenRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of tokens."""
        return self.wte

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
    ) -> BaseModelOutputWithPast:
        """Token ids [rows, tokens]."""
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(input_ids.shape[1]) + past)[None]
        hidden_states = self.wte(input_ids)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=None,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        for block in self.h:
            hidden_states = block(hidden_states, mask, position_ids, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(hidden_states), past_key_values=past_key_values)


class QWenLMHeadModel(_QWenPreTrained):
    """Tokens to logits."""

    def __init__(self, config: QWenConfig) -> None:
        super().__init__(config)
        self.transformer = QWenModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def forward(self, input_ids: torch.Tensor, **options: Any) -> CausalLMOutputWithPast:
        """Token ids [rows, tokens]; the options are those of the model without its head."""
        output = self.transformer(input_ids, **options)
        return CausalLMOutputWithPast(
            logits=self.lm_head(output.last_hidden_state), past_key_values=output.past_key_values
        )
