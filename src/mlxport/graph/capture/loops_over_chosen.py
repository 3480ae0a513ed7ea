"""Loops over those experts that some token chose: how many these are is known only when the loop runs.

``for expert in (counts > 0).nonzero()`` is captured in one of two ways. Where the body only takes rows of stacked
weights by the expert, it is run once, each choice of a token being a row with the matrices of its own expert. Where it
asks for the expert's number, it is run for all: what it computes of no rows adds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from mlxport.graph.capture.replaced_calls import forward_replaced

__all__ = ["LoopsOverAll", "loops_followed"]

_T = TypeVar("_T")
_PLACES = (torch.nonzero, torch.Tensor.nonzero, torch.argwhere, torch.Tensor.argwhere)
_SAME = (
    torch.Tensor.squeeze,
    torch.squeeze,
    torch.Tensor.flatten,
    torch.flatten,
    torch.Tensor.reshape,
    torch.Tensor.view,
)
_LOOPS = (torch.Tensor.unbind, torch.unbind, torch.Tensor.__iter__)
_TURNED = (torch.Tensor.t, torch.t, torch.Tensor.T.__get__, torch.Tensor.mT.__get__)  # type: ignore[attr-defined]
_PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm)
_ORDERS = (torch.Tensor.permute, torch.permute)
_MOST = 128  # experts that a body is run for


class AsksForNumber(Exception):
    """The body of a loop asks which expert it is run for."""


def loops_followed(module: torch.nn.Module, run: Callable[[], _T]) -> _T:
    """What ``run``, which calls the module, gives: loops over chosen experts run once, or, if they cannot, for each."""
    try:
        with _within(module, once=True):
            return run()
    except AsksForNumber:
        with _within(module, once=False):
            return run()


@contextmanager
def _within(module: torch.nn.Module, once: bool) -> Iterator[None]:
    """Within, calls of the module are followed: nothing that a caller does comes between."""

    def followed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with LoopsOverAll(once):
            return forward(*args, **kwargs)

    with forward_replaced(module, followed):
        yield


class LoopsOverAll(TorchFunctionMode):  # type: ignore[misc]
    """Within, a loop over the places where a vector of known length holds is one over all its places.

    Args:
        once: Run its body once for all.
    """

    def __init__(self, once: bool = False) -> None:
        super().__init__()
        self.once = once
        self._lengths = WeakTensorKeyDictionary()  # of places, how many there may be
        self._masks = WeakTensorKeyDictionary()  # which rows chose one of those that a loop goes over
        self._bounds = WeakTensorKeyDictionary()  # of indices that a router chose, of how many
        self._classes: dict[int, int] = {}  # of one-hot rows, how many of the places such indices fill
        self._looped: set[int] = set()
        # With ``once``: the number, masks by class with their indices, what these are of one, and matrices of rows.
        self._numbers = WeakTensorKeyDictionary()
        self._one_hot = WeakTensorKeyDictionary()
        self._chosen = WeakTensorKeyDictionary()
        self._matrices = WeakTensorKeyDictionary()
        self._experts: torch.Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if first is None:
            return func(*args, **kwargs)
        length = self._lengths.get(first)
        if length is not None and func in _LOOPS and args[1:] in ((), (0,)) and not kwargs:
            places = self._places(first, length)
            return iter(places) if func is torch.Tensor.__iter__ else places
        if length is not None and func is torch.Tensor.tolist and first.ndim == 1 and length <= _MOST:
            if self.once:
                raise AsksForNumber
            self._looped.add(length)
            return list(range(length))
        made = self._of_rows(func, args, kwargs) if self.once and self._looped else None
        if made is None:
            made = func(*args, **kwargs)
            self._note(func, first, length, args, made)
        return made

    def _places(self, first: torch.Tensor, length: int) -> tuple[torch.Tensor, ...]:
        if length > _MOST and not self.once:
            raise ValueError(
                f"its loop asks for the number of each of {length} experts, and is written out for at most {_MOST}"
            )
        self._looped.add(length)
        self._experts = None
        sizes = [int(size) for size in first.shape[1:]]
        places = tuple(torch.tensor(np.full(sizes, place).tolist()) for place in range(1 if self.once else length))
        for place in places if self.once else ():
            self._numbers[place] = True
        return places

    def _note(self, func: Any, first: torch.Tensor, length: int | None, args: Any, made: Any) -> None:
        """Note what a result says of experts."""
        if func in _PLACES and first.ndim == 1 and isinstance(first.shape[0], int) and isinstance(made, torch.Tensor):
            self._lengths[made] = self._classes.get(first.shape[0], first.shape[0])
        elif func in (torch.topk, torch.Tensor.topk) and args[2:] in ((), (-1,), (first.ndim - 1,)):
            self._bounds[made[1]] = first.shape[-1]
        elif func is torch.nn.functional.one_hot and made.ndim > first.ndim:
            count = made.shape[-1]
            self._classes[count] = max(self._classes.get(count, 0), self._bounds.get(first, count))
            self._one_hot[made] = (first, first.ndim)
        elif func in _ORDERS and first in self._one_hot:
            self._reorder(first, args[1:], made)
        elif length is not None and (func in _SAME or func is torch.Tensor.__getitem__ and made.ndim == 1):
            self._lengths[made] = length
        elif func is torch.Tensor.__getitem__ and isinstance(first.shape[0], int) and first.shape[0] in self._looped:
            self._masks[made] = True
        elif first in self._masks and func in _SAME:
            self._masks[made] = True
        elif first in self._masks and func in (torch.where, torch.Tensor.where, *_PLACES):
            rows = made[0] if isinstance(made, tuple) else made
            torch._check(rows.shape[0] > 0)  # what is computed of none adds nothing

    def _reorder(self, first: torch.Tensor, order: Any, made: torch.Tensor) -> None:
        indices, axis = self._one_hot[first]
        axes = [place % first.ndim for place in (order[0] if len(order) == 1 else order)]
        others = [place - (place > axis) for place in axes if place != axis]
        self._one_hot[made] = (indices.permute(others), axes.index(axis))

    def _of_rows(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the one run of a body gives, where it has to do with the expert; None where it has not."""
        first = args[0]
        if any(isinstance(item, torch.Tensor) and item in self._matrices for item in (*args, *kwargs.values())):
            return self._product(func, args, kwargs)
        if func is torch.Tensor.__getitem__ and isinstance(args[1], torch.Tensor) and args[1] in self._numbers:
            return self._taken(first, args[1])
        if first in self._numbers:
            return self._number(func, args, kwargs)
        if first in self._chosen:
            return self._rows(func, args, kwargs)
        if func in (torch.eq, torch.Tensor.eq, torch.Tensor.__eq__) and _is_in(args[1], self._numbers):
            made = func(*args, **kwargs)
            self._chosen[made] = first
            return made
        if not _asks_of_form(func) and any(
            _is_in(item, self._numbers) for item in torch.utils._pytree.tree_leaves((args, kwargs))
        ):
            raise AsksForNumber
        return None

    def _number(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func not in (*_SAME, torch.Tensor.__getitem__):
            if _asks_of_form(func):
                return None
            raise AsksForNumber
        made = func(*args, **kwargs)
        self._numbers[made] = True
        return made

    def _taken(self, x: torch.Tensor, number: torch.Tensor) -> Any:
        """``x[number]``: which rows chose it, or what each row's expert has."""
        if x in self._one_hot and self._one_hot[x][1] == 0:
            made = x[0] if number.ndim == 0 else x[:1]
            self._chosen[made] = self._one_hot[x][0] if number.ndim == 0 else self._one_hot[x][0][None]
            return made
        if self._experts is None or number.ndim or not x.is_floating_point():
            raise AsksForNumber
        made = x[self._experts]
        if made.ndim == 3:
            self._matrices[made] = True
        elif made.ndim > 3:
            raise AsksForNumber
        return made

    def _rows(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Of a mask of those who chose the expert: all places, since each row is one's choice."""
        indices = self._chosen[args[0]]
        if func in _SAME and not kwargs:
            made = func(*args)
            self._chosen[made] = func(indices, *args[1:])
            return made
        if func not in (torch.where, torch.Tensor.where, *_PLACES) or len(args) > 1:
            raise AsksForNumber
        self._experts = indices.reshape(-1)
        places = []
        for axis, size in enumerate(indices.shape):
            shape = [1] * indices.ndim
            shape[axis] = size
            places.append(torch.arange(size).view(shape).expand(indices.shape).reshape(-1))
        return tuple(places) if func in (torch.where, torch.Tensor.where) else torch.stack(places, 1)

    def _product(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A product of rows with matrices of their own."""
        first, *rest = args
        if first in self._matrices and func in (*_TURNED, torch.Tensor.transpose, torch.transpose):
            made = first.transpose(1, 2)
            self._matrices[made] = True
            return made
        if _asks_of_form(func):
            return func(*args, **kwargs)
        if first in self._matrices or not rest or first.ndim != 2:
            raise AsksForNumber
        if func is torch.nn.functional.linear:
            bias = [*rest, kwargs.get("bias")][1]
            made = (first.unsqueeze(1) @ rest[0].transpose(1, 2)).squeeze(1)
            return made if bias is None else made + bias
        if func in _PRODUCTS and len(rest) == 1 and not kwargs:
            return (first.unsqueeze(1) @ rest[0]).squeeze(1)
        raise AsksForNumber


def _asks_of_form(func: Any) -> bool:
    return getattr(func, "__name__", "") == "__get__" or func in (torch.Tensor.dim, torch.Tensor.size)


def _is_in(item: Any, known: WeakTensorKeyDictionary) -> bool:
    return isinstance(item, torch.Tensor) and item in known
