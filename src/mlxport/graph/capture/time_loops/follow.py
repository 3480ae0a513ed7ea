"""A captured program with its loops rolled up, and the lengths that they go over left free.

torch.export unrolls a loop over ``range(x.shape[1])`` and fixes the length. Which lengths those are is found by running
the module: their number of operations follows the length. The program is then captured at two lengths; see ``lengths``
for what they must have in common. What cannot be rolled up stays as it is, and is told. A long example is shortened
before it is captured, as torch.export takes some ten milliseconds for an operation: the loop is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from mlxport.graph.capture.assigned_names import name_assigned
from mlxport.graph.capture.exported_program import settle_sizes
from mlxport.graph.capture.followed_sizes import FollowedSizes
from mlxport.graph.capture.time_loops.equal_turns import EqualTurns, loop_around, repeats
from mlxport.graph.capture.time_loops.lengths import Differs, LengthRule, agree, free, number_turns
from mlxport.graph.capture.time_loops.roll import common_stack, roll_loops

__all__ = ["Inputs", "roll_up", "shortened"]

_SHORT, _LONG = 6, 12  # a length is captured as it is up to _LONG, else as _SHORT: with it a loop has some turns
_MANY = 1000  # operations from which on an example is shortened first
_SECOND = (7, 6, 5, 8, 9, 10, 12, 16)  # the other length, the first of these that the module takes

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Axis = tuple[int, int]  # number of the input, and its axis


@dataclass(frozen=True)
class Length:
    """A length that the number of operations follows.

    Attributes:
        axes: The inputs that have it.
        size: Its size in the example.
        short: The size to capture.
        second: Another one.
    """

    axes: tuple[Axis, ...]
    size: int
    short: int
    second: int


def roll_up(
    followed: FollowedSizes,
    module: torch.nn.Module,
    again: Callable[[Inputs], ExportedProgram] | None,
    as_given: bool,
) -> bool:
    """Roll the loops of a captured program up, the lengths that they go over free; what stays fixed is told.

    Args:
        followed: The program and its sizes; it is changed.
        module: Of which.
        again: Captures the same on other inputs; None where the sizes are to stay those of the example.
        as_given: Whether the example was not shortened for the capture.

    Returns:
        Whether it stands for the example: not where that was shortened and some length of it must stay as it is.
    """
    program, inputs = followed.program, (followed.args, followed.kwargs)
    settle_sizes(program.graph_module.graph)
    if again is not None and repeats(program.graph_module.graph):
        lengths = counted_lengths(module, inputs, _fixed(program))
        if lengths:
            shorter = resized(inputs, {axis: length.short for length in lengths for axis in length.axes})
            base = program if all(length.short == length.size for length in lengths) else again(shorter)
            found, notes = _freed(base, module, lengths, shorter, again)
            followed.note = "; ".join([*([followed.note] if followed.note else []), *notes])
            left = [length for length in lengths if found is None or not _is_free(found, length)]
            if found is not None and all(length.short == length.size for length in left) and (as_given or not left):
                axes = {axis for length in lengths if length not in left for axis in length.axes}
                followed.program, (followed.args, followed.kwargs) = found, shorter
                followed.fixed = {axis: why for axis, why in followed.fixed.items() if axis not in axes}
                return True
            if left and not as_given:
                return False
    graph, turns = _looped(program, module)
    if turns:
        number_turns(graph, turns)
        _settle(program, graph)
    return True


def _is_free(program: ExportedProgram, length: Length) -> bool:
    """Whether a program takes other lengths."""
    return not {axis for axis, _ in _fixed(program)}.intersection(length.axes)


def _freed(
    base: ExportedProgram,
    module: torch.nn.Module,
    lengths: Sequence[Length],
    inputs: Inputs,
    again: Callable[[Inputs], ExportedProgram],
) -> tuple[ExportedProgram | None, list[str]]:
    """The program with those lengths free that can be; None if none can."""
    graph, turns = _looped(base, module)
    leaves = _leaf_nodes(base, graph)
    notes: list[str] = []
    rules: list[tuple[Length, dict[Any, LengthRule]]] = []
    for length in lengths:
        try:
            other = _longer(base, length, inputs, again)
            rules.append((length, agree(graph, _looped(other, module)[0], (length.short, length.second))))
        except Differs as error:
            notes.append(_told(leaves, length, turns, str(error)))
    if not rules:
        return None, notes
    try:
        for length, known in rules:
            symbol = free(graph, known, [(leaves[index], axis) for index, axis in length.axes], length.short)
            base.range_constraints[symbol] = ValueRanges(1, int_oo)
    except Differs as error:
        return None, [*notes, *(_told(leaves, length, turns, str(error)) for length, _ in rules)]
    number_turns(graph, turns)
    _settle(base, graph)
    return base, notes


def _longer(
    base: ExportedProgram, length: Length, inputs: Inputs, again: Callable[[Inputs], ExportedProgram]
) -> ExportedProgram:
    """The capture at the other length."""
    try:
        other = again(resized(inputs, dict.fromkeys(length.axes, length.second)))
    except Exception as error:  # the user's code, or torch, refuses a length
        raise Differs(f"length {length.second} cannot be captured: {str(error).splitlines()[0][:200]}") from error
    if not _same_constants(base, other):
        raise Differs("constants depend on it")
    return other


def _same_constants(one: ExportedProgram, two: ExportedProgram) -> bool:
    if one.constants.keys() != two.constants.keys():
        return False
    pairs = [(one.constants[name], two.constants[name]) for name in one.constants]
    return all(
        a.shape == b.shape and a.dtype == b.dtype and (a.is_meta or torch.equal(a, b))
        for a, b in pairs
        if isinstance(a, torch.Tensor)
    )


def _looped(program: ExportedProgram, module: torch.nn.Module) -> tuple[Graph, list[Node]]:
    """The graph with its loops rolled up, as far as they are loops of the source, and their ``steps``."""
    settle_sizes(program.graph_module.graph)
    if not repeats(program.graph_module.graph):
        return program.graph_module.graph, []
    graph = _copy(program.graph_module.graph)
    modules = dict(module.named_modules(remove_duplicate=False))
    name_assigned(graph, modules)

    def in_source(run: EqualTurns) -> bool:
        path = next(reversed(common_stack(run).values()), ("", ""))[0].partition("@")[0]
        return loop_around([node for node in run.turns[1] if node is not None], modules.get(path))

    return graph, roll_loops(graph, in_source)


def _copy(graph: Graph) -> Graph:
    made = Graph()
    made.output(made.graph_copy(graph, {}))
    return made


def _settle(program: ExportedProgram, graph: Graph) -> None:
    """Let ``program`` have ``graph``, under whose names its outputs are known."""
    for node in graph.nodes:
        node.meta.setdefault("loops", ())
    program.graph_module.graph = graph
    output = next(node for node in graph.nodes if node.op == "output")
    for spec, node in zip(program.graph_signature.output_specs, output.args[0], strict=True):
        if isinstance(node, Node) and hasattr(spec.arg, "name"):
            spec.arg.name = node.name


def _leaf_nodes(program: ExportedProgram, graph: Graph) -> list[Node]:
    named = {node.name: node for node in graph.nodes}
    specs = program.graph_signature.input_specs
    return [named.get(getattr(spec.arg, "name", "")) for spec in specs if spec.kind is InputKind.USER_INPUT]  # type: ignore[misc]


def _fixed(program: ExportedProgram) -> list[tuple[Axis, int]]:
    """The axes of the inputs whose sizes are fixed."""
    found = []
    for index, node in enumerate(_leaf_nodes(program, program.graph_module.graph)):
        value = node.meta.get("val") if node is not None else None
        for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if isinstance(size, int) and size > 1:
                found.append(((index, axis), size))
    return found


def shortened(module: torch.nn.Module, inputs: Inputs) -> Inputs:
    """The example, or a shorter one where that alone comes to many operations."""
    leaves = pytree.tree_leaves(inputs)
    axes = [
        ((index, axis), size)
        for index, leaf in enumerate(leaves)
        for axis, size in enumerate(leaf.shape if isinstance(leaf, torch.Tensor) else ())
        if size > _LONG
    ]
    if not axes or (_operations(module, inputs) or 0) < _MANY:
        return inputs
    lengths = counted_lengths(module, inputs, axes)
    return resized(inputs, {axis: length.short for length in lengths for axis in length.axes})


def counted_lengths(module: torch.nn.Module, inputs: Inputs, fixed: Sequence[tuple[Axis, int]]) -> list[Length]:
    """Those of the fixed sizes that the number of the module's operations follows."""
    found: list[Length] = []
    for axis, size in fixed:
        if any(axis in length.axes for length in found):
            continue
        alike = tuple(other for other, of in fixed if of == size and not any(other in item.axes for item in found))
        for axes in dict.fromkeys([(axis,), *(pair for pair in _with_one(axis, alike)), alike]):
            length = _length(module, inputs, axes, size)
            if length is not None:
                found.append(length)
                break
    return found


