"""Modules that carry a state from token to token: found by what they compute of it, captured for one token each.

Their own forwards loop over the tokens, whose number would come out fixed. Captured for one token they are a step,
which the port calls for each token: whatever the step computes.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mlxport.graph.capture import state_ops

__all__ = ["Untouched", "layer_number", "one_token_each", "readers", "recurrent"]

# Of a module's outputs in order: the axis of the tokens, None where there is none.
OutputAxes = tuple[int | None, ...]
_LENGTHS = (5, 7)  # tokens of the runs that show which axes are theirs


class _Reads(TorchDispatchMode):  # type: ignore[misc]
    """Which modules compute something of the tensors that are remembered."""

    def __init__(self, remembered: Mapping[str, torch.Tensor], running: list[str]) -> None:
        super().__init__()
        self._names = {tensor.untyped_storage()._cdata: name for name, tensor in remembered.items()}
        self._running = running
        self.found: dict[str, set[str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        taken = args[1:] if func is torch.ops.aten.copy_.default else args
        if not func.is_view and func.namespace != "prim" and func is not torch.ops.aten.detach.default:
            for item in pytree.tree_leaves((taken, kwargs)):
                name = self._name(item)
                if name is not None:
                    self.found.setdefault(name, set()).add(self._running[-1])
        return func(*args, **kwargs)

    def _name(self, item: Any) -> str | None:
        return self._names.get(item.untyped_storage()._cdata) if isinstance(item, torch.Tensor) else None


class Untouched(TorchDispatchMode):  # type: ignore[misc]
    """Leaves a model's parameters as they are, whatever writes to them; ``written``: whether something would have."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._storages = {tensor.untyped_storage()._cdata for tensor in model.parameters()}
        self.written = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else None
        if func._schema.is_mutable and isinstance(first, torch.Tensor):
            if first.untyped_storage()._cdata in self._storages:
                self.written = True
                return first
        return func(*args, **(kwargs or {}))


def readers(
    model: torch.nn.Module, remembered: Mapping[str, torch.Tensor], run: Callable[[], Any]
) -> dict[str, set[str]]:
    """Paths of the innermost modules that compute something of each tensor that is remembered, while ``run`` runs."""
    running = [""]
    with ExitStack() as hooks:
        for path, module in model.named_modules():
            before = module.register_forward_pre_hook(lambda *_, path=path: running.append(path))
            after = module.register_forward_hook(lambda *_: (running.pop(), None)[1])
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        with _Reads(remembered, running) as reads:
            run()
    return reads.found


def layer_number(path: str) -> int | None:
    """The number of the layer that a module at ``path`` belongs to: the place in the first list."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def recurrent(
    model: torch.nn.Module, found: Mapping[str, set[str]], run: Callable[[int], Any]
) -> dict[str, OutputAxes]:
    """The modules to be called for each token, by path, with the axes along which their outputs have the tokens.

    Args:
        model: The model.
        found: Of what is remembered, the paths of the modules that ``readers`` found.
        run: Calls the model with as many tokens as it is told.

    Returns:
        Of each reader the innermost module around it that is called once, with all tokens; the outermost of these.
    """
    readers = {path for paths in found.values() for path in paths}
    around = {
        path: [".".join(path.split(".")[:count]) for count in range(1 + path.count("."), 0, -1)] for path in readers
    }
    axes = _token_axes(model, {path for paths in around.values() for path in paths}, run)
    chosen = {
        next((path for path in paths if any(axis is not None for axis in axes[path])), "") for paths in around.values()
    }
    outermost = [path for path in sorted(chosen) if not any(path.startswith(other + ".") for other in chosen if other)]
    return {path: axes.get(path, ()) for path in outermost}


def _token_axes(model: torch.nn.Module, paths: set[str], run: Callable[[int], Any]) -> dict[str, OutputAxes]:
    """Where the outputs of modules have their tokens: the axis that is longer when there are more; empty if unknown."""
    seen: dict[str, list[list[Any]]] = {path: [] for path in paths}
    with ExitStack() as hooks:
        for path in paths:
            note = seen[path]
            hook = model.get_submodule(path).register_forward_hook(
                lambda _, args, output, note=note: note.append([getattr(item, "shape", ()) for item in _leaves(output)])
            )
            hooks.callback(hook.remove)
        for length in _LENGTHS:
            run(length)
    return {
        path: tuple(map(_axis, *calls)) if len(calls) == len(_LENGTHS) and len(calls[0]) == len(calls[1]) else ()
        for path, calls in seen.items()
    }


def _axis(shorter: Any, longer: Any) -> int | None:
    pairs = zip(shorter, longer, strict=True)
    return next((axis for axis, pair in enumerate(pairs) if tuple(pair) == _LENGTHS), None)


def _leaves(value: Any) -> list[Any]:
    return _flat(value)[0]


def _flat(value: Any) -> tuple[list[Any], Any]:
    """Leaves of lists, tuples and dicts; what else is registered (a cache) is handed on as the object that it is."""
    return pytree.tree_flatten(value, is_leaf=lambda item: pytree._get_node_type(item) not in pytree.BUILTIN_TYPES)


@contextmanager
def one_token_each(model: torch.nn.Module, axes: Mapping[str, OutputAxes], tokens: Callable[[], Any]) -> Iterator[None]:
    """Within, modules see one token, and give as many again: ``one_token`` and ``all_tokens`` stand around them.

    Args:
        model: The model, which may be copied.
        axes: Of the outputs of each of these modules, by path.
        tokens: Gives the number of tokens, a symbol while the model is captured.
    """
    chosen = [model.get_submodule(path) for path in axes]
    for module, places in zip(chosen, axes.values(), strict=True):
        module.forward = types.MethodType(_step(places, tokens), module)
    try:
        yield
    finally:
        for module in chosen:
            del module.forward


def _step(places: OutputAxes, tokens: Callable[[], Any]) -> Callable[..., Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = _flat((args, kwargs))
        along = {index: axis for index, leaf in enumerate(leaves) if (axis := _along(leaf, tokens())) is not None}
        if not along:
            return type(self).forward(self, *args, **kwargs)
        one = [state_ops.one_token(leaf, along[index]) if index in along else leaf for index, leaf in enumerate(leaves)]
        args, kwargs = pytree.tree_unflatten(one, spec)
        made, spec = _flat(type(self).forward(self, *args, **kwargs))
        if any(place is not None and item.shape[place] != 1 for item, place in zip(made, places, strict=True)):
            raise ValueError(f"{type(self).__name__} does not give one token for one")
        index, axis = next(iter(along.items()))
        made = [
            item if place is None else state_ops.all_tokens(item, place, leaves[index], axis)
            for item, place in zip(made, places, strict=True)
        ]
        return pytree.tree_unflatten(made, spec)

    return forward


def _along(leaf: Any, tokens: Any) -> int | None:
    """The axis of a tensor that has the size ``tokens``."""
    if not isinstance(leaf, torch.Tensor):
        return None
    sizes = [size if isinstance(size, int) else size.node.expr for size in leaf.shape]
    wanted = tokens if isinstance(tokens, int) else tokens.node.expr
    return next((axis for axis, size in enumerate(sizes) if size == wanted), None)
