"""One body for each module of the original, and which of them has each weight, layer and module."""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping, Sequence

from torch.fx import Node

from mlxport.graph.lower.layer_specs import LayerSpec
from mlxport.graph.write.bodies import build_body
from mlxport.graph.write.naming import argument_names
from mlxport.graph.write.returned import returned
from mlxport.graph.write.scope_parts import Body, Context
from mlxport.graph.write.signature import input_names
from mlxport.graph.write.tree import build_tree, scopes

__all__ = ["build_bodies"]


def build_bodies(context: Context, layers: Mapping[str, LayerSpec]) -> tuple[list[Body], dict[Node, str]]:
    """One body for each module, inner ones first; a call that differs from its module's others is written in place."""
    captured = context.captured
    names = input_names(captured)
    remaining = [node for node in captured.graph.nodes if node in context.lowered]
    dissolved: set[str] = set()
    while True:
        root = build_tree(captured, remaining, dissolved)
        arguments = argument_names(captured, root, names)
        by_path: dict[str, list[Body]] = {}
        for scope in scopes(root):
            body = build_body(context, scope, arguments[scope.key])
            context.bodies[scope.key] = body
            by_path.setdefault(scope.path, []).append(body)
        odd = {body.scope.key for found in by_path.values() for body in _odd(found)}
        if not odd:
            break
        dissolved |= odd
    top = build_body(context, root, names, result=returned(captured))
    bodies = [*(found[0] for found in by_path.values()), top]
    _settle(bodies, [body for found in by_path.values() for body in found[1:]], layers)
    return bodies, names


def _odd(found: Sequence[Body]) -> list[Body]:
    """The bodies of one module that are not like most of them."""
    if len(found) < 2:
        return []
    forms = [_form(body) for body in found]
    usual = max(forms, key=forms.count)
    return [body for body, form in zip(found, forms, strict=True) if form != usual]


def _form(body: Body) -> str:
    steps = body.steps
    trees = [*(step.value for step in steps), *([body.result] if body.result is not None else [])]
    texts = [ast.unparse(ast.fix_missing_locations(copy.deepcopy(tree))) for tree in trees]
    heads = [repr((step.targets, step.depth, step.loop)) for step in steps]
    return "\n".join([repr(tuple(body.parameters)), *heads, *texts])


def _settle(bodies: Sequence[Body], others: Sequence[Body], layers: Mapping[str, LayerSpec]) -> None:
    """Let each weight, layer and module belong to the innermost module that has it, whoever uses it."""
    by_path = {body.scope.path: body for body in bodies}
    used = [full for body in [*bodies, *others] for full in body.used]
    for body in bodies:
        body.used = {}
    for full in used:
        owner = full.rpartition(".")[0]
        if owner in layers:
            full, owner = owner, owner.rpartition(".")[0]
        while owner not in by_path:
            owner = owner.rpartition(".")[0]
        by_path[owner].used.setdefault(full)
