"""What kind of op each is: agreement with torch's tags and schemas for every op of the table, and what is declared."""

from __future__ import annotations

import pytest
import torch

from mlxport.graph.lower import fused_ops
from mlxport.graph.lower import lowering as _lowering  # noqa: F401  (fills the table)
from mlxport.graph.lower.registry import LOWERINGS, overload
from mlxport.graph.lower.traits import Traits, View, traits

TABLE = {
    key: overload(key) for key in sorted(LOWERINGS) if key.startswith(("aten.", "prims."))
}  # others are of us, or of libraries that need not be there

# Tagged as what they are not.
WRONGLY_TAGGED = {
    "aten.equal.default": "pointwise: it gives one truth value for all",
    "aten.rrelu.default": "pointwise: random",
    "aten.slice_scatter.default": "view_copy: it gives its input with a part replaced",
}
# Views to MLX, which torch calls none: they copy.
COPIES = {"clone", "prims::clone", "lift", "_unsafe_view", "_reshape_copy", "unsafe_split", "unsafe_split_with_sizes"}


def test_every_op_of_the_table_is_asked():
    assert len(TABLE) > 700


@pytest.mark.parametrize("tag", ["pointwise", "reduction"])
def test_tags_are_followed(tag):
    tagged = {key for key, target in TABLE.items() if getattr(torch.Tag, tag) in target.tags}
    missing = {key for key in tagged if not getattr(traits(TABLE[key]), tag)}
    assert missing == {key for key in WRONGLY_TAGGED if WRONGLY_TAGGED[key].startswith(tag)}


def test_views_are_those_of_the_schemas():
    """Each view, and copy of a view, has an arrangement or is a cast; nothing else has one."""
    views = {key for key, target in TABLE.items() if target.is_view or torch.Tag.view_copy in target.tags}
    known = {key for key, target in TABLE.items() if traits(target).view is not None or traits(target).cast}
    assert views - known == {key for key in WRONGLY_TAGGED if WRONGLY_TAGGED[key].startswith("view")}
    extra = {traits(TABLE[key]).name for key in known - views if not traits(TABLE[key]).cast}
    assert extra == COPIES


@pytest.mark.parametrize("key", [key for key, target in TABLE.items() if traits(target).view is not None])
def test_arrangements_are_what_torch_does(key):
    """A view whose first argument is enough, or sizes, does to ``0 1 2 …`` what it is said to do."""
    target, kind = TABLE[key], traits(TABLE[key])
    x = torch.arange(6.0).reshape(1, 2, 3)
    result = _called(target, x)
    if isinstance(result, torch.Tensor):
        result = (result,)
    numbers = [part.reshape(-1) for part in result]
    if kind.view in (View.SAME, View.RESHAPED):
        assert torch.equal(numbers[0], x.reshape(-1))
        assert (result[0].shape == x.shape) or kind.view is View.RESHAPED
    elif kind.view is View.REORDERED:
        assert torch.equal(numbers[0].sort().values, x.reshape(-1)) and not torch.equal(numbers[0], x.reshape(-1))
    elif kind.view is View.BROADCAST:
        assert torch.equal(result[0], x.expand_as(result[0])) and result[0].numel() > x.numel()
    elif kind.view is View.PART:
        assert {float(n) for part in numbers for n in part} <= {float(n) for n in x.reshape(-1)}


ARGUMENTS = {
    "_reshape_alias": ([2, 3], [3, 1]), "reshape": ([3, 2],), "view": ([3, 2],), "view_copy": ([3, 2],),
    "_unsafe_view": ([3, 2],), "_reshape_copy": ([3, 2],), "unsqueeze": (0,), "unsqueeze_copy": (0,),
    "expand": ([4, 2, 3],), "expand_copy": ([4, 2, 3],), "permute": ([2, 0, 1],), "permute_copy": ([2, 0, 1],),
    "transpose": (1, 2), "transpose_copy": (1, 2), "select": (1, 0), "select_copy": (1, 0), "slice": (1, 0, 1),
    "slice_copy": (1, 0, 1), "narrow": (1, 0, 1), "narrow_copy": (1, 0, 1), "unbind": (1,), "unbind_copy": (1,),
    "unfold": (2, 2, 1), "unfold_copy": (2, 2, 1), "diagonal": (0, 1, 2), "diagonal_copy": (0, 1, 2),
    "as_strided": ([2], [3]), "as_strided_copy": ([2], [3]), "split": (1, 1), "split_copy": (1, 1),
    "unsafe_split": (1, 1), "split_with_sizes": ([1, 1], 1), "split_with_sizes_copy": ([1, 1], 1),
    "unsafe_split_with_sizes": ([1, 1], 1),
}  # fmt: skip


