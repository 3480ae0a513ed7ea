"""Steps of models that remember in ways of their own: lists beside the cache, states in modules, stacks of all layers.

All that is remembered is made inputs of the step: what the model hands over, and what its modules keep to themselves.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from mlxport.graph.capture.loops_over_chosen import loops_followed
from mlxport.graph.capture.recurrent_modules import (
    OutputAxes,
    Untouched,
    layer_number,
    one_token_each,
    readers,
    recurrent,
)
from mlxport.graph.rewrite.caches.cached_step import NotCached

__all__ = ["RememberedExample", "as_recurrent_step", "example_of", "left_as_it_was"]

_OWN = ("keys", "values")  # of attention, which the general pass knows


@dataclass
class RememberedExample:
    """What is remembered in an example.

    Attributes:
        parameter: The parameter that takes what the model hands over.
        given: That, all zero.
        held: What modules keep to themselves, by their path and the attribute.
        layers: The tensors of each layer, by name.
        stacks: Tensors that hold a part for each layer, with a name.
        axes: The modules that are captured for one token, and the axes of their outputs.
    """

    parameter: str
    given: Any
    held: dict[tuple[str, str], torch.Tensor]
    layers: list[SimpleNamespace] = field(default_factory=list)
    stacks: dict[str, torch.Tensor] = field(default_factory=dict)
    axes: dict[str, OutputAxes] = field(default_factory=dict)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors, by where they lie."""
        held = {f"{path}.{name}": tensor for (path, name), tensor in self.held.items()}
        return {**_tensors(self.given), **held}


def _tensors(holder: Any, place: str = "", seen: frozenset[int] = frozenset()) -> dict[str, torch.Tensor]:
    """The tensors that lists, dicts and objects of the model's own hold, by their places."""
    if isinstance(holder, torch.Tensor):
        return {place: holder}
    if id(holder) in seen:
        return {}
    if isinstance(holder, dict):
        parts = dict(holder)
    elif isinstance(holder, list | tuple):
        parts = dict(enumerate(holder))
    elif type(holder).__module__.startswith("transformers") and hasattr(holder, "__dict__"):
        parts = {name: item for name, item in vars(holder).items() if name != "config"}
    else:
        return {}
    found: dict[str, torch.Tensor] = {}
    for name, item in parts.items():
        found |= _tensors(item, f"{place}.{name}" if place else str(name), seen | {id(holder)})
    return found


def example_of(model: Any, parameter: str, ids: torch.Tensor, each_token: bool) -> RememberedExample:
    """What the model remembers of some tokens, and, for ``each_token``, which of its modules compute with it.

    Raises:
        NotCached: Nothing is remembered, or something reads it that is no part of a layer.
    """
    symbols = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=symbols)
    with mode, left_as_it_was(model), torch.no_grad():
        given, held = _remembered(model, parameter, mode.from_tensor(ids, static_shapes=True))

        def fresh() -> RememberedExample:
            def empty(item: torch.Tensor) -> torch.Tensor:
                return torch.zeros(item.shape, dtype=item.dtype)

            return RememberedExample(parameter, *pytree.tree_map_only(torch.Tensor, empty, (given, held)))

        def run(length: int, example: RememberedExample) -> Any:
            with example_in_modules(model, example.held):
                tokens = mode.from_tensor(ids[:, :length])
                return _called(model, input_ids=tokens, **{parameter: example.given}, use_cache=True)

        run(1, fresh())
        with Untouched(model) as again:
            run(1, fresh())
        if again.written:  # what is done once, when it first runs, is as good as part of them
            raise NotCached("it changes its weights in each step")

        traced = fresh()
        states = {name: item for name, item in traced.tensors().items() if name.rpartition(".")[2] not in _OWN}
        found = readers(model, states, lambda: run(1, traced))
        reading = {name: paths for name, paths in found.items() if states[name].ndim > 1}  # no counters
        axes = recurrent(model, reading, lambda length: run(length, fresh())) if each_token else {}
        if each_token and not axes or any(layer_number(path) is None for path in axes):
            raise NotCached("what it remembers is read by no module of a layer, or by none that is given all tokens")
    example = RememberedExample(
        parameter, *pytree.tree_map_only(torch.Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), (given, held))
    )
    example.axes = axes
    _place(example, found)
    return example


def _called(model: Any, **inputs: Any) -> Any:
    """What a model gives; what its own code raises is why it is refused.

    Raises:
        NotCached: It raises an exception.
    """
    try:
        return loops_followed(model, lambda: model(**inputs))
    except Exception as error:  # the model's own code
        raise NotCached.raised(error) from error


