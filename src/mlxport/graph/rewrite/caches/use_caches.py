"""The table of contents of the pass: a captured step of generation, rewritten to mlx-lm's caches."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from mlxport.graph.capture.captured import Captured
from mlxport.graph.capture.stores import store
from mlxport.graph.lower import cache_ops
from mlxport.graph.lower.one_function import is_assertion
from mlxport.graph.rewrite.caches.adjacent_slices import split_once
from mlxport.graph.rewrite.caches.attention_masks import attend_to_caches
from mlxport.graph.rewrite.caches.cached_step import CachedStep, CacheKind, NotCached, read_step
from mlxport.graph.rewrite.caches.chosen_experts import choose_experts
from mlxport.graph.rewrite.caches.encoder_output import keep_encoder_output
from mlxport.graph.rewrite.caches.gated_units import compile_gates
from mlxport.graph.rewrite.caches.idle_masks import drop_idle_masks
from mlxport.graph.rewrite.caches.index_keys import fetch_index_keys, find_index_keys
from mlxport.graph.rewrite.caches.interleaved_rope import turn_pairs
from mlxport.graph.rewrite.caches.kept_axes import keep_axes
from mlxport.graph.rewrite.caches.keys_values import (
    common_scope,
    count_from_keys,
    fetch_keys_and_values,
    find_keys_and_values,
    measure_keys,
)
from mlxport.graph.rewrite.caches.parted_experts import part_experts
from mlxport.graph.rewrite.caches.remembered_states import find_states, keep_states
from mlxport.graph.rewrite.caches.sorted_experts import sort_experts
from mlxport.graph.rewrite.caches.token_positions import count_from_offset
from mlxport.graph.rewrite.caches.whole_choices import drop_whole_choices
from mlxport.graph.rewrite.fuse.values import symbols
from mlxport.graph.rewrite.graph_queries import kind, same_size, shape, where

__all__ = ["use_caches"]


def use_caches(captured: Captured, folds: dict[str, Any], cache: Any) -> list[CacheKind]:
    """Rewrite a step's program ``(input_ids, cache) -> (logits, cache)`` to ``(input_ids, cache) -> logits``.

    Args:
        captured: The program, after all fusions; its graph is rewritten.
        folds: Constants that were folded before, by name.
        cache: The example's cache, of transformers.

    Returns:
        What mlx-lm keeps for each layer.

    Raises:
        NotCached: It cannot be written so; the graph is of no more use then.
    """
    step = read_step(captured, folds, cache)
    states = find_states(step)
    joined = find_keys_and_values(step)
    indexes = find_index_keys(step)
    kept = [*(state.node for state in states), *(node for pair in joined.values() for node in pair)]
    step.scope = common_scope([*kept, *indexes.values()])
    keep_states(step, states)
    _return_logits(captured)
    if step.source is not None:
        drop_idle_masks(step)
    fetched = fetch_keys_and_values(step, joined)
    fetch_index_keys(step, indexes)
    if not attend_to_caches(step, fetched) and not states:
        raise NotCached("no attention to what its cache holds was found")
    count_from_offset(step)
    measure_keys(step, fetched)
    split_once(captured)
    compile_gates(captured)
    drop_whole_choices(captured, step.values)
    sort_experts(captured, step.values)
    part_experts(captured, folds)
    choose_experts(captured)
    keep_axes(captured)
    turn_pairs(captured)
    if step.source is not None:
        keep_encoder_output(step, fetched)
    captured.graph.eliminate_dead_code()
    _take_caches(step)
    return [step.kinds.get(number, CacheKind()) for number in sorted(step.layers)]


def _return_logits(captured: Captured) -> None:
    """Let the program give its logits alone, and write into none of its inputs."""
    graph = captured.graph
    numbers = list(range(len(captured.outputs)))
    made = pytree.tree_unflatten(numbers, captured.out_spec)
    index = getattr(made, "logits", None)
    end = next(node for node in graph.nodes if node.op == "output")
    logits = end.args[0][index if isinstance(index, int) else 0]  # as it is after all passes
    end.args = ((logits,),)
    captured.outputs[:] = [logits]
    captured.out_spec = pytree.tree_flatten(0)[1]
    captured.mutations[:] = [(place, value) for place, value in captured.mutations if not isinstance(place, Node)]
    for node in reversed(list(graph.nodes)):
        written = node.target is store and isinstance(node.meta["store"], Node)
        if node.op == "call_function" and (is_assertion(node) or written):
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _take_caches(step: CachedStep) -> None:
    """Put the list of caches in the place of what they hold, and check that nothing else asks for that."""
    captured, graph = step.captured, step.captured.graph
    held = [node for names in step.layers.values() for node in names.values()]
    for node in held:
        for user in [user for user in node.users if kind(user) == "sym_size"]:
            _size_of_ids(step, user)
        if node.users:
            user = next(iter(node.users))
            raise NotCached(f"{where(user) or 'the model'} takes what is remembered by {kind(user) or user.op}")
        graph.erase_node(node)
    _no_past(step)
    tokens = {"input_ids": step.ids}
    if step.source is not None:
        tokens = {step.source_name: step.source, "decoder_input_ids": step.ids}
    examples = dict(zip(captured.inputs, captured.values, strict=True))
    captured.inputs[:] = [*tokens.values(), step.caches]
    captured.values[:] = [*(examples[node] for node in tokens.values()), 0]
    captured.in_spec = pytree.tree_flatten(((), dict.fromkeys([*tokens, "cache"], 0)))[1]
    parameter = inspect.Parameter
    captured.signature = inspect.Signature(
        [parameter(name, parameter.POSITIONAL_OR_KEYWORD) for name in tokens]
        + [parameter("cache", parameter.POSITIONAL_OR_KEYWORD, default=None)]
    )
    alive = set(graph.nodes)
    captured.weights = {node: name for node, name in captured.weights.items() if node in alive}


def _size_of_ids(step: CachedStep, size: Node) -> None:
    """Take a size that the tokens have, too, from these."""
    for axis, own in enumerate(shape(step.ids)):
        if same_size(own, size.meta["val"]):
            with step.captured.graph.inserting_before(size):
                made = step.captured.graph.call_function(torch.ops.aten.sym_size.int, (step.ids, axis))
            made.meta = {**size.meta}
            size.replace_all_uses_with(made)
    if not size.users:
        step.captured.graph.erase_node(size)


def _no_past(step: CachedStep) -> None:
    """Refuse a tensor whose sizes follow from the tokens before and that is made of nothing that a cache gave."""
    if step.past is None:
        return
    total = count_from_keys(step)
    known: set[Node] = set()
    fetches = (cache_ops.update_and_fetch, cache_ops.fetch_index)
    for node in step.captured.graph.nodes:
        if node.target in fetches or any(item in known for item in node.all_input_nodes):
            known.add(node)
        elif total in symbols([node]) and node.op == "call_function":
            raise NotCached(f"{where(node) or 'the model'} computes {node.name} from the number of tokens before")