def _called(target: torch._ops.OpOverload, x: torch.Tensor):
    name = traits(target).name
    overloaded = target._overloadname
    if name in ("t", "t_copy"):
        x = x[0]
    if overloaded == "dtype":
        return target(x, torch.int32)
    if overloaded == "sizes":
        return target(x, [1, 1], 1)
    if name.startswith("squeeze"):
        return target(x, *({"dim": (0,), "dims": ([0],)}.get(overloaded, ())))
    if name.startswith("view_as_real") or name in ("imag", "_conj", "_neg_view", "resolve_conj"):
        x = x.to(torch.complex64)
    if name.startswith("view_as_complex"):
        x = torch.stack([x, x], dim=-1)
    result = target(x, *ARGUMENTS.get(name, ()))
    return result.real if isinstance(result, torch.Tensor) and result.is_complex() else result


def test_a_reduction_is_nothing_else():
    for key, target in TABLE.items():
        kind = traits(target)
        assert not (kind.reduction and (kind.pointwise or kind.view or kind.cast or kind.creation)), key


def test_creation_takes_no_values():
    """Only shapes, dtypes and numbers: tensors are at most what the new one is like."""
    for key, target in TABLE.items():
        tensors = [a.name for a in target._schema.arguments if str(a.type) == "Tensor"]
        if traits(target).creation and not traits(target).random:
            assert tensors in ([], ["self"]), key
            assert not tensors or traits(target).name.endswith("_like") or traits(target).name.startswith("new_"), key


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("aten.masked_fill.Tensor", {"pointwise": True}),
        ("aten.hardswish.default", {"pointwise": True}),
        ("aten._to_copy.default", {"pointwise": True, "cast": True}),
        ("aten.max.dim", {"reduction": True}),
        ("aten.max.other", {"pointwise": True}),
        ("aten.median.default", {"reduction": True}),
        ("aten.view.dtype", {"view": View.REINTERPRETED}),
        ("aten.view.default", {"view": View.RESHAPED, "sized": True}),
        ("aten.flatten.using_ints", {"view": View.RESHAPED}),
        ("aten.chunk.default", {"view": View.PART}),
        ("aten.mT.default", {"view": View.REORDERED}),
        ("aten.type_as.default", {"cast": True}),
        ("aten.to.dtype", {"cast": True}),
        ("aten.item.default", {"read": True}),
        ("aten.sum.default", {"reduction": True}),
        ("aten.zeros_like.default", {"creation": True}),
        ("aten.empty.memory_format", {"creation": True, "random": True}),
        ("aten.bernoulli.default", {"random": True}),
        ("aten._assert_async.msg", {"check": True}),
        ("aten.logical_and.default", {"pointwise": True, "logic": "and"}),
        ("aten.linear.default", {}),
        ("aten.softmax.int", {}),
    ],
)
def test_what_is_said_of_some(key, known):
    target = overload(key)
    assert traits(target) == Traits(traits(target).name, **known)


def test_targets_of_our_own_say_it_themselves():
    assert traits(fused_ops.quick_gelu).pointwise and traits(fused_ops.causal).creation
    assert traits(fused_ops.attention) == Traits("attention")


def test_a_users_operator_is_asked_as_torchs_are():
    @torch.library.custom_op("traits_test::double", mutates_args=(), tags=(torch.Tag.pointwise,))
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @torch.library.custom_op("traits_test::mixed", mutates_args=())
    def mixed(x: torch.Tensor) -> torch.Tensor:
        return x.flip(0)

    assert traits(torch.ops.traits_test.double.default) == Traits("traits_test::double", pointwise=True)
    assert traits(torch.ops.traits_test.mixed.default) == Traits("traits_test::mixed")
