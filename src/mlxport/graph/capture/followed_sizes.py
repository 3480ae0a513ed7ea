"""A capture with as many sizes free as the module allows: those that are 1 in the example, too; and why others are not.

The example is made larger where it has 1, and captured; the program then has to be right at 1 again, and for each other
free size at 1, which torch.export does not look at.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from mlxport.graph.capture.capture_errors import CaptureError
from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.fixed_sizes import SizeDecisions
from mlxport.graph.capture.free_sizes import free_sizes, said_sizes
from mlxport.graph.capture.input_names import tensor_names
from mlxport.graph.capture.larger_examples import Axis, LargerExample, larger_example
from mlxport.graph.capture.sizes_of_one import agrees, lowest_sizes, user_inputs
from mlxport.graph.capture.trial_runs import TrialRuns
from mlxport.options.size_spec import AnySize, FreeSize, SizeSpec

__all__ = ["FollowedSizes", "attempts_of", "follow_sizes"]

Attempts = list[tuple[str, Any]]
_NOT_FOLLOWED = "the example has 1 there, and torch.export follows no other size"
_AT_ONE = "the example has 1 there, where the module gives something else than for other sizes"
_DECIDED = "the example has 1 there, and the module takes one other size only"


@dataclass
class FollowedSizes:
    """What was captured.

    Attributes:
        program: The program.
        note: What is to be said of the attempt that was followed.
        args: Positional inputs that it was captured with.
        kwargs: Keyword inputs that it was captured with.
        lowest: See ``Captured``.
        fixed: See ``Captured``.
        size_names: See ``Captured``.
    """

    program: ExportedProgram
    note: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    lowest: dict[str, int] = field(default_factory=dict)
    fixed: dict[Axis, str] = field(default_factory=dict)
    size_names: dict[str, str] = field(default_factory=dict)

    def tell(self, captured: Captured) -> None:
        """Let the captured program know of its sizes."""
        captured.lowest, captured.fixed, captured.size_names = self.lowest, self.fixed, self.size_names
        if self.note:
            captured.notes.append(self.note)


def follow_sizes(
    export: Callable[[tuple[Any, ...], dict[str, Any], Attempts], tuple[ExportedProgram, str]],
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic: bool | SizeSpec | Any,
    runs: TrialRuns,
    first: Sequence[Any] | None,
    decisions: SizeDecisions,
) -> FollowedSizes:
    """Capture by ``export`` with the sizes free that ``dynamic`` asks for.

    Args:
        export: The program of the first of some ``dynamic_shapes`` that torch.export follows, and what is to be said.
        signature: Of the forward.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        dynamic: As of ``capture``.
        runs: Of the module.
        first: What the module gave on the example; None where it cannot run.
        decisions: What ``export`` listens with.
    """
    larger = first is not None and (dynamic is True or isinstance(dynamic, SizeSpec))
    stay: dict[Axis, str] = {}
    while True:
        wanted = _wanted(signature, args, kwargs, dynamic)
        example = larger_example(runs, args, kwargs, wanted, stay) if larger else LargerExample(args, kwargs)
        try:
            program, note = export(example.args, example.kwargs, attempts_of(signature, example, dynamic))
        except CaptureError as error:
            _refuse_fixed(signature, example, dynamic, decisions, error)
            if not example.axes:
                raise
            stay |= dict.fromkeys(example.axes, _NOT_FOLLOWED)
            continue
        _refuse_fixed(signature, example, dynamic, decisions)
        found = FollowedSizes(program, note, example.args, example.kwargs)
        if again := _not_free(program, example):
            stay |= dict.fromkeys(again, _DECIDED)
        elif example.axes and not agrees(program, runs, args, kwargs, first or ()):
            stay |= dict.fromkeys(example.axes, _AT_ONE)
        else:
            break
    if larger:
        known = _symbols_at(program, example.axes)
        found.lowest = lowest_sizes(program, runs, example.args, example.kwargs, known)
    found.fixed = {**_reasons(signature, example, decisions.reasons()), **example.kept}
    if not larger and not dynamic:
        found.fixed = _everywhere(example, "no other sizes were asked for")
    elif note:
        found.fixed = {**_everywhere(example, "to the example's, see the note"), **found.fixed}
    if isinstance(dynamic, SizeSpec):
        found.fixed = {**_said_fixed(signature, example, dynamic), **found.fixed}
        found.size_names = _said_names(program, signature, example, dynamic)
    return found


def attempts_of(signature: inspect.Signature, example: LargerExample, dynamic: bool | SizeSpec | Any) -> Attempts:
    """The ``dynamic_shapes`` that are tried in turn, and in words which sizes they leave free."""
    args, kwargs = example.args, example.kwargs
    if isinstance(dynamic, SizeSpec):
        names = {id(leaf): name for name, leaf in tensor_names(signature, args, kwargs).items()}
        chosen = said_sizes(dynamic, names, args, kwargs)
    elif dynamic is True:
        chosen = free_sizes(args, kwargs)
    else:
        return [("", dynamic or None)]
    free = [(words, signature.bind(*shapes, **named)) for words, (shapes, named) in chosen]
    found = [(words, dict(bound.arguments)) for words, bound in free]
    return found if isinstance(dynamic, SizeSpec) else [*found, ("", None)]


def _wanted(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Any
) -> Callable[[int, int], bool]:
    """Whether the size of a leaf along an axis may be free."""
    if not isinstance(dynamic, SizeSpec):
        return lambda leaf, axis: True
    by_id = {id(leaf): name for name, leaf in tensor_names(signature, args, kwargs).items()}
    names = [by_id.get(id(leaf), "") for leaf in pytree.tree_leaves((args, kwargs))]
    return lambda leaf, axis: isinstance(dynamic.of(names[leaf], axis), FreeSize | AnySize)


def _size_at(nodes: Sequence[Node | None], leaf: int, axis: int) -> Any:
    node = nodes[leaf]
    return None if node is None else node.meta["val"].shape[axis]


def _not_free(program: ExportedProgram, example: LargerExample) -> list[Axis]:
    """Where the larger example has come out as the only one that the program takes."""
    nodes = user_inputs(program)
    return [axis for axis in example.axes if not _is_symbol(_size_at(nodes, *axis))]


def _is_symbol(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and not size.node.expr.is_number


def _symbols_at(program: ExportedProgram, axes: frozenset[Axis]) -> set[str]:
    nodes = user_inputs(program)
    return {str(symbol) for axis in axes for symbol in _size_at(nodes, *axis).node.expr.free_symbols}


def _reasons(signature: inspect.Signature, example: LargerExample, told: Mapping[str, str]) -> dict[Axis, str]:
    """What fixed each size, by leaf and axis; ``told`` has it by torch's name of the place."""
    leaves = {id(leaf): index for index, leaf in enumerate(pytree.tree_leaves((example.args, example.kwargs)))}
    bound = dict(signature.bind(*example.args, **example.kwargs).arguments)
    found: dict[Axis, str] = {}
    for path, leaf in pytree.tree_leaves_with_path(bound):
        for axis in range(leaf.ndim if isinstance(leaf, torch.Tensor) else 0):
            why = told.get(f"L{pytree.keystr(path)}.size()[{axis}]")
            if why is not None and id(leaf) in leaves:
                found[leaves[id(leaf)], axis] = why
    return found


