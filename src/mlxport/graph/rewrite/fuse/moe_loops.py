"""Mixtures of experts written as a loop over a ModuleList -> stacked weights and ``mx.gather_mm``.

Every spelling has the same parts: experts that compute one formula with weights of their own, the indices of those
that were chosen for each row (of a ``topk`` or the like), weights of these, and one value in which all experts come
together. That this value is the weighted sum of the chosen experts is computed, not read off the code between: masks,
scattered weights, ``index_add`` of the rows that an expert is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from mlxport.graph.capture.captured import Captured
from mlxport.graph.lower.fused_ops import gather_mm
from mlxport.graph.lower.traits import View, traits_of
from mlxport.graph.rewrite.fuse.branches import Branches, find_branches
from mlxport.graph.rewrite.fuse.fusion import Fusion
from mlxport.graph.rewrite.fuse.values import CannotEvaluate, Values, close
from mlxport.graph.rewrite.graph_queries import Editor, ancestors, is_float, kind, ndim, same_size, shape, value
from mlxport.graph.rewrite.made_weights import make_weight

__all__ = ["apply"]

_aten = torch.ops.aten
_SPLITS = {"chunk": 2, "split": 2, "split_with_sizes": 2}  # position of the axis among the arguments
_PICKS = frozenset({"index", "index_select", "select", "gather"})  # rows of what they are given


@dataclass(frozen=True)
class _Mixture:
    """What a loop may amount to.

    Attributes:
        branches: The experts.
        join: Where they come together.
        rows: What they map.
        indices: Which were chosen for each row.
        weights: What weighs them, None for nothing.
        each: Whether the weights are of all experts, not of the chosen ones.
    """

    branches: Branches
    join: Node
    rows: Node
    indices: Node
    weights: Node | None
    each: bool


def apply(captured: Captured, values: Values) -> Iterable[Fusion]:
    """Fuse loops over experts."""
    for found in list(find_branches(captured)):
        path = found.path if isinstance(found, Branches) else found[0]
        chosen = _choices(captured, len(captured.modules[path]))  # type: ignore[arg-type]
        if isinstance(found, Branches):
            declined = _fuse(captured, values, found, chosen)
        else:
            declined = found[1] if chosen else None
        if declined is not None:
            yield Fusion("gather_mm", path, declined)


def _choices(captured: Captured, count: int) -> list[Node]:
    """Indices of one or some of ``count`` along the last axis."""
    found = []
    for node in captured.graph.nodes:
        source: Any = node.args[0] if node.op == "call_function" and node.args else None
        if kind(node) == "getitem" and node.args[1] == 1 and kind(source) in ("topk", "sort", "max"):
            given, axis = source.args[0], [*source.args, -1, -1][2 if kind(source) == "topk" else 1]
        elif kind(node) == "argmax":
            given, axis = source, [*node.args, None][1]
        else:
            continue
        if isinstance(axis, int) and axis % ndim(given) == ndim(given) - 1 and same_size(shape(given)[-1], count):
            found.append(node)
    return found


def _fuse(captured: Captured, values: Values, branches: Branches, chosen: list[Node]) -> str | None:
    """Why not; None where this is no mixture of experts at all."""
    joins = _joins(captured, branches.outputs)
    chosen = [node for node in chosen if any(node in ancestors([join]) for join in joins)]
    if not chosen:
        return None
    if (op := _not_by_rows(branches)) is not None:
        return f"the experts compute {op}, which is not by rows"
    tried = 0
    for join in joins:
        for rows in _rows(branches, shape(join)):
            for indices in chosen:
                fixed = isinstance(shape(rows)[-1], int) and isinstance(shape(join)[-1], int)
                if not fixed or not _matching(shape(rows)[:-1], shape(indices)):
                    continue
                tried += 1
                for weights, each in _weightings(join, branches, indices):
                    mixture = _Mixture(branches, join, rows, indices, weights, each)
                    if _same(values, mixture):
                        _rewrite(captured, values, mixture)
                        return ""
    reason = "where the experts come together is not the sum of the chosen ones by their weights"
    return reason if tried else "no value has a row for each choice of experts"


def _matching(rows: Any, indices: Any) -> bool:
    """Whether the indices are of these rows: one, or several in a last axis."""
    return len(indices) - len(rows) in (0, 1) and all(map(same_size, rows, indices))


def _joins(captured: Captured, outputs: tuple[Node, ...]) -> list[Node]:
    """Values through which all that the outputs lead to passes, nearest first."""
    region, left, found = set(outputs), set(outputs), []
    position = {node: index for index, node in enumerate(captured.graph.nodes)}
    last = {node: max((position[user] for user in node.users), default=-1) for node in captured.graph.nodes}
    for node in captured.graph.nodes:
        if node.op != "call_function" or (node not in left and region.isdisjoint(node.all_input_nodes)):
            continue
        region.add(node)
        left.discard(node)
        alive = [item for item in region if last[item] > position[node]]
        if not left and alive == [node] and is_float(node):
            found.append(node)
            if len(found) == 6:
                break
    return found


def _not_by_rows(branches: Branches) -> str | None:
    """An op of the experts that does more than map each row by itself."""
    for node in branches.nodes[0]:
        name = kind(node)
        tensors = [item for item in node.all_input_nodes if item in branches.nodes[0] or item is branches.inputs[0]]
        if name in _SPLITS and len(node.args) > 2 and node.args[2] in (-1, ndim(node.args[0]) - 1) or name == "getitem":
            continue
        if name == "slice" and node.args[1] % ndim(node.args[0]) == ndim(node.args[0]) - 1:
            continue
        if name == "linear" and node.args[0] in tensors and len(tensors) == 1:
            continue
        if not traits_of(node).pointwise or len(tensors) != len(node.all_input_nodes):
            return name
    return None


def _rows(branches: Branches, joined: Any) -> Iterator[Node]:
    """What the experts' inputs are rows of: an array of as many rows as the result has."""
    first = branches.inputs[0]
    if all(given is first for given in branches.inputs) and _alike(shape(first), joined):
        yield first
    node = first
    while kind(node) in _PICKS or traits_of(node).view is View.RESHAPED:
        node = node.args[0]
        if _alike(shape(node), joined) and same_size(shape(node)[-1], shape(first)[-1]):
            yield node


