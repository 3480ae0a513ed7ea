"""What is remembered beside keys and values: states of scans, and the last inputs of convolutions.

A state is read, and written after the last token. Both are found by what the program writes into the cache that it is
given: ``cat(state, new)`` whose end is kept, or a scan whose second result is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from mlxport.graph.capture.origin import module_path
from mlxport.graph.capture.stores import store
from mlxport.graph.lower import cache_ops, token_ops
from mlxport.graph.lower.traits import View, traits_of
from mlxport.graph.rewrite.caches.cached_step import CachedStep, CacheKind, NotCached
from mlxport.graph.rewrite.caches.folded_tokens import KeptState, fold_tokens
from mlxport.graph.rewrite.caches.time_first import put_time_first
from mlxport.graph.rewrite.caches.token_shifts import shift_by_one, shifted
from mlxport.graph.rewrite.caches.token_states import (
    called_for_each_token,
    close_modules,
    computing_module,
    keep_token_state,
)
from mlxport.graph.rewrite.graph_queries import Editor, kind, ndim, peel, shape, where

__all__ = ["Remembered", "find_states", "keep_states"]

_aten = torch.ops.aten
_SCANS = ("mlxport::selective_scan", "mlxport::state_space", "mlxport::gated_delta", "mlxport::wkv")


@dataclass(frozen=True)
class Remembered:
    """One state of a layer.

    Attributes:
        layer: Its number.
        name: What transformers calls it.
        node: The op that takes it up: the ``cat`` of a convolution's inputs, or the scan; or what is kept of it by a
            module that is called for each token.
        held: Of such a module, the input that it reads.
        shifted: Where ``node`` shifts tokens by one: what it shifts.
    """

    layer: int
    name: str
    node: Node
    held: Node | None = None
    shifted: Node | None = None


def find_states(step: CachedStep) -> list[Remembered]:
    """All states, in the order of the program.

    Raises:
        NotCached: One is used in another way.
    """
    written = {
        node.meta["store"]: node.args[0]
        for node in step.captured.graph.nodes
        if node.target is store and isinstance(node.meta["store"], Node)
    }
    found = [
        state
        for layer in step.layers
        for name, held in step.states(layer).items()
        if held in written or any(user.op == "call_function" for user in held.users)
        for state in _states_of(step, layer, name, held, written.get(held))
    ]
    once = {state.node: state for state in reversed(found)}  # a scan may take up several
    return sorted(once.values(), key=lambda state: state.node)


def _states_of(step: CachedStep, layer: int, name: str, held: Node, written: Any) -> list[Remembered]:
    """What is held as one state, or as one of each scan that goes on from a part of it."""
    kept = _kept(written)
    if called_for_each_token(step, held, kept) is not None:
        return [Remembered(layer, name, kept, held)]
    if (shift := shifted(held, kept)) is not None:
        return [Remembered(layer, name, shift, shifted=kept.args[0])]
    return [Remembered(layer, name, node) for node in _taken_up(layer, held, written)]


def _taken_up(layer: int, held: Node, written: Any) -> list[Node]:
    """The op that takes up what is held; several, where the parts of a stack go through scans of their own."""
    users = [user for user in held.users if kind(user) not in ("sym_size", "copy")]
    for user in users:
        if kind(user) == "cat" and user.args[0][0] is held and len(user.args[0]) == 2 and _last_axis(user):
            return [user]
    kept = _kept(written)
    parts = kept.args[0] if kind(kept) == "stack" else [kept]
    results = [part for part in map(_kept, parts) if kind(part) == "getitem" and part.args[1] > 0]
    if len(results) == len(parts) and all(_is_state(result, held) for result in results):
        return [result.args[0] for result in results]
    used = ", ".join(sorted({kind(user) or user.op for user in users})) or kind(kept) or "nothing"
    raise NotCached(f"layer {layer}: what is remembered as {held.name} is used by {used}, not by a scan that is known")


def _is_state(result: Node, held: Node) -> bool:
    """Whether a scan gives this after the last token, and goes on from what is held.

    Some kernels start anew where several tokens come.
    """
    scan, place = result.args
    states = len(scan.meta["val"]) - 1 if kind(scan) in _SCANS else 0
    before = scan.args[len(scan.args) - states + place - 1] if states else held
    return states > 0 and (before is None or peel(before) is held)


def _kept(written: Any) -> Any:
    """What a store keeps, before copies and casts."""
    while traits_of(written).copy or kind(written) == "copy":
        written = written.args[1] if kind(written) == "copy" else written.args[0]
    return written


def _last_axis(node: Node) -> bool:
    axis = node.args[1] if len(node.args) > 1 else 0
    return ndim(node) == 3 and axis in (-1, 2)


def keep_states(step: CachedStep, states: list[Remembered]) -> None:
    """Put all states on the caches of their layers, in the order of the program."""
    paths = {module_path(state.node) for state in states if state.held is None}
    for node in list(step.captured.graph.nodes):
        if node.target is store and isinstance(node.meta["store"], Node):
            step.captured.graph.erase_node(node)
    mask = None
    slots: dict[int, int] = {}
    modules: dict[str, list[KeptState]] = {}
    layers: dict[str, int] = {}
    for state in states:
        slot = slots[state.layer] = slots.get(state.layer, -1) + 1
        if mask is None:
            first = step.entry(state.layer, states=True)
            mask = step.shared(
                cache_ops.state_mask, step.ids, first, val=step.fake(shape(step.ids), torch.bool), argument="state_mask"
            )
        place = (step.cache(state.layer, states=True), slot, mask)
        if state.shifted is not None:
            shift_by_one(step, state.node, state.shifted, place)
        elif state.held is not None:
            path = computing_module(step, state.node)
            modules.setdefault(path, []).append((state.held, state.node, place))
            layers[path] = state.layer
        elif kind(state.node) == "cat":
            _last_inputs(step, state, place)
        else:
            _scan(step, state, place)
    called = [path for path, kept in modules.items() if not fold_tokens(step, path, kept)]
    for path in called:
        for kept in modules[path]:
            keep_token_state(step, path, *kept)
    for layer, last in slots.items():
        known = step.kinds.get(layer, CacheKind())
        stepped = layer in {layers[path] for path in called}
        step.kinds[layer] = replace(known, states=last + 1, both=step.both(layer), stepped=stepped)
    step.captured.graph.eliminate_dead_code()
    close_modules(step)
    put_time_first(step, paths)


def _last_inputs(step: CachedStep, state: Remembered, place: tuple[Any, ...]) -> None:
    """``cat(last inputs, new)``, and the convolution over it as MLX has it: without padding, no place too many."""
    joined = state.node
    x = joined.args[0][1]
    edit = Editor(step.captured, joined)
    convolved = [user for user in joined.users if kind(peel(user)) == "mlxport::causal_conv1d"]
    whole = [user for user in joined.users if kind(user) == "mlxport::causal_conv1d"]
    width = shape(state.node.args[0][0])[-1]
    if len(convolved) == len(whole) == 1 and _only_conv(joined, whole[0]):
        width = shape(whole[0].args[1])[-1] - 1
    sizes = (shape(x)[0], shape(x)[2] + width, shape(x)[1])
    after = edit.call(
        cache_ops.with_past, edit.permute(x, (0, 2, 1)), width, *place, val=step.fake(sizes, x.meta["val"].dtype)
    )
    made = edit.permute(after, (0, 2, 1))
    if whole and width == shape(whole[0].args[1])[-1] - 1:
        _convolve(step, whole[0], made, x)
    joined.replace_all_uses_with(made)


def _only_conv(joined: Node, conv: Node) -> bool:
    """Whether nothing but the convolution and what is kept is made of the joined inputs."""
    return all(user is conv or kind(user) in ("slice", "sym_size") for user in joined.users)


def _convolve(step: CachedStep, conv: Node, inputs: Node, new: Node) -> None:
    """A causal convolution of the last inputs and the new: it gives the new ones' results alone."""
    _, weight, bias = conv.args
    edit = Editor(step.captured, conv)
    channels = shape(conv)[1]
    value = step.fake(shape(new), conv.meta["val"].dtype)
    if traits_of(weight).view is View.RESHAPED and shape(weight.args[0]) == (channels, 1, shape(weight)[1]):
        weight = weight.args[0]
    else:
        weight = edit.call(_aten.unsqueeze.default, weight, 1)
    made = edit.call(_aten.conv1d.default, inputs, weight, bias, [1], [0], [1], channels, val=value)
    edit.replace(made)
    _shortened(step, made)


