"""The example's arguments as the port's inputs: their leaves, and the checks of the lists and dicts around them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

from torch.utils import _pytree as pytree

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.dataclass_inputs import Attribute
from mlxport.graph.lower.helpers import inputs as input_helpers
from mlxport.graph.lower.registry import helper

__all__ = ["Input", "access", "inputs_of", "structure_checks"]

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Input:
    """An argument of the example.

    Attributes:
        name: Its parameter, or its key where ``**kwargs`` caught it.
        kind: How the original takes it, as ``inspect.Parameter`` says it.
        value: The example's, with a placeholder or a fixed value for each leaf.
        leaves: The path of each leaf within the value, and the leaf.
    """

    name: str
    kind: Any
    value: Any
    leaves: tuple[tuple[Path, Any], ...]


@dataclass(frozen=True)
class _Leaf:
    """Stands for one leaf of the inputs: a placeholder, or the value that the port was made with."""

    value: Any


def inputs_of(captured: Captured) -> list[Input]:
    """The arguments of the example in the order of the original's parameters, what ``**kwargs`` caught spelled out."""
    nodes = [*captured.inputs, *[None] * (len(captured.values) - len(captured.inputs))]
    leaves = [_Leaf(value if node is None else node) for node, value in zip(nodes, captured.values, strict=True)]
    args, kwargs = pytree.tree_unflatten(leaves, captured.in_spec)
    bound = captured.signature.bind(*args, **kwargs).arguments
    found: list[tuple[str, Any, Any]] = []
    for name, parameter in captured.signature.parameters.items():
        if name in bound and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            found.append((name, parameter.kind, bound[name]))
        elif name in bound:
            found += [(key, inspect.Parameter.KEYWORD_ONLY, inner) for key, inner in bound[name].items()]
    return [Input(name, kind, value, tuple(_leaves((), value))) for name, kind, value in found]


def _children(value: Any) -> Iterable[tuple[Any, Any]]:
    """The steps to the parts of a value, and the parts; none where it has none."""
    if isinstance(value, dict):
        return value.items()
    if isinstance(value, list | tuple):
        return enumerate(value)
    if is_dataclass(value) and not isinstance(value, type | _Leaf):
        return [(Attribute(item.name), getattr(value, item.name)) for item in dataclass_fields(value)]
    return ()


def _leaves(path: Path, value: Any) -> list[tuple[Path, Any]]:
    if isinstance(value, _Leaf):
        return [(path, value.value)]
    if not isinstance(value, dict | list | tuple) and not is_dataclass(value):
        return [(path, value)]
    return [leaf for step, inner in _children(value) for leaf in _leaves((*path, step), inner)]


def access(name: str, path: Path) -> str:
    """The expression of a part of an argument."""
    return name + "".join(f".{step}" if isinstance(step, Attribute) else f"[{step!r}]" for step in path)


def structure_checks(item: Input, own: str) -> list[str]:
    """Statements that refuse lists of other lengths and dicts of other keys: what is more would be ignored.

    Args:
        item: The argument.
        own: What the body of the port calls it.
    """
    found = [
        f"check_parts({access(item.name, path)!r}, {access(own, path)}, {_parts_text(value)})"
        for path, value in _containers((), item.value)
    ]
    if found:
        helper(input_helpers.check_parts)
    return found


def _containers(path: Path, value: Any, inside: bool = False) -> list[tuple[Path, Any]]:
    """Lists and dicts that lie in no other one, outer ones first: what they hold is checked with them."""
    container = isinstance(value, dict | list | tuple)
    found = [(path, value)] if container and not inside else []
    for step, inner in _children(value):
        found += _containers((*path, step), inner, container)
    return found


def _parts_text(value: Any) -> str:
    """What a list or dict holds, with ``...`` for what is neither."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_parts_text(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        texts = [_parts_text(inner) for inner in value]
        if len(texts) > 4 and len(set(texts)) == 1:
            return f"[{texts[0]}] * {len(texts)}"
        return "[" + ", ".join(texts) + "]"
    return "..."
