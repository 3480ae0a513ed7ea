"""What a decoder reads of its encoder: computed once for each layer, and kept beside its own keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from mlxport.graph.lower import cache_ops
from mlxport.graph.lower.lowering import hint
from mlxport.graph.rewrite.caches.cached_step import CachedStep, CacheKind, NotCached
from mlxport.graph.rewrite.graph_queries import Editor, ancestors, kind, shape, where

_aten = torch.ops.aten

__all__ = ["keep_encoder_output", "made_of"]


def made_of(step: CachedStep, sources: Iterable[Node]) -> set[Node]:
    """All tensors that ``sources`` go into; sizes are taken from whatever has them, and so carry nothing on."""
    found = set(sources)
    for node in step.captured.graph.nodes:
        if kind(node) != "sym_size" and any(item in found for item in node.all_input_nodes):
            found.add(node)
    return found


def keep_encoder_output(step: CachedStep, fetched: Mapping[int, Node]) -> None:
    """Cut the program in two: the encoder's part gives what the layers of the decoder read, which take it from caches.

    The program's results become the logits and, layer by layer, what is kept. ``write.encoding`` makes two methods of
    the two parts.

    Raises:
        NotCached: Something reads the encoder's output outside of the layers.
    """
    assert step.source is not None
    read = made_of(step, [step.source])
    written = made_of(step, [step.ids, step.caches])
    kept: dict[int, list[Node]] = {number: [] for number in fetched}
    for node in [node for node in step.captured.graph.nodes if node in read - written]:
        if users := sorted(user for user in node.users if user in written):
            kept[_layer(step, fetched, users)].append(_by_rows(step, node, users, written))
    if len({len(nodes) for nodes in kept.values()}) != 1 or not all(kept.values()):
        raise NotCached("its layers do not read the same of the encoder")
    for number, nodes in kept.items():
        step.kinds[number] = replace(step.kinds.get(number, CacheKind()), states=len(nodes), both=True)
        for index, node in enumerate(nodes):
            _taken_from_cache(step, number, index, node, written)
    given = [node for nodes in kept.values() for node in nodes]
    _outside_of_decoder(given, written)
    _give(step, given)


def _by_rows(step: CachedStep, node: Node, users: list[Node], written: set[Node]) -> Node:
    """``node`` with the rows of the batch as its first axis: along that mlx-lm joins the caches of several texts."""
    assert step.source is not None
    rows, sizes = shape(step.source)[0], shape(node)
    each = None if isinstance(sizes[0], int) else sizes[0].node.expr / rows.node.expr
    if each is None or each == 1 or not each.is_Integer:
        return node
    split = _split(step, node, int(each))
    edit = Editor(step.captured, users[0])
    lengths = [
        size if isinstance(size, int) else edit.call(_aten.sym_size.int, split, axis, val=size)
        for axis, size in enumerate(sizes[1:], 2)
    ]
    joined = edit.call(_aten.reshape.default, split, [-1, *lengths], val=node.meta["val"])
    written.update([joined, *(size for size in lengths if isinstance(size, Node))])
    node.replace_all_uses_with(joined, delete_user_cb=lambda user: user in users)
    return split


def _split(step: CachedStep, node: Node, each: int) -> Node:
    """``node`` [rows * each, ...] as [rows, each, ...], in the encoder's part."""
    edit = Editor(step.captured, node.next)
    value = step.fake((shape(step.ids)[0], each, *shape(node)[1:]), node.meta["val"].dtype)
    more = edit.sizes(node, range(1, len(shape(node))))
    made = edit.call(_aten.reshape.default, node, [-1, each, *more], val=value)
    made.meta |= {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
    return made


def _layer(step: CachedStep, fetched: Mapping[int, Node], users: list[Node]) -> int:
    """The one layer that the users lie in: the module below ``scope`` that updates its cache."""
    layers = {_below(step, update): number for number, update in fetched.items()}
    found = {layers.get(_below(step, user)) for user in users}
    if len(found) != 1 or None in found or len(layers) != len(fetched):
        raise NotCached(f"{where(users[0]) or 'the model'} reads the encoder's output, and is no layer of the decoder")
    return next(number for number in found if number is not None)


def _below(step: CachedStep, node: Node) -> str:
    """The module within ``scope`` in whose call the node lies."""
    frames = list((node.meta.get("nn_module_stack") or {}).values())
    return str(frames[len(step.scope)][0]) if len(frames) > len(step.scope) else ""


def _taken_from_cache(step: CachedStep, number: int, index: int, node: Node, written: set[Node]) -> None:
    users = sorted(user for user in node.users if user in written)
    value = node.meta["val"]
    sizes = [hint(size) for size in value.shape]
    edit = Editor(step.captured, users[0])
    taken = edit.call(cache_ops.kept, step.cache(number, states=True), index, sizes, value.dtype, val=value)
    written.add(taken)
    node.replace_all_uses_with(taken, delete_user_cb=lambda user: user in users)


def _outside_of_decoder(given: list[Node], written: set[Node]) -> None:
    """Take what ``given`` is made of out of the decoder's calls of modules: each part has its own."""
    shared = {key for node in written for key in node.meta.get("nn_module_stack") or {}}
    for node in {*given, *ancestors(given)} - written:
        stack = node.meta.get("nn_module_stack") or {}
        node.meta["nn_module_stack"] = {key: frame for key, frame in stack.items() if key not in shared or not frame[0]}


def _give(step: CachedStep, kept: list[Node]) -> None:
    captured = step.captured
    end = next(node for node in captured.graph.nodes if node.op == "output")
    captured.outputs[:] = [*captured.outputs, *kept]
    end.args = (tuple(captured.outputs),)
    captured.out_spec = pytree.tree_flatten(tuple(range(len(captured.outputs))))[1]
