"""The original in torch without its weights in memory: parameters that read themselves where they are used."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map

from mlxport.errors import UnsupportedError
from mlxport.parity.checkpoint_mapping import Recipe, parameter_recipes
from mlxport.parity.fp8 import source_weights
from mlxport.parity.reference import empty_model, reached_by_text
from mlxport.parity.torch_rows import BLOCK_BYTES, on_all_cores, read_block
from mlxport.types import Checkpoint, TensorRef

__all__ = ["LazyWeight", "NamedRows", "lazy_model", "lazy_parameters"]


class NamedRows(Protocol):
    """Weights under checkpoint names, by rows."""

    def __contains__(self, name: object) -> bool:
        """Whether it has a tensor."""
        ...

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows along axis 0."""
        ...


class _Nothing:
    def __contains__(self, name: object) -> bool:
        return False

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        raise KeyError(name)


class Source:
    """Where one parameter comes from: rows of float32 on demand."""

    def __init__(self, shape: tuple[int, ...], recipe: Recipe) -> None:
        self.shape = shape
        self.recipe = recipe

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop`` along axis 0, nothing else read where the conversion allows it."""
        if self.recipe.plain is not None:
            return self.recipe.read(self.recipe.plain, start, stop).to(torch.float32)
        if self.recipe.per_row:
            return torch.cat([self.recipe.convert(row) for row in range(start, stop)]).to(torch.float32)
        return self.whole()[start:stop]

    def whole(self) -> torch.Tensor:
        """The whole parameter."""
        if self.recipe.plain is not None:
            return self.recipe.read(self.recipe.plain, 0, None).to(torch.float32)
        return self.recipe.convert(None).to(torch.float32)

    def blocks(self) -> list[tuple[int, int]]:
        """Ranges of rows to work on, of one size; a parameter that is made as a whole is one."""
        count = self.shape[0]
        if not (self.recipe.plain or self.recipe.per_row):
            return [(0, count)]
        step = max(1, BLOCK_BYTES // (4 * max(1, prod(self.shape[1:]))))
        return [(start, min(start + step, count)) for start in range(0, count, step)]


class LazyWeight(torch.Tensor):  # type: ignore[misc]
    """A tensor of shape and dtype only; what is computed with it reads the rows that it needs."""

    source: Source

    @staticmethod
    def __new__(cls, source: Source) -> LazyWeight:
        """Wrap ``source``."""
        weight: LazyWeight = torch.Tensor._make_wrapper_subclass(cls, source.shape, dtype=torch.float32, device="cpu")  # type: ignore[attr-defined]
        weight.source = source
        return weight

    def __deepcopy__(self, memo: Any) -> LazyWeight:
        """Itself: nothing writes it, so that copies of a model share it."""
        return self

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Stream what is known to be large, hand out whole tensors to everything else."""
        kwargs = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            if func in _STREAMED:
                return _STREAMED[func](*args, **kwargs)
            if func in _METADATA:
                return func(*args, **kwargs)
            args, kwargs = tree_map(_whole, (args, kwargs))
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What reaches an operator without passing by a Python function gets whole tensors."""
        args, kwargs = tree_map(_whole, (args, dict(kwargs or {})))
        return func(*args, **kwargs)


def _whole(value: Any) -> Any:
    return value.source.whole() if isinstance(value, LazyWeight) else value


def _linear(input: torch.Tensor, weight: Any, bias: Any = None) -> torch.Tensor:
    if not isinstance(weight, LazyWeight):
        return F.linear(input, weight, _whole(bias))
    source, inference = weight.source, torch.is_inference_mode_enabled()
    output = input.new_empty((*input.shape[:-1], source.shape[0]))

    def product(rows: tuple[int, int]) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # a thread begins with gradients
            output[..., rows[0] : rows[1]] = F.linear(input, source.rows(*rows))

    blocks = source.blocks()
    if len(blocks) > 1:
        source.rows(0, 1)  # what must be rearranged in MLX is so by this thread
    on_all_cores(product, blocks)
    return output if bias is None else output + _whole(bias)


def _embedding(input: torch.Tensor, weight: Any, *_: Any, **__: Any) -> torch.Tensor:
    used, place = input.unique(return_inverse=True)
    return torch.cat([weight.source.rows(int(row), int(row) + 1) for row in used])[place]


def _getitem(weight: Any, index: Any) -> Any:
    if not isinstance(weight, LazyWeight):
        return weight[_whole(index)]
    scalar = index.item() if isinstance(index, torch.Tensor) and index.ndim == 0 else index
    if isinstance(scalar, int) and not isinstance(scalar, bool):
        return weight.source.rows(scalar % weight.shape[0], scalar % weight.shape[0] + 1)[0]
    return weight.source.whole()[index]


_STREAMED: Mapping[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    torch.Tensor.__getitem__: _getitem,
}
_METADATA = frozenset(
    [
        getattr(torch.Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_meta", "is_leaf")
    ]
    + [torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.is_floating_point]
    + [torch.Tensor.__repr__, torch.Tensor.element_size]
)


def lazy_model(checkpoint: Checkpoint, *, layout: NamedRows | None = None) -> Any:
    """The torch model in float32 with lazy parameters.

    Args:
        checkpoint: The original.
        layout: Where to read weights that are not the checkpoint's own but under its names; None for its own.

    Raises:
        UnsupportedError: Not every weight of the model is in the checkpoint.
    """
    return lazy_parameters(empty_model(checkpoint), checkpoint, layout=layout)


def lazy_parameters(model: Any, checkpoint: Checkpoint, *, layout: NamedRows | None = None) -> Any:
    """``model``, built on meta, with parameters that are read from ``checkpoint`` where they are used.

    Args:
        model: A transformers model without weights, its buffers real.
        checkpoint: The original.
        layout: As in ``lazy_model``.

    Raises:
        UnsupportedError: Not every weight of the model is in the checkpoint.
    """
    model.tie_weights()
    own: NamedRows = layout or source_weights(checkpoint) or _Nothing()

    def read(ref: TensorRef, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return own.rows(ref.name, start, stop) if ref.name in own else read_block(ref, start, stop)

    recipes = parameter_recipes(model, checkpoint, read)
    made: dict[int, LazyWeight] = {}
    names = list(model.named_parameters(remove_duplicate=False))
    for name, parameter in names:
        if name in recipes and recipes[name].shape in (None, tuple(parameter.shape)):
            made.setdefault(id(parameter), LazyWeight(Source(tuple(parameter.shape), recipes[name])))
    absent = reached_by_text(name for name, parameter in names if id(parameter) not in made)
    if absent:
        raise UnsupportedError(
            f"{checkpoint.name} has no weights for {', '.join(absent[:4])}{' …' if len(absent) > 4 else ''}",
            hint=f"look at what it holds: mlxport inspect {shlex.quote(checkpoint.location)}",
        )
    for name, parameter in names:
        if id(parameter) not in made:
            continue
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        del module._parameters[leaf]
        module.__dict__[leaf] = made[id(parameter)]
    _load_buffers(model, recipes)
    _tell_parameters(model)
    return model.eval()


def _tell_parameters(model: Any) -> None:
    """Let models that ask their parameters for a device or a dtype while they compute see the lazy ones."""
    for module in model.modules():
        if next(module.parameters(), None) is None:
            lazy = [item for part in module.modules() for item in vars(part).values() if isinstance(item, LazyWeight)]
            if lazy:
                module.__dict__["parameters"] = lambda recurse=True, lazy=lazy: iter(lazy)


def _load_buffers(model: Any, recipes: Mapping[str, Recipe]) -> None:
    for name, buffer in list(model.named_buffers()):
        if name in recipes:
            owner, _, leaf = name.rpartition(".")
            value = Source(tuple(buffer.shape), recipes[name]).whole()
            model.get_submodule(owner)._buffers[leaf] = value.to(buffer.dtype)
