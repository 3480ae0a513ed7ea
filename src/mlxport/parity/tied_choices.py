"""Choices that torch does not define: ``topk`` after a ReLU or unsorted, ``argsort`` of scores that are alike.

Which of some equal values comes first there depends on how many there are, and on the machine. A port takes the first;
so does the original while it is compared, and where it would have done otherwise is said.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mlxport.graph.capture.origin import is_users

__all__ = ["TiedChoices"]


class TiedChoices(TorchFunctionMode):  # type: ignore[misc]
    """While it is entered, chosen values are sorted, and the first of equal ones comes first.

    Attributes:
        places: Where torch by itself chooses others.
    """

    def __init__(self) -> None:
        """Nothing chosen yet."""
        super().__init__()
        self.places: dict[str, None] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Make a call, equal values in their order."""
        made = func(*args, **(kwargs or {}))
        choose = _CHOICES.get(getattr(func, "__name__", ""))
        if choose is None or (kwargs or {}).get("stable") or (kwargs or {}).get("out") is not None:
            return made
        chosen = choose(*args, **(kwargs or {}))
        if chosen is None or torch.equal(_indices(made), _indices(chosen)):
            return made
        self.places[_place()] = None
        return chosen

    def note(self) -> str:
        """What is to be said of them; empty where torch chooses as the port does."""
        if not self.places:
            return ""
        return (
            f"values are chosen in an order that torch leaves open ({', '.join(self.places)}): they are taken sorted, "
            "and of equal ones the first"
        )


def _topk(input: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    # Not sorted they come in any order, this one too.
    values, indices = torch.sort(input, dim=-1 if dim is None else dim, descending=largest, stable=True)
    axis = -1 if dim is None else dim
    return torch.return_types.topk((values.narrow(axis, 0, k), indices.narrow(axis, 0, k)))


def _sort(input: torch.Tensor, dim: int = -1, descending: bool = False, **_: Any) -> Any:
    return torch.sort(input, dim=dim, descending=descending, stable=True)


def _argsort(input: torch.Tensor, dim: int = -1, descending: bool = False, **_: Any) -> torch.Tensor:
    return torch.argsort(input, dim=dim, descending=descending, stable=True)


_CHOICES: Mapping[str, Callable[..., Any]] = {"topk": _topk, "sort": _sort, "argsort": _argsort}


def _indices(made: Any) -> torch.Tensor:
    return made if isinstance(made, torch.Tensor) else made[1]


def _place() -> str:
    own = [frame for frame in traceback.extract_stack() if is_users(frame.filename)]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "topk"
