"""The dtype that a module computes in, and a copy of it in float32 to compare a port with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mlxport.graph.capture.examples import Example
from mlxport.graph.capture.module_copies import copied

__all__ = ["OriginalCopies", "compared_dtype", "main_dtype"]


def _most(module: torch.nn.Module, example: Example) -> torch.dtype:
    leaves = [leaf for leaf in pytree.tree_leaves((example.args, example.kwargs)) if isinstance(leaf, torch.Tensor)]
    found = Counter(item.dtype for item in [*module.parameters()] or leaves if item.is_floating_point())
    return max(found, key=found.__getitem__, default=torch.float32)


def main_dtype(module: torch.nn.Module, example: Example) -> str:
    """The dtype that a port mostly computes in: that of most parameters, or of most inputs where there are none."""
    main = _most(module, example)
    return str(main).removeprefix("torch.") if main in (torch.float16, torch.bfloat16) else "float32"


def compared_dtype(module: torch.nn.Module, example: Example, values: Iterable[Any]) -> str:
    """The dtype whose tolerance a comparison of a port takes: the main one, or a half that its forward casts to.

    Args:
        module: The original.
        example: Inputs of it.
        values: What the nodes of its graph stand for.
    """
    main = main_dtype(module, example)
    inside = {value.dtype for value in values if isinstance(value, torch.Tensor)}
    coarsest = next((item for item in (torch.bfloat16, torch.float16) if item in inside), None)
    return main if main != "float32" or coarsest is None else str(coarsest).removeprefix("torch.")


class OriginalCopies:
    """Gives what a port of a module is compared with, anew at each call: a copy, so that running it leaves the module.

    It computes in float32, unless its forward is fixed to half precision: one that casts to a dtype by name, or makes
    tensors of it, cannot meet weights of another.
    """

    def __init__(self, module: torch.nn.Module, example: Example, written: Collection[str] = ()) -> None:
        """``example``: inputs of the original; ``written``: names of the parameters that its forward writes."""
        self._module, self._example, self._written = module, example, written
        self._fixed: bool | None = None

    def __call__(self) -> torch.nn.Module:
        """The module to call; its floating-point inputs may be in float32."""
        if _most(self._module, self._example) is torch.float32:
            named = list(self._module.named_parameters(remove_duplicate=False))
            own = {id(parameter) for name, parameter in named if name in self._written}
            return copied(self._module, [parameter for _, parameter in named if id(parameter) not in own])
        if self._fixed is None:
            wide = self._example.copied(torch.float32)
            self._fixed = not _runs(copied(self._module).float(), wide) and _runs(copied(self._module), self._example)
        return _cast_first(copied(self._module), self._example) if self._fixed else copied(self._module).float()


def _runs(module: torch.nn.Module, example: Example) -> bool:
    given = example.copied()
    try:
        with torch.no_grad():
            module(*given.args, **given.kwargs)
    except Exception:  # whatever it raises
        return False
    return True


def _cast_first(module: torch.nn.Module, example: Example) -> torch.nn.Module:
    """The module with its inputs cast to the dtypes that they have in the example."""
    dtypes = [getattr(leaf, "dtype", None) for leaf in pytree.tree_leaves((example.args, example.kwargs))]

    def cast(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves, structure = pytree.tree_flatten((args, kwargs))
        pairs = zip(leaves, dtypes, strict=True)
        return pytree.tree_unflatten([leaf if dtype is None else leaf.to(dtype) for leaf, dtype in pairs], structure)

    module.register_forward_pre_hook(cast, with_kwargs=True)
    return module
