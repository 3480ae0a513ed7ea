"""Functions that are given functions (``torch.cond``, ``scan``, ``flex_attention``, …): captured as torch has them.

torch compiles what they are given on its own. Whatever listens to the calls of a forward has to stand aside meanwhile.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch._higher_order_ops import utils as operators
from torch._higher_order_ops.associative_scan import associative_scan, associative_scan_op, wrap_combine_fn_flat
from torch.nn.attention import flex_attention as flex
from torch.overrides import _pop_mode, _push_mode
from torch.utils import _pytree as pytree

from mlxport.graph.capture.replaced_calls import replaced

__all__ = ["control_flow_captured"]

_OURS = __name__.partition(".")[0]


@contextmanager
def control_flow_captured() -> Iterator[None]:
    """Within, torch's operators of control flow can be captured, and attention with a ``score_mod`` is written out."""
    with ExitStack() as changed:
        for module in (operators, flex):
            own = _standing_aside(module.setup_compilation_env)
            changed.enter_context(patch.object(module, "setup_compilation_env", own))
        changed.enter_context(patch.object(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True))
        changed.enter_context(patch.object(flex, "flex_attention_hop", _flex_attention))
        changed.enter_context(replaced(associative_scan, _associative_scan))
        yield


def _standing_aside(original: Callable[[], Any]) -> Callable[[], Any]:
    @contextmanager
    def environment() -> Iterator[Any]:
        with _without_our_modes(), original() as made:
            yield made

    return environment


@contextmanager
def _without_our_modes() -> Iterator[None]:
    """Do not let torch's compiler trace into our function modes."""
    modes = [_pop_mode() for _ in range(torch._C._len_torch_function_stack())][::-1]
    kept = [mode for mode in modes if not type(mode).__module__.startswith(_OURS)]
    for mode in kept:
        _push_mode(mode)
    try:
        yield
    finally:
        for _ in kept:
            _pop_mode()
        for mode in modes:
            _push_mode(mode)


def _associative_scan(
    original: Callable[..., Any],
    combine_fn: Callable[..., Any],
    xs: Any,
    dim: int,
    reverse: bool = False,
    combine_mode: str = "pointwise",
) -> Any:
    """As one operator: torch would write out as many turns of its ``generic`` mode as the length asks for."""
    if combine_mode != "generic" or not torch.compiler.is_exporting():
        return original(combine_fn, xs, dim, reverse, combine_mode)
    leaves, spec = pytree.tree_flatten(xs)
    rows = [leaf.movedim(dim, 0) for leaf in leaves]
    rows = [leaf.flip(0) for leaf in rows] if reverse else rows
    combine = functools.partial(wrap_combine_fn_flat, combine_fn=combine_fn, spec=spec, num_leaves=len(leaves))
    from torch._inductor import utils as inductor  # which torch imports with the operator only

    with patch.object(inductor, "is_pointwise_use", lambda _: True):  # ours takes what is not pointwise as well
        made = pytree.tree_leaves(operators._maybe_compile_and_run_fn(_scanned, combine, rows))
    made = [leaf.flip(0) for leaf in made] if reverse else made
    return pytree.tree_unflatten([leaf.movedim(0, dim) for leaf in made], spec)


def _scanned(combine: Callable[..., Any], rows: list[torch.Tensor]) -> Any:
    return associative_scan_op(combine, rows, additional_inputs=())


def _flex_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score_mod: Callable[..., torch.Tensor],
    block_mask: Sequence[Any],
    scale: float,
    *_: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What torch's operator gives: the output, and by powers of 2 the log of the sum of all weights and the largest.

    Its functions see one number each there, here all of them: they broadcast. Blocks say what is not computed.
    """
    mask_mod = block_mask[-1]
    axes = [*query.shape[:-1], key.shape[-2]]
    places = [
        torch.arange(size, device=query.device).view([-1 if axis == own else 1 for axis in range(4)])
        for own, size in enumerate(axes)
    ]
    mask = None if mask_mod is flex.noop_mask else mask_mod(*places)
    grouped = query.shape[1] != key.shape[1]
    if score_mod is flex._identity:
        if mask is not None:
            mask = mask.expand(*mask.shape[:2], axes[2], axes[3])
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped
        )
    if grouped:
        groups = query.shape[1] // key.shape[1]
        key, value = (item.repeat_interleave(groups, dim=1) for item in (key, value))
    scores = query.float() @ key.float().transpose(-2, -1) * scale
    if score_mod is not flex._identity:
        scores = score_mod(scores, *places)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    if score_mod is not flex._identity:
        weights = torch.softmax(scores, -1)
        if mask is not None:
            weights = weights.masked_fill(~mask.any(-1, keepdim=True), 0.0)
        output = (weights @ value.float()).to(query.dtype)
    return output, torch.logsumexp(scores, -1) / math.log(2), scores.amax(-1) / math.log(2)
