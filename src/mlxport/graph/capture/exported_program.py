"""What torch.export gives, as the graph that a port is made of: weights by their first names, sizes settled."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.inlined_graphs import inline_graphs
from mlxport.graph.capture.stores import add_stores

__all__ = ["captured_program", "settle_sizes"]


def captured_program(
    program: ExportedProgram,
    module: torch.nn.Module,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Captured:
    """The graph of ``program``, which torch.export made of ``module`` on example inputs."""
    graph = program.graph_module.graph
    inline_graphs(graph)
    settle_sizes(graph)
    modules = dict(module.named_modules(remove_duplicate=False))
    _settle_paths(graph, modules)
    named = {node.name: node for node in graph.nodes}
    aliases = _aliases(module)
    first = {name: names[0] for names in aliases.values() for name in names}
    weights: dict[Node, str] = {}
    inputs: list[Node | None] = []
    by_name: dict[str, Node] = {}
    state = {**program.state_dict, **program.constants}
    tensors: dict[str, torch.Tensor] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            leaf = named.get(getattr(spec.arg, "name", ""))
            inputs.append(
                leaf if leaf is not None and isinstance(leaf.meta.get("val"), torch.Tensor | torch.SymInt) else None
            )
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            node, name = named[spec.arg.name], first.get(spec.target, spec.target)
            if name in by_name:  # one tensor under two names
                node.replace_all_uses_with(by_name[name])
                graph.erase_node(node)
                continue
            weights[node] = name
            by_name[name] = node
            tensors[name] = state[spec.target]
    mutations: list[tuple[str | Node, Node]] = []
    for output in program.graph_signature.output_specs:
        if output.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
            mutations.append((first.get(output.target, output.target), named[output.arg.name]))
        elif output.kind is OutputKind.USER_INPUT_MUTATION:
            mutations.append((named[output.target], named[output.arg.name]))
    end = next(node for node in graph.nodes if node.op == "output")
    outputs = list(end.args[0])[len(mutations) :]
    end.args = (tuple(outputs),)
    add_stores(graph, mutations, weights)
    return Captured(
        graph=graph,
        weights=weights,
        state=tensors,
        trainable=frozenset(first.get(name, name) for name in program.graph_signature.parameters),
        inputs=inputs,
        values=pytree.tree_leaves((args, kwargs)),
        in_spec=program.call_spec.in_spec,
        outputs=outputs,
        out_spec=program.call_spec.out_spec,
        modules=modules,
        signature=signature,
        ranges={str(symbol): (_int(r.lower), _int(r.upper)) for symbol, r in program.range_constraints.items()},
        mutations=mutations,
        aliases={name: aliases.get(name, (name,)) for name in tensors},
    )


def _aliases(module: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """First name of each tensor of ``module`` to all its names."""
    names: dict[int, list[str]] = {}
    for name, tensor in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        names.setdefault(id(tensor), []).append(name)
    return {found[0]: tuple(found) for found in names.values()}


def _settle_paths(graph: Graph, modules: Mapping[str, torch.nn.Module]) -> None:
    """Call a module that the tree has twice by its first path everywhere."""
    first: dict[int, str] = {}
    for path, module in modules.items():
        first.setdefault(id(module), path)
    moved = {path: first[id(module)] for path, module in modules.items() if first[id(module)] != path}
    if not moved:
        return
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack and any(path.partition("@")[0] in moved for path, _ in stack.values()):
            node.meta["nn_module_stack"] = {
                key: (moved.get(path.partition("@")[0], path), kind) for key, (path, kind) in stack.items()
            }


def settle_sizes(graph: Graph) -> None:
    """Make ints of the symbolic sizes that torch.export has found to be fixed."""

    def settled(size: Any) -> Any:
        return int(size.node.expr) if isinstance(size, torch.SymInt) and size.node.expr.is_number else size

    def settle(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and any(settled(size) is not size for size in value.shape):
            with value.fake_mode:  # type: ignore[attr-defined]
                return torch.empty([settled(size) for size in value.shape], dtype=value.dtype, device=value.device)
        if isinstance(value, tuple | list):
            return type(value)([settle(item) for item in value])
        return settled(value)

    for node in graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = settle(node.meta["val"])


def _int(bound: Any) -> int:
    if getattr(bound, "is_Integer", isinstance(bound, int)):
        return int(bound)
    return -(2**63) if bound < 0 else 2**63 - 1