def _shortened(step: CachedStep, result: Node) -> None:
    """Take out what cut the places of the past off, after ops on each place alone."""
    for user in list(result.users):
        if kind(user) == "slice" and user.args[1] in (2, -1):
            user.replace_all_uses_with(result)
            step.captured.graph.erase_node(user)
        elif traits_of(user).pointwise or traits_of(user).copy:
            user.meta["val"] = step.fake(shape(result), user.meta["val"].dtype)
            _shortened(step, user)
        elif kind(user) != "sym_size":
            raise NotCached(f"what {where(user)} takes from a convolution ({kind(user)}) is not its last places")


def _scan(step: CachedStep, state: Remembered, place: tuple[Any, ...]) -> None:
    scan = state.node
    result = next((user for user in scan.users if user.args[1] == 0), None)
    if result is None:
        raise NotCached(f"nothing is made of the scan of {where(scan)}")
    edit = Editor(step.captured, result)
    edit.replace(_WRITTEN[kind(scan)](step, edit, scan, place))


def _selective_scan(step: CachedStep, edit: Editor, scan: Node, place: tuple[Any, ...]) -> Node:
    x, dt, A, B, C, _ = scan.args
    x, dt, B, C = (edit.permute(item, (0, 2, 1)) for item in (x, dt, B, C))
    made = edit.call(cache_ops.selective_scan, x, dt, A, B, C, *place, val=step.fake(shape(x), x.meta["val"].dtype))
    return edit.permute(made, (0, 2, 1))


def _state_space(step: CachedStep, edit: Editor, scan: Node, place: tuple[Any, ...]) -> Node:
    x, dt, A, B, C, D, bias, low, high, _ = scan.args
    if kind(A) == "neg" and kind(A.args[0]) == "exp":
        A = A.args[0].args[0]
    else:
        A = edit.call(_aten.log.default, edit.call(_aten.neg.default, A))
    return edit.call(cache_ops.state_space, x, dt, A, B, C, D, bias, (low, high), *place, val=edit.anchor.meta["val"])


def _gated_delta(step: CachedStep, edit: Editor, scan: Node, place: tuple[Any, ...]) -> Node:
    return edit.call(cache_ops.gated_delta, *scan.args[:-1], *place, val=edit.anchor.meta["val"])


def _wkv(step: CachedStep, edit: Editor, scan: Node, place: tuple[Any, ...]) -> Node:
    return edit.call(token_ops.wkv, *scan.args[:-3], *place, val=edit.anchor.meta["val"])


_WRITTEN: Mapping[str, Any] = dict(zip(_SCANS, (_selective_scan, _state_space, _gated_delta, _wkv), strict=True))
