"""Which sizes of the inputs a capture leaves free: all that torch.export can follow, or those that matter most.

Sizes are expressions of the inputs' sizes. Windows and padding nest remainders and quotients in them (Swin), until
deciding whether two are equal takes minutes; nobody could read such a size in a port either. A capture ends there and
starts anew with fewer sizes free.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import sympy
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from mlxport.options.size_spec import AnySize, FreeSize, SizeSpec

__all__ = ["SizesTooLong", "bounded_sizes", "free_sizes", "said_sizes"]

_MOST_TERMS = 150  # of one size; deep stacks of convolutions come to some sixty
_LONG = 40  # terms from which on time counts
_CALLS, _SECONDS = 50, 10.0  # otherwise so many calls take some tenths of a second


class SizesTooLong(Exception):
    """Sizes have become expressions that torch.export can follow no longer, or not in reasonable time."""


def free_sizes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
    """What may be left free, most first: in words, and as ``dynamic_shapes`` in the order of the arguments.

    Every axis; then batches, and the lengths of what has up to three axes, but not heights and widths; then batches.
    torch.export itself fixes those that the module fixes, and takes sizes 0 and 1 as fixed.
    """
    chosen: list[tuple[str, Callable[[torch.Tensor], range]]] = [
        ("all sizes", lambda tensor: range(tensor.ndim)),
        (
            "the first sizes, and all of inputs with up to three axes,",
            lambda tensor: range(tensor.ndim if tensor.ndim <= 3 else 1),
        ),
        ("the first sizes of the inputs", lambda tensor: range(min(tensor.ndim, 1))),
    ]
    dims = [(words, _automatic(axes)) for words, axes in chosen]
    found = [(words, (_shapes(args, each), _shapes(kwargs, each))) for words, each in dims]
    fewer = {repr(shapes): (words, shapes) for words, shapes in found[1:] if shapes != found[0][1]}
    return [found[0], *fewer.values()]


def said_sizes(
    spec: SizeSpec, names: Mapping[int, str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[str, Any]]:
    """What ``spec`` says in the place of ``free_sizes``: of what it leaves to the module all sizes, or else none.

    Args:
        spec: What was said.
        names: What each tensor of the inputs is called, by its id.
        args: Positional inputs.
        kwargs: Keyword inputs.
    """
    named: dict[str, Any] = {}
    tied = spec.tied()

    def dim(size: int | FreeSize | AnySize, others: bool) -> Any:
        if isinstance(size, int):
            return None
        if isinstance(size, AnySize) or size.name not in tied:  # torch.export may find its range
            return torch.export.Dim.AUTO if others or isinstance(size, FreeSize) else None
        made = named.setdefault(size.name, torch.export.Dim(size.name, min=2))
        made = made if size.factor == 1 else size.factor * made
        return made + size.offset if size.offset > 0 else made - -size.offset if size.offset else made

    def shapes(others: bool) -> Any:
        def dims(tensor: torch.Tensor) -> dict[int, Any]:
            found = {axis: dim(spec.of(names[id(tensor)], axis), others) for axis in range(tensor.ndim)}
            return {axis: made for axis, made in found.items() if made is not None}

        return _shapes(args, dims), _shapes(kwargs, dims)

    return [("all sizes", shapes(others=True)), ("only the sizes that were named", shapes(others=False))]


def _automatic(axes: Callable[[torch.Tensor], range]) -> Callable[[torch.Tensor], dict[int, Any]]:
    return lambda tensor: {axis: torch.export.Dim.AUTO for axis in axes(tensor)}


def _shapes(inputs: Any, dims_of: Callable[[torch.Tensor], dict[int, Any]]) -> Any:
    """In the place of a class that is registered with pytree stands the list of its parts, as torch.export wants it."""

    def dims(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return dims_of(item)
        registered = pytree.SUPPORTED_NODES.get(type(item))
        return None if registered is None else [each(part) for part in registered.flatten_fn(item)[0]]

    def each(value: Any) -> Any:
        return pytree.tree_map(
            dims, value, is_leaf=lambda item: pytree._get_node_type(item) not in pytree.BUILTIN_TYPES
        )

    return each(inputs)


def bounded_sizes(bounded: bool) -> Any:
    """A context in which a capture ends with ``SizesTooLong`` once its sizes are too long to follow; or none."""
    return _SizesSeen() if bounded else nullcontext()


class _SizesSeen(TorchFunctionMode):  # type: ignore[misc]
    """Looks at the sizes of what every call gives."""

    def __init__(self) -> None:
        super().__init__()
        self._longest = 0
        self._times: deque[float] = deque(maxlen=_CALLS)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Make a call, and look at its sizes."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self._longest = max([self._longest, *map(_terms_of, result.shape)])
        if self._longest > _MOST_TERMS:
            raise SizesTooLong(f"sizes that follow from the inputs' come to expressions of {self._longest} terms")
        self._times.append(time.process_time())
        if self._longest > _LONG and self._times[-1] - self._times[0] > _SECONDS:
            raise SizesTooLong(f"sizes that follow from the inputs' take more than {_SECONDS:.0f} s to work out")
        return result


def _terms_of(size: Any) -> int:
    return _terms(size.node.expr) if isinstance(size, torch.SymInt) else 0


@lru_cache(maxsize=4096)
def _terms(expression: sympy.Expr) -> int:
    return sum(1 for _ in sympy.preorder_traversal(expression))
