"""A model that reads with an encoder and writes with a decoder, as functions of what both are given."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache

__all__ = ["as_step", "call_as", "giving_logits", "in_one_call", "in_two_calls", "is_encoder_decoder", "source_name"]


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
def in_one_call(model: Any, source: torch.Tensor, decoder_input_ids: torch.Tensor, cache: Any = None) -> Any:
    """The output of both parts; ``source`` is what the model's encoder reads."""
    given = {source_name(model): source, "decoder_input_ids": decoder_input_ids}
    return type(model).forward(model, **given, past_key_values=cache, use_cache=True)


def in_two_calls(model: Any, source: torch.Tensor, decoder_input_ids: torch.Tensor, cache: Any = None) -> Any:
    """As transformers' ``generate`` calls it: the encoder by itself, which keeps nothing; a mask that hides nothing."""
    mask = torch.ones(source.shape, dtype=torch.int64)  # of sizes alone, so that it is seen to hide nothing
    read = model.get_encoder()(**{source_name(model): source}, attention_mask=mask, return_dict=True)
    return type(model).forward(
        model, encoder_outputs=read, attention_mask=mask, decoder_input_ids=decoder_input_ids, past_key_values=cache,
        use_cache=True,
    )  # fmt: skip


def source_name(model: Any) -> str:
    """What a model calls the tokens or features that its encoder reads."""
    return str(getattr(model, "main_input_name", "input_ids"))


@contextmanager
def as_step(model: Any, call: Callable[..., Any]) -> Iterator[None]:
    """Let ``model`` be called as ``(source, decoder_input_ids, past_key_values) -> logits``.

    The cache is that of the decoder's self-attention alone; keys and values of the encoder's output are computed anew,
    so that the captured program shows what they are made of.

    Args:
        model: The model.
        call: ``in_one_call`` or ``in_two_calls``.
    """
    name = source_name(model)

    def step(
        self: Any, *, decoder_input_ids: torch.Tensor, past_key_values: DynamicCache, **given: torch.Tensor
    ) -> tuple[torch.Tensor]:
        cache = EncoderDecoderCache(past_key_values, _GivenBack())
        return (call(self, given[name], decoder_input_ids, cache).logits,)

    call_as(model, step, name, "decoder_input_ids", "past_key_values")
    try:
        yield
    finally:
        del model.forward


def giving_logits(model: Any) -> Any:
    """``model``, from now on called as ``(source, decoder_input_ids) -> logits``."""
    name = source_name(model)

    def logits(self: Any, *, decoder_input_ids: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
        inputs = {name: given[name], "decoder_input_ids": decoder_input_ids}
        found: torch.Tensor = type(self).forward(self, **inputs, use_cache=False).logits
        return found

    call_as(model, logits, name, "decoder_input_ids")
    return model


def call_as(model: Any, forward: Callable[..., Any], *names: str) -> Any:
    """Give a model another forward with parameters of these names, which is told them all by name; the model."""
    parameter = inspect.Parameter
    every = [parameter(name, parameter.POSITIONAL_OR_KEYWORD) for name in names]

    def called(self: Any, *args: Any, **given: Any) -> Any:
        return forward(self, **dict(zip(names, args, strict=False)), **given)

    called.__signature__ = inspect.Signature([parameter("self", parameter.POSITIONAL_OR_KEYWORD), *every])  # type: ignore[attr-defined]
    model.forward = types.MethodType(called, model)
    return model