def _length(module: torch.nn.Module, inputs: Inputs, axes: tuple[Axis, ...], size: int) -> Length | None:
    """The length that these axes have, if the number of operations grows with it as it does in a loop."""
    short = size if _SHORT - 1 <= size <= _LONG else _SHORT
    counts: dict[int, int] = {}
    for number in (short, *_SECOND):
        if number not in counts and len(counts) < 3:
            count = _operations(module, resized(inputs, dict.fromkeys(axes, number)))
            if count is None and not counts:
                return None
            if count is not None:
                counts[number] = count
    if len(counts) < 2 or len(set(counts.values())) == 1:
        return None
    return Length(axes, size, short, next(number for number in counts if number != short))


def _with_one(axis: Axis, alike: Sequence[Axis]) -> Iterator[tuple[Axis, ...]]:
    """The axis together with one of another input: a mask's, say."""
    yield from (tuple(sorted((axis, other))) for other in alike if other[0] != axis[0])


def _operations(module: torch.nn.Module, inputs: Inputs) -> int | None:
    """How many operations the module calls; None if it refuses the inputs."""
    args, kwargs = pytree.tree_map(lambda item: item.clone() if isinstance(item, torch.Tensor) else item, inputs)
    own = {name: item.clone() for name, item in module.named_buffers()}
    # flex_attention compiles itself, and would keep that it could not while it was looked at.
    eager = torch.compiler.set_stance("force_eager")
    with torch.no_grad(), torch.random.fork_rng(devices=[]), eager, _Counting() as counting:
        try:
            torch.func.functional_call(module, own, args, kwargs)
        except Exception:  # whatever it raises says that this is no size for it
            return None
    return counting.count


class _Counting(TorchDispatchMode):  # type: ignore[misc]
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def resized(inputs: Inputs, sizes: dict[Axis, int]) -> Inputs:
    """The inputs with other sizes along some axes: values are repeated or left out at the end."""
    leaves, spec = pytree.tree_flatten(inputs)
    for (index, axis), size in sizes.items():
        leaf = leaves[index]
        if leaf.shape[axis] != size:
            leaves[index] = leaf.index_select(axis, torch.arange(size, device=leaf.device) % leaf.shape[axis])
    made: Inputs = pytree.tree_unflatten(leaves, spec)
    return made


def _told(leaves: Sequence[Node], length: Length, turns: Sequence[Node], why: str) -> str:
    index, axis = length.axes[0]
    return (
        f"axis {axis} of {leaves[index].name} is fixed to {length.size}: a loop goes over it that cannot be written "
        f"for other lengths ({why})"
    )