def _alike(rows: Any, joined: Any) -> bool:
    return len(rows) == len(joined) and all(map(same_size, rows[:-1], joined[:-1]))


def _weightings(join: Node, branches: Branches, indices: Node) -> Iterator[tuple[Node | None, bool]]:
    """What may weigh the chosen experts: a number for each choice, or (True) one for each expert; None."""
    inner = {node for nodes in branches.nodes for node in nodes} | _after(branches)
    known = sorted((node for node in ancestors([join]) if is_float(node) and node not in inner), reverse=True)
    wanted = shape(indices)
    for node in known:
        if len(shape(node)) == len(wanted) and all(map(same_size, shape(node), wanted)):
            yield node, False
    for node in known:
        if ndim(node) and same_size(shape(node)[-1], len(branches.nodes)) and _matching(shape(node)[:-1], wanted):
            yield node, True
    yield None, False


def _after(branches: Branches) -> set[Node]:
    """All that depends on what the experts give."""
    seen: set[Node] = set()
    stack = list(branches.outputs)
    while stack:
        for user in stack.pop().users:
            if user not in seen:
                seen.add(user)
                stack.append(user)
    return seen


def _same(values: Values, mixture: _Mixture) -> bool:
    """Whether the join is the weighted sum of the chosen experts.

    Computed with random rows and a random router. That experts map rows is known, so cheap maps stand for them.
    """
    branches, join, rows, indices = mixture.branches, mixture.join, mixture.rows, mixture.indices
    needed = ancestors([join, indices, *branches.inputs], {rows, *branches.outputs})
    trained = [node for node in sorted(needed) if node in values.captured.weights and node not in values.static]
    tested = False
    for sizes in values.sizes():
        try:
            given = {rows: values.random(rows, sizes)}
            given |= {node: values.random(node, sizes, 1 + seed) for seed, node in enumerate(trained) if is_float(node)}
            inputs = values.run(branches.inputs, given, sizes)
            maps = [_stand_in(index, shape(rows)[-1], shape(join)[-1]) for index in range(len(inputs))]
            made = {node: expert(x) for node, expert, x in zip(branches.outputs, maps, inputs, strict=True)}
            extra = [] if mixture.weights is None else [mixture.weights]
            wanted, chosen, *factors = values.run([join, indices, *extra], {**given, **made}, sizes)
        except CannotEvaluate:
            continue
        chosen = chosen if chosen.ndim == ndim(rows) else chosen.unsqueeze(-1)
        outputs = torch.stack([expert(given[rows]) for expert in maps], dim=-2)
        outputs = outputs.gather(-2, chosen.unsqueeze(-1).expand(*chosen.shape, outputs.shape[-1]))
        for factor in factors:
            factor = factor.gather(-1, chosen) if mixture.each else factor.reshape(chosen.shape)
            outputs = outputs * factor.unsqueeze(-1)
        if not close(outputs.sum(-2), wanted):
            return False
        tested = True
    return tested


