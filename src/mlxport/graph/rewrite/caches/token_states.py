"""States of modules that are called for each token: read before the step and kept after it, whatever it computes."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.lower import token_ops
from mlxport.graph.lower.traits import traits_of
from mlxport.graph.rewrite.caches.cached_step import CachedStep, NotCached
from mlxport.graph.rewrite.graph_queries import Editor, kind, shape, where

__all__ = [
    "FIRST",
    "LAST",
    "called_for_each_token",
    "close_modules",
    "computing_module",
    "keep_token_state",
    "module_of_each_token",
]

FIRST, LAST = "mlxport::one_token", "mlxport::all_tokens"


def module_of_each_token(step: CachedStep, node: Node) -> str | None:
    """Path of the module, called for each token, in whose call the node lies."""
    frames = (node.meta.get("nn_module_stack") or {}).values()
    paths = (path.partition("@")[0] for path, _ in frames)
    return next((path for path in paths if path in step.captured.each_token), None)


def called_for_each_token(step: CachedStep, held: Node, written: Node | None) -> str | None:
    """The one such module that reads what is held and computes what is kept; None where there is none.

    Raises:
        NotCached: What is held grows from token to token.
    """
    readers = [user for user in held.users if kind(user) not in ("sym_size", "copy")]
    found = {module_of_each_token(step, user) for user in readers}
    if written is None or len(found) != 1 or found != {module_of_each_token(step, _computed(written))}:
        return None
    if any(not isinstance(size, int) for size in shape(held)[1:]):
        raise NotCached(f"what is remembered as {held.name} grows from token to token")
    return next(iter(found))


def _computed(written: Node) -> Node:
    """What is kept, before views of it: a tensor that was written to is viewed anew where it is read."""
    while traits_of(written).view is not None:
        written = written.args[0]  # type: ignore[assignment]
    return written


def computing_module(step: CachedStep, written: Node) -> str:
    """Path of the module that computes what is kept, the views of it put there, too.

    Raises:
        NotCached: Nothing goes into it for each token, or comes out.
    """
    path = module_of_each_token(step, _computed(written))
    assert path is not None
    inside = [node for node in step.captured.graph.nodes if module_of_each_token(step, node) == path]
    ends = {kind(node): node for node in reversed(inside)}  # the first of each kind
    if FIRST not in ends or LAST not in ends:
        raise NotCached(f"{path} carries a state, and gives nothing for each token")
    _views_within(written, ends[LAST])
    return path


def _views_within(written: Node, last: Node) -> None:
    if traits_of(written).view is not None and written.meta.get("nn_module_stack") != last.meta["nn_module_stack"]:
        _views_within(written.args[0], last)  # type: ignore[arg-type]
        last.prepend(written)
        written.meta = {**written.meta, "nn_module_stack": last.meta["nn_module_stack"], "stack_trace": ""}


def keep_token_state(step: CachedStep, path: str, held: Node, written: Node, place: tuple[Any, ...]) -> None:
    """Take what is held from the cache before the first op of the module, and keep what is written after its last."""
    inside = [node for node in step.captured.graph.nodes if module_of_each_token(step, node) == path]
    last = next(node for node in inside if kind(node) == LAST)
    cache, slot, mask = place
    after = next(node for node in inside if node.target is not token_ops.recall and kind(node) != FIRST)
    edit = Editor(step.captured, after)
    value = held.meta["val"]
    batch = edit.known_size(shape(step.ids)[0])
    before = edit.call(token_ops.recall, cache, slot, [batch, *shape(held)[1:]], value.dtype, val=value)
    before.meta = {**before.meta, "nn_module_stack": last.meta["nn_module_stack"], "stack_trace": ""}
    held.replace_all_uses_with(before, delete_user_cb=lambda user: kind(user) not in ("sym_size", "copy"))
    edit = Editor(step.captured, last)
    edit.call(token_ops.keep_token, cache, slot, before, written, mask, val=step.fake((), torch.bool))


def close_modules(step: CachedStep) -> None:
    """Write what stands around such modules as ops that need no text, and check that nothing else leaves them."""
    for node in list(step.captured.graph.nodes):
        if kind(node) == FIRST:
            x, axis = node.args
            Editor(step.captured, node).replace(
                Editor(step.captured, node).call(token_ops.one_token, x, axis, val=node.meta["val"])
            )
        elif kind(node) == LAST:
            x, axis, like, along = node.args
            edit = Editor(step.captured, node)
            length = edit.size(like, along)
            edit.replace(edit.call(token_ops.all_tokens, x, axis, length, val=node.meta["val"]))
    for node in step.captured.graph.nodes:
        path = module_of_each_token(step, node)
        if path is not None and node.target is not token_ops.all_tokens:
            for user in node.users:
                if module_of_each_token(step, user) != path and kind(user) != "sym_size":
                    raise NotCached(f"{where(user) or 'the model'} takes what {path} computes of one token")