def _everywhere(example: LargerExample, why: str) -> dict[Axis, str]:
    leaves = pytree.tree_leaves((example.args, example.kwargs))
    return {
        (index, axis): why
        for index, leaf in enumerate(leaves)
        for axis in range(leaf.ndim if isinstance(leaf, torch.Tensor) else 0)
    }


def _said_fixed(signature: inspect.Signature, example: LargerExample, spec: SizeSpec) -> dict[Axis, str]:
    leaves = {id(leaf): index for index, leaf in enumerate(pytree.tree_leaves((example.args, example.kwargs)))}
    named = tensor_names(signature, example.args, example.kwargs)
    return {
        (leaves[id(leaf)], axis): "as dynamic shapes says"
        for name, leaf in named.items()
        for axis in range(leaf.ndim)
        if isinstance(spec.of(name, axis), int)
    }


def _refuse_fixed(
    signature: inspect.Signature,
    example: LargerExample,
    dynamic: Any,
    decisions: SizeDecisions,
    error: CaptureError | None = None,
) -> None:
    """Raise if a size was said to be free that the module has fixed."""
    if not isinstance(dynamic, SizeSpec):
        return
    why = {**_reasons(signature, example, decisions.reasons()), **example.kept}
    leaves = {id(leaf): index for index, leaf in enumerate(pytree.tree_leaves((example.args, example.kwargs)))}
    for name, leaf in tensor_names(signature, example.args, example.kwargs).items():
        for axis in range(leaf.ndim):
            said, place = dynamic.of(name, axis), (leaves[id(leaf)], axis)
            if isinstance(said, FreeSize) and place in why:
                number = leaf.shape[axis]
                raise CaptureError(
                    f"dynamic shapes: size {axis} of {name} cannot be {said}; it is fixed to {number} ({why[place]})",
                    f"write {number} there",
                    usage=True,
                ) from error


def _said_names(
    program: ExportedProgram, signature: inspect.Signature, example: LargerExample, spec: SizeSpec
) -> dict[str, str]:
    """What the user calls the symbols."""
    leaves = {id(leaf): index for index, leaf in enumerate(pytree.tree_leaves((example.args, example.kwargs)))}
    nodes = user_inputs(program)
    found: dict[str, str] = {}
    for name, leaf in tensor_names(signature, example.args, example.kwargs).items():
        for axis in range(leaf.ndim):
            said, size = spec.of(name, axis), _size_at(nodes, leaves[id(leaf)], axis)
            if isinstance(said, FreeSize) and _is_symbol(size) and len(size.node.expr.free_symbols) == 1:
                found[str(next(iter(size.node.expr.free_symbols)))] = said.name
    return found
