"""A model that reads with an encoder and writes with a decoder, as functions of the tokens of both."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache

__all__ = ["as_step", "giving_logits", "in_one_call", "in_two_calls", "is_encoder_decoder"]


def is_encoder_decoder(model: Any) -> bool:
    """Whether a transformers model reads tokens with an encoder, and writes others with a decoder."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


class _GivenBack(DynamicCache):  # type: ignore[misc]
    """Keys and values of the encoder's output, given back as they came: where they are kept is the port's business."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states


# The class's own forward is called: a copy of the model is to call itself.
def in_one_call(model: Any, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor, cache: Any = None) -> Any:
    """The output of both parts."""
    return type(model).forward(
        model, input_ids=input_ids, decoder_input_ids=decoder_input_ids, past_key_values=cache, use_cache=True
    )


def in_two_calls(model: Any, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor, cache: Any = None) -> Any:
    """As transformers' ``generate`` calls it: the encoder by itself, which keeps nothing; a mask that hides nothing."""
    mask = torch.ones(input_ids.shape, dtype=torch.int64)  # of sizes alone, so that it is seen to hide nothing
    read = model.get_encoder()(input_ids=input_ids, attention_mask=mask, return_dict=True)
    return type(model).forward(
        model, encoder_outputs=read, attention_mask=mask, decoder_input_ids=decoder_input_ids, past_key_values=cache,
        use_cache=True,
    )  # fmt: skip


def _logits(self: Any, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor) -> torch.Tensor:
    output = type(self).forward(self, input_ids=input_ids, decoder_input_ids=decoder_input_ids, use_cache=False)
    logits: torch.Tensor = output.logits
    return logits


@contextmanager
def as_step(model: Any, call: Callable[..., Any]) -> Iterator[None]:
    """Let ``model`` be called as ``(input_ids, decoder_input_ids, past_key_values) -> logits``.

    The cache is that of the decoder's self-attention alone; keys and values of the encoder's output are computed anew,
    so that the captured program shows what they are made of.

    Args:
        model: The model.
        call: ``in_one_call`` or ``in_two_calls``.
    """

    def step(
        self: Any, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor, past_key_values: DynamicCache
    ) -> tuple[torch.Tensor]:
        cache = EncoderDecoderCache(past_key_values, _GivenBack())
        return (call(self, input_ids, decoder_input_ids, cache).logits,)

    _call_as(model, step)
    try:
        yield
    finally:
        del model.forward


def giving_logits(model: Any) -> Any:
    """``model``, from now on called as ``(input_ids, decoder_input_ids) -> logits``."""
    _call_as(model, _logits)
    return model


def _call_as(model: Any, forward: Callable[..., Any]) -> None:
    model.forward = types.MethodType(forward, model)