def _remembered(model: Any, parameter: str, ids: torch.Tensor) -> tuple[Any, dict[tuple[str, str], torch.Tensor]]:
    """What the model hands over after some tokens, and what its modules have kept."""
    from transformers import DynamicCache

    before = {path: dict(vars(module)) for path, module in model.named_modules()}
    with left_as_it_was(model):
        given = getattr(_called(model, input_ids=ids, use_cache=True), parameter, None)
        if given is None and parameter == "past_key_values":  # it is filled where it is given
            given = DynamicCache(config=model.config)
            _called(model, input_ids=ids, past_key_values=given, use_cache=True)
        held = {
            (path, name): item
            for path, module in model.named_modules()
            for name, item in vars(module).items()
            if isinstance(item, torch.Tensor) and item is not before[path].get(name)
        }
    if not _tensors(given) and not held:
        raise NotCached(f"it gives no {parameter} with use_cache=True")
    return given, held


def _place(example: RememberedExample, found: dict[str, set[str]]) -> None:
    """Say which layer each tensor belongs to: where it lies in the cache, or whose modules read it."""
    places: dict[str, int] = {}
    tensors = example.tensors()
    for name in tensors:
        numbers = {number for path in found.get(name, ()) if (number := layer_number(path)) is not None}
        if name.startswith("layers."):
            numbers = {int(name.split(".")[1])}
        if len(numbers) > 1:
            example.stacks[name] = tensors[name]
        elif numbers:
            places[name] = numbers.pop()
    count = 1 + max([*places.values(), *(layer_number(path) or 0 for paths in found.values() for path in paths)])
    example.layers = [SimpleNamespace() for _ in range(count)]
    for name, tensor in tensors.items():
        if name not in example.stacks:  # counters are nobody's
            own = name.split(".", 2)[-1] if name.startswith("layers.") else name
            setattr(example.layers[places.get(name, 0)], own.replace(".", "_"), tensor)


@contextmanager
def left_as_it_was(model: torch.nn.Module) -> Iterator[None]:
    """Within, the model may note what it likes in its modules' attributes; afterwards they are what they were.

    Its parameters are not written to; inside of a FakeTensorMode, which would do it for those that are real.
    """
    before = {module: dict(vars(module)) for module in model.modules()}
    try:
        with Untouched(model):
            yield
    finally:
        for module, attributes in before.items():
            for name in vars(module).keys() & attributes.keys():
                vars(module)[name] = attributes[name]


@contextmanager
def example_in_modules(model: Any, held: dict[tuple[str, str], torch.Tensor]) -> Iterator[None]:
    """Within, modules hold these tensors; what they hold afterwards is forgotten."""
    before = {(path, name): getattr(model.get_submodule(path), name) for path, name in held}
    for (path, name), tensor in held.items():
        setattr(model.get_submodule(path), name, tensor)
    try:
        yield
    finally:
        for (path, name), tensor in before.items():
            setattr(model.get_submodule(path), name, tensor)


@contextmanager
def as_recurrent_step(model: Any, example: RememberedExample, positioned: bool) -> Iterator[None]:
    """Let ``model`` be called as ``(input_ids, given, held) -> logits``, both written to, modules one token each."""
    length: list[Any] = [0]
    places = list(example.held)

    def forward(self: Any, input_ids: torch.Tensor, given: Any, held: list[torch.Tensor]) -> tuple[torch.Tensor]:
        length[0] = input_ids.shape[1]
        before = _tensors(given)
        past = _past(before)
        more = {"position_ids": torch.arange(past, past + length[0])[None]} if positioned and past is not None else {}
        with example_in_modules(self, dict(zip(places, held, strict=True))):
            output = type(self).forward(self, input_ids=input_ids, **{example.parameter: given}, use_cache=True, **more)
            kept = [getattr(self.get_submodule(path), name) for path, name in places]
        after = _tensors(getattr(output, example.parameter, given))
        for name, old in before.items():
            if name.rpartition(".")[2] not in _OWN and after.get(name) is not old:
                old.copy_(after[name])
        for old, new in zip(held, kept, strict=True):
            if new is not old:
                old.copy_(new)
        return (output.logits,)

    model.forward = types.MethodType(forward, model)
    try:
        with one_token_each(model, example.axes, lambda: length[0]):
            yield
    finally:
        del model.forward


def _past(before: dict[str, torch.Tensor]) -> Any:
    """How many tokens attention has keys of, the same in all layers; None without attention."""
    keys = [item for name, item in before.items() if name.endswith(".keys") and item.ndim == 4]
    for item in keys[1:]:
        torch._check(item.shape[2] == keys[0].shape[2])
    return keys[0].shape[2] if keys else None