def _stand_in(index: int, inputs: int, outputs: int) -> Callable[[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(index)
    columns = torch.randint(inputs, (outputs,), generator=generator)
    factor, offset = torch.randn(2, outputs, generator=generator, dtype=torch.float64)
    return lambda x: torch.tanh(x[..., columns] * factor + offset)


def _rewrite(captured: Captured, values: Values, mixture: _Mixture) -> None:
    """One expert with stacked weights, for every choice; the sum by weights."""
    branches, join, rows, indices = mixture.branches, mixture.join, mixture.rows, mixture.indices
    edit = Editor(captured, join)
    if ndim(indices) < ndim(rows):
        indices = edit.call(_aten.unsqueeze.default, indices, -1)
    factor = mixture.weights
    if factor is not None and mixture.each:
        factor = edit.call(_aten.gather.default, factor, -1, indices)
    elif factor is not None and ndim(factor) < ndim(indices):
        factor = edit.call(_aten.unsqueeze.default, factor, -1)
    made = _stacked_expert(captured, values, branches, join, rows, indices)
    if factor is not None:
        made = edit.call(_aten.mul.Tensor, made, edit.call(_aten.unsqueeze.default, factor, -1))
    if same_size(shape(indices)[-1], 1):
        made = edit.call(_aten.squeeze.dim, made, -2)
    else:
        made = edit.call(_aten.sum.dim_IntList, made, [-2])
    edit.replace(edit.cast(made, value(join).dtype))
    modules = dict(captured.modules)
    first = branches.path + ".0"
    for name in list(modules):
        if name.startswith(branches.path + "."):
            inner = modules.pop(name)
            if name.startswith(first + "."):
                modules[branches.path + name.removeprefix(first)] = inner
    captured.modules = {**modules, branches.path: captured.modules[first]}


def _stacked_expert(
    captured: Captured, values: Values, branches: Branches, join: Node, rows: Node, indices: Node
) -> Node:
    """The formula of the first member with all members' weights: rows (..., 1, 1, features), choices (..., k)."""
    edit = Editor(captured, join)
    copies: dict[Node, Node] = {}

    def call(like: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
        node = edit.call(target, *args, **kwargs)
        node.meta = {**like.meta, "nn_module_stack": _moved(like, branches.path), "val": node.meta["val"]}
        return node

    start = branches.nodes[0][0]
    outer = call(start, _aten.unsqueeze.default, rows, -2)
    copies[branches.inputs[0]] = call(start, _aten.unsqueeze.default, outer, -2)
    node = start
    for node in branches.nodes[0]:
        if kind(node) == "linear":
            weight, bias = [*node.args, node.kwargs.get("bias")][1:3]
            stacked = _stack(captured, values, branches, weight)
            vector = None if bias is None else _stack(captured, values, branches, bias)
            turned = call(node, _aten.transpose.int, stacked, 1, 2)
            copies[node] = call(node, gather_mm, copies[node.args[0]], turned, indices, False, vector)
            continue
        args = list(torch.fx.node.map_arg(node.args, lambda item: copies[item]))  # type: ignore[arg-type]
        if kind(node) in _SPLITS:
            args[2] = -1
        elif kind(node) == "slice":
            args[1] = -1
        copies[node] = call(node, node.target, *args, **node.kwargs)  # type: ignore[arg-type]
    return call(node, _aten.squeeze.dim, copies[branches.outputs[0]], -2)


def _moved(node: Node, path: str) -> dict[str, Any]:
    """The modules that run, the list in the place of its first member."""
    stack = {}
    for key, (inner, cls) in (node.meta.get("nn_module_stack") or {}).items():
        if inner.startswith(path + ".0"):
            key, inner = f"{key} stacked", path + inner.removeprefix(path + ".0")
        stack[key] = (inner, cls)
    return stack


def _stack(captured: Captured, values: Values, branches: Branches, weight: Node) -> Node:
    """The members' weights of one name as one."""
    relative = captured.weights[weight].removeprefix(branches.path + ".0.")
    name = f"{branches.path}.{relative}"
    sources = {f"{branches.path}.{index}.{relative}": value(weight) for index in range(len(branches.nodes))}

    def stacked(graph: Graph, parts: Sequence[Node]) -> Node:
        made = graph.call_function(_aten.stack.default, (list(parts),))
        fake = value(weight)
        with fake.fake_mode:
            made.meta = {"val": torch.empty((len(parts), *fake.shape), dtype=fake.dtype)}
        return made

    return make_weight(captured, values.folds, name, sources, stacked)
