"""Let the length that a loop goes over be free: what two captures have in common, with the length in it.

Two graphs with their loops rolled up differ in integers only. Where each follows from the length by a factor and an
offset, that takes its place, and the sizes of all values are computed anew. The port is then compared with the
original at a length that neither capture has.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.source import ConstantSource
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic
from torch.fx.node import map_aggregate

from mlxport.graph.capture.composite_shapes import known_shapes
from mlxport.graph.capture.time_loops.roll import arguments
from mlxport.graph.lower import loop_ops

__all__ = ["Differs", "LengthRule", "agree", "free", "number_turns"]


class Differs(Exception):
    """Captures of two lengths that are not the same loop, and where."""


@dataclass(frozen=True)
class LengthRule:
    """An integer of a graph as it follows from the length: ``factor * length + offset``."""

    factor: int
    offset: int


Place = tuple[Node, int]  # a node, and the number of its argument


def agree(first: Graph, second: Graph, lengths: tuple[int, int]) -> dict[Place, LengthRule]:
    """The integers in which two graphs differ, as they follow from the length.

    Raises:
        Differs: if they differ otherwise.
    """
    rules: dict[Place, LengthRule] = {}
    for place, one, two in _pairs(first, second):
        if one == two and type(one) is type(two):
            continue
        if type(one) is not int or type(two) is not int:
            raise Differs(f"{one} becomes {two}")
        factor, rest = divmod(two - one, lengths[1] - lengths[0])
        if rest:
            raise Differs(f"{one} becomes {two}")
        rules[place] = LengthRule(factor, one - factor * lengths[0])
    return rules


def _pairs(first: Graph, second: Graph) -> list[tuple[Place, Any, Any]]:
    """All arguments that are no nodes of two graphs of the same form, by place."""
    ours, theirs = [*first.nodes], [*second.nodes]
    if len(ours) != len(theirs):
        raise Differs("there are more operations than turns account for")
    number = {node: index for index, node in enumerate(ours)}
    other = {node: index for index, node in enumerate(theirs)}
    found: list[tuple[Place, Any, Any]] = []
    for one, two in zip(ours, theirs, strict=True):
        if one.op != two.op or (one.op == "call_function" and one.target is not two.target):
            raise Differs(f"{one.name} becomes {two.name}")
        given, had = arguments(one), arguments(two)
        if len(given) != len(had):
            raise Differs(f"{one.name} is given more")
        for position, (a, b) in enumerate(zip(given, had, strict=True)):
            if isinstance(a, Node) or isinstance(b, Node):
                if not isinstance(a, Node) or not isinstance(b, Node) or number[a] != other[b]:
                    raise Differs(f"{one.name} is given another value")
            else:
                found.append(((one, position), a, b))
    return found


def free(graph: Graph, rules: Mapping[Place, LengthRule], axes: Sequence[tuple[Node, int]], length: int) -> str:
    """Put the length in its places in ``graph`` and compute the sizes of all values; the name of its symbol.

    Args:
        graph: Of a capture with its loops rolled up; it is changed.
        rules: Which integers follow from the length.
        axes: The inputs that have the length, and along which axis.
        length: The length of the capture.

    Raises:
        Differs: if some op allows only the length of the capture.
    """
    nodes = [*graph.nodes]
    source = axes[0][0].meta["val"]
    mode, environment = source.fake_mode, _environment(graph, source)
    name = ConstantSource(f"length_{axes[0][0].name}_{axes[0][1]}")
    symbol = environment.create_symbol(length, name, DimDynamic.DYNAMIC, None)
    size = environment.create_symintnode(symbol, hint=length, source=name)
    for node, axis in axes:
        value = node.meta["val"]
        with mode:
            node.meta["val"] = torch.empty(
                [size if at == axis else item for at, item in enumerate(value.shape)], dtype=value.dtype
            )
    first = next(node for node in nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        taken = graph.call_function(torch.ops.aten.sym_size.int, axes[0])
        taken.meta = {"val": size}
        sizes: dict[Any, Any] = {}
        by_node: dict[Node, dict[int, Any]] = {}
        for (node, position), rule in rules.items():
            given = arguments(node)[position]  # a size already where it follows from another length, too
            start = given if isinstance(given, Node) else given - rule.factor * length
            key = (rule.factor, start)
            if key not in sizes:
                sizes[key] = _computed(graph, taken, rule.factor, start, length)
            by_node.setdefault(node, {})[position] = sizes[key]
    changed = {node for node, _ in axes}
    for node, places in by_node.items():
        _replace(node, places)
        changed.add(node)
    known = len(environment.guards)
    with known_shapes():
        _propagate(nodes, changed, mode)
    del environment.guards[known:]  # of other lengths it has been shown, and batches are not asked anew
    if environment.simplify(symbol).is_number:
        raise Differs("an operation allows no other length")
    return str(symbol)


def _environment(graph: Graph, value: Any) -> Any:
    for node in graph.nodes:
        item = node.meta.get("val")
        for size in item.shape if isinstance(item, torch.Tensor) else ():
            if isinstance(size, torch.SymInt):
                return size.node.shape_env
    return value.fake_mode.shape_env


def _computed(graph: Graph, taken: Node, factor: int, start: Any, length: int) -> Node:
    """``factor * length + start`` as nodes; the start of another length's size is what that adds to this one's."""
    terms: list[tuple[Any, Any]] = [(operator.mul, factor), (operator.add, start)]
    if isinstance(start, Node):
        terms.append((operator.sub, factor * length))
    made = taken
    for target, value in terms:
        if isinstance(value, Node) or value != (target is operator.mul):
            before, other = made, value.meta["val"] if isinstance(value, Node) else value
            made = graph.call_function(target, (before, value))
            made.meta = {"val": target(before.meta["val"], other)}
    return made


def _replace(node: Node, places: Mapping[int, Any]) -> None:
    position = iter(range(10**9))

    def argument(item: Any) -> Any:
        return places.get(next(position), item)

    node.args, node.kwargs = map_aggregate((node.args, node.kwargs), argument)  # type: ignore[misc,assignment]


def _propagate(nodes: Sequence[Node], changed: set[Node], mode: Any) -> None:
    """The values of all nodes that follow from what has changed."""
    for node in nodes:
        if node.op != "call_function" or node.target in (loop_ops.steps, loop_ops.place):
            continue
        if node not in changed and not changed.intersection(node.all_input_nodes):
            continue
        before = node.meta.get("val")
        node.meta["val"] = value_of(node, mode)
        if node.target is loop_ops.handed_on:
            state = _state(node)
            if [*map(str, state.meta["val"].shape)] != [*map(str, node.meta["val"].shape)]:
                raise Differs("what is carried has another shape after a turn")
        if _described(before) != _described(node.meta["val"]):
            changed.add(node)


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {[*map(str, value.shape)]}"
    if isinstance(value, tuple | list):
        return str([*map(_described, value)])
    return f"{type(value)} {value}"


def _state(node: Node) -> Node:
    """What is carried in, of what is handed on."""
    turn, index = node.args[1:3]
    return next(user for user in turn.users if user.target is loop_ops.carried and user.args[1] == index)  # type: ignore[union-attr]


def value_of(node: Node, mode: Any) -> Any:
    """The fake value of a node from those of its arguments.

    Raises:
        Differs: if its op refuses them.
    """
    meaning = _MEANINGS.get(node.target)
    try:
        with mode, torch.no_grad():
            if meaning is not None:
                return meaning(*node.args)
            args, kwargs = map_aggregate((node.args, node.kwargs), _Given(node))
            return node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:  # whatever an op raises when it is given other sizes
        raise Differs(f"{node.target} refuses another length: {str(error).splitlines()[0][:200]}") from error


class _Given:
    """Values of arguments; places that move with the turn as they are in the first turn, the first of them 0.

    Sizes do not depend on the turn, and nothing is to be concluded from where in a length it is.
    """

    def __init__(self, node: Node) -> None:
        places = [item for item in arguments(node) if isinstance(item, Node) and item.target is loop_ops.place]
        self.start = _number(places[0].args[1]) if places else 0

    def __call__(self, item: Any) -> Any:
        if not isinstance(item, Node):
            return item
        return _number(item.args[1]) - self.start if item.target is loop_ops.place else item.meta["val"]


def _number(item: Any) -> Any:
    return item.meta["val"] if isinstance(item, Node) else item


def _turns(turn: Any) -> Any:
    return _number(turn.args[0])


def _count(values: Any, listed: bool) -> Any:
    return values.meta["val"].shape[0] if listed else 1


def _collected(value: Node, turn: Node) -> Any:
    made = value.meta["val"]
    return made.new_empty([_turns(turn), *made.shape])


def _part(values: Node, first: Any, last: Any, step: int) -> Any:
    made = values.meta["val"]
    return made.new_empty([made.shape[0] - _number(first) - _number(last), *made.shape[1:]])


def _item(values: Node, index: Any) -> Any:
    made = values.meta["val"]
    return made.new_empty(made.shape[1:])


def _one(values: Node, listed: bool) -> Any:
    made = values.meta["val"]
    return made.new_empty(made.shape[1:]) if listed else made


def _stacked(values: Sequence[Node], lists: Sequence[bool], axis: int) -> Any:
    one = _one(values[0], lists[0])
    sizes = [*one.shape]
    sizes.insert(axis % (one.ndim + 1), sum(_count(item, listed) for item, listed in zip(values, lists, strict=True)))
    return one.new_empty(sizes)


def _joined(values: Sequence[Node], lists: Sequence[bool], axis: int) -> Any:
    ones = [_one(item, listed) for item, listed in zip(values, lists, strict=True)]
    counts = [_count(item, listed) for item, listed in zip(values, lists, strict=True)]
    sizes = [*ones[0].shape]
    axis %= len(sizes)
    sizes[axis] = sum(one.shape[axis] * count for one, count in zip(ones, counts, strict=True))
    return ones[0].new_empty(sizes)


_MEANINGS: dict[Any, Any] = {
    loop_ops.carried: lambda turn, index: turn.args[1 + index].meta["val"],
    loop_ops.handed_on: lambda value, turn, index: value.meta["val"],
    loop_ops.left: lambda value, turn: value.meta["val"],
    loop_ops.collected: _collected,
    loop_ops.part: _part,
    loop_ops.item: _item,
    loop_ops.stacked: _stacked,
    loop_ops.joined: _joined,
}


def number_turns(graph: Graph, turns: Sequence[Node]) -> None:
    """Give the numbers of turns their symbols, and what loops collect its sizes.

    A turn has for its number the place that it takes a part at, if it takes some: 1, 2, …, or L - 1, L - 2, …
    """
    if not turns:
        return
    tensor = next(item for node in graph.nodes for item in _tensors(node.meta.get("val")))
    environment = _environment(graph, tensor)
    for turn in turns:
        places = [user for user in turn.users if user.target is loop_ops.place]
        moving = [place for place in places if place.args[2] in (1, -1)]
        first, step = (_number(moving[0].args[1]), moving[0].args[2]) if moving else (0, 1)
        start = first.node.hint if isinstance(first, torch.SymInt) else first
        name, value = ConstantSource(turn.name), start + 2 * step  # type: ignore[operator]
        symbol = environment.create_symbol(
            value, name, DimDynamic.DYNAMIC, None, positive=None, do_not_specialize_zero_one=True
        )
        number = turn.meta["val"] = environment.create_symintnode(symbol, hint=value, source=name)
        turn.meta["range"] = (first, first + step * _number(turn.args[0]), step)
        for place in places:
            factor = _number(place.args[2]) * step
            place.meta["val"] = _number(place.args[1]) + factor * (number - first)
    for node in graph.nodes:
        if node.target in _MEANINGS:
            node.meta["val"] = value_of(node, tensor.fake_mode)


def _tensors(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [item for part in value for item in _tensors(part)]
    return [value] if hasattr(value, "fake_mode") else []
