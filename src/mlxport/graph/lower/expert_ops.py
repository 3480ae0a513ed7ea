"""Ops on the ``k`` experts that are chosen for each token, and on rows for them: sorted by expert where they are many.

``rewrite.caches`` writes them into the graph of a step of generation. None is run by torch: whether rows are sorted is
known when the port runs.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["bias_of_experts", "chosen", "is_sorted", "largest", "rows_by_expert", "rows_of_tokens", "shares"]


def chosen(scores: torch.Tensor, k: int, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Where the ``k`` largest of the last axis of ``scores``, or of their sum with ``bias``, are, in no order."""
    raise NotImplementedError


def largest(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The ``k`` largest of the last axis, in no order."""
    raise NotImplementedError


def shares(x: torch.Tensor, least: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    """``x`` by its sum over the last axis, to which ``least`` is added, times ``scale``."""
    raise NotImplementedError


def rows_by_expert(x: torch.Tensor, experts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Rows of ``x`` [..., width] for experts [..., k], their experts, and their order: None where they are not sorted.

    The rows have an axis of size 1 before the last. Not sorted they are [..., 1, 1, width], to be broadcast.
    """
    raise NotImplementedError


def bias_of_experts(bias: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """``bias[experts]``, a vector for each of the rows that ``rows_by_expert`` gives."""
    raise NotImplementedError


def is_sorted(order: Any) -> Any:
    """Whether ``rows_by_expert`` sorted."""
    raise NotImplementedError


def rows_of_tokens(x: torch.Tensor, order: Any, experts: torch.Tensor) -> torch.Tensor:
    """Rows [..., k, width] for experts [..., k], of what was computed from ``rows_by_expert``."""
    raise NotImplementedError
