"""Ops on what ``cache_ops`` says of states, of modules that are called for each token; none has a meaning in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import has_side_effect

from mlxport.graph.lower import cache_ops

__all__ = [
    "all_tokens",
    "is_on_cache",
    "keep_token",
    "largest_states",
    "linear_attention",
    "linear_states",
    "one_token",
    "past_windows",
    "recall",
    "wkv",
]


def is_on_cache(node: Node) -> bool:
    """Whether an op is one of these, or of ``cache_ops``."""
    return getattr(node.target, "__module__", "") in (__name__, cache_ops.__name__)


def wkv(
    decay: torch.Tensor, first: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: Any, slot: int, mask: Any
) -> torch.Tensor:
    """``state_ops.wkv`` from the state that is kept."""
    raise NotImplementedError


# Modules that are called for each token: within, tensors have one. Nothing is written for the first two.
def one_token(x: torch.Tensor, axis: int) -> torch.Tensor:
    """``x`` with one token along ``axis``, as the module is given it."""
    raise NotImplementedError


def all_tokens(x: torch.Tensor, axis: int, length: Any) -> torch.Tensor:
    """``x`` with as many tokens along ``axis`` as the module is called for."""
    raise NotImplementedError


def recall(cache: Any, slot: int, sizes: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """What the last token left at ``slot``; zeros before the first."""
    raise NotImplementedError


def keep_token(cache: Any, slot: int, before: torch.Tensor, state: torch.Tensor, mask: Any) -> None:
    """Keep ``state`` after one token, or what was ``before`` in rows where it is padding."""
    raise NotImplementedError


has_side_effect(keep_token)


# Modules of which each token is a row, [batch * length, ...].
def linear_states(decay: Any, new: torch.Tensor, cache: Any, slot: int, mask: Any, length: Any) -> Any:
    """``state = decay * state + new`` before and after each token, both of the sizes of ``new``."""
    raise NotImplementedError


def largest_states(added: Any, new: torch.Tensor, cache: Any, slot: int, mask: Any, length: Any) -> Any:
    """``state = max(state + added, new)`` before and after each token, both of the sizes of ``new``."""
    raise NotImplementedError


def past_windows(x: torch.Tensor, width: int, cache: Any, slot: int, mask: Any, length: Any) -> torch.Tensor:
    """The last ``width`` rows of ``x`` [rows, channels] before each token, and its own: [rows, width + 1, channels]."""
    raise NotImplementedError


def linear_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: Any, cache: Any, slot: int, mask: Any, length: Any
) -> torch.Tensor:
    """``state = decay * state + k v``, ``y = q state``; q, k [rows, H, D], v [rows, H, E], decay [rows or 1, H]."""
    raise NotImplementedError
