"""What kind of op a node's target is: asked by every pass, so that an op that is added is known to all of them at once.

Derived from what torch says: its tags (``pointwise``, ``reduction``, ``nondeterministic_seeded``, ``view_copy``) and
schemas (aliases, results, names of arguments). Declared here is only what torch does not say, each with the reason.
Targets that have no schema, those of ``fused_ops``, say it themselves by ``declare``. An operator that a user brings is
asked as torch's own are: one that is registered with ``torch.Tag.pointwise`` is pointwise here, too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from typing import Any, TypeVar

import torch
from torch.fx import Node

__all__ = ["Traits", "View", "declare", "filling", "op_name", "traits", "traits_of"]

_Target = TypeVar("_Target", bound=Callable[..., Any])


class View(Enum):
    """What a view does with the elements of its input."""

    SAME = auto()  # each in its place
    RESHAPED = auto()  # in the same order, under other sizes
    REORDERED = auto()  # axes in another order
    BROADCAST = auto()  # repeated along axes of size 1 and new ones
    PART = auto()  # some of them
    REINTERPRETED = auto()  # the memory as another dtype, or through other strides


@dataclass(frozen=True)
class Traits:
    """What kind of op it is.

    Attributes:
        name: Without namespace and overload for torch's own: ``mul`` for ``aten.mul.Tensor``.
        pointwise: Each element of the results comes from those at its place in the tensors, which are broadcast.
        view: The elements of the first argument, arranged so; whether memory is shared does not matter.
        cast: The elements of the first argument, in their places, in another dtype or on another device.
        reduction: One element for all along some axes (``dim``; all axes without it).
        creation: A tensor is taken for its shape and dtype only.
        read: It reads a number out of an array.
        random: It may draw random numbers, or gives what was in memory.
        check: It gives nothing and changes nothing: it asserts something.
        sized: A reshape to the shape that is its second and last argument.
        logic: ``"and"``, ``"or"``, ``"not"``: what it is on truth values.
    """

    name: str = ""
    pointwise: bool = False
    view: View | None = None
    cast: bool = False
    reduction: bool = False
    creation: bool = False
    read: bool = False
    random: bool = False
    check: bool = False
    sized: bool = False
    logic: str = ""

    @property
    def copy(self) -> bool:
        """Whether it gives its first argument: the same numbers in the same places, at most in another dtype."""
        return self.cast or self.view is View.SAME

    @property
    def shaped(self) -> bool:
        """Whether it only brings elements under other sizes, repeated where it broadcasts."""
        return self.view in (View.RESHAPED, View.BROADCAST)


# Torch knows that an op is a view, not what it does with the elements. ``_copy`` variants are the same to MLX.
_ARRANGEMENTS: Mapping[View, str] = {
    View.SAME: "alias detach contiguous clone lift lift_fresh positive resolve_conj resolve_neg view_of",
    View.RESHAPED: "view reshape _unsafe_view _reshape_alias _reshape unsqueeze squeeze flatten unflatten ravel "
    "view_as reshape_as",
    View.REORDERED: "permute transpose t movedim moveaxis swapaxes swapdims numpy_T mT",
    View.BROADCAST: "expand expand_as broadcast_to",
    View.PART: "select slice narrow split split_with_sizes chunk unbind tensor_split unsafe_split unsafe_chunk "
    "unsafe_split_with_sizes diagonal linalg_diagonal unfold getitem",
    View.REINTERPRETED: "view_as_real view_as_complex real imag _conj conj _neg_view as_strided",
}
_VIEWS = {name: view for view, names in _ARRANGEMENTS.items() for name in names.split()}

# A cast is tagged as a view, as pointwise or as nothing, after what it happens to do with memory.
_CASTS = frozenset("_to_copy to type_as convert_element_type".split())

# Torch tags what its compiler makes one loop of. Not tagged, though each element depends on its place alone:
_POINTWISE = frozenset(
    # ops with a kernel of their own, or made of tagged ones
    """hardswish log_sigmoid isclose floor_divide _prelu_kernel complex polar special_expit special_ndtr
    special_polygamma special_gammainc special_gammaincc copy fill zero"""
    # views of a part of each number
    " real imag _conj conj _neg_view"
    # casts
    " _to_copy convert_element_type".split()
)
# Over all elements, but not tagged.
_REDUCTIONS = frozenset("sum prod median nanmedian count_nonzero".split())
_NOT_POINTWISE = frozenset({"equal"})  # tagged, but gives one truth value for all

_LOGIC: Mapping[str, str] = {  # one function on truth values, under the names of several types
    **dict.fromkeys(("bitwise_and", "logical_and", "__and__"), "and"),
    **dict.fromkeys(("bitwise_or", "logical_or", "__or__"), "or"),
    **dict.fromkeys(("bitwise_not", "logical_not"), "not"),
}

# Targets without a schema. An item of several results is a part of them.
_DECLARED: dict[Any, Traits] = {operator.getitem: Traits("getitem", view=View.PART)}


def declare(**known: Any) -> Callable[[_Target], _Target]:
    """Say what kind of op the decorated target of ours is; its fields are those of ``Traits``."""

    def register(target: _Target) -> _Target:
        _DECLARED[target] = Traits(target.__name__, **known)
        return target

    return register


def op_name(target: Any) -> str:
    """``mul`` for ``aten.mul.Tensor``; the function's name for a target of our own; ``mylib::op`` for a user's."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return str(getattr(target, "__name__", ""))
    return str(schema.name).removeprefix("aten::")


def traits_of(node: Any) -> Traits:
    """The traits of a node's op; none for what is no op."""
    return traits(node.target) if isinstance(node, Node) and node.op == "call_function" else Traits()


@cache
def traits(target: Any) -> Traits:
    """What kind of op ``target`` is."""
    if not isinstance(target, torch._ops.OpOverload):
        return _DECLARED.get(target, Traits(op_name(target)))
    name = op_name(target)
    bare = name.removeprefix("prims::")
    tags, schema = set(target.tags), target._schema
    names = [argument.name for argument in schema.arguments]
    cast = bare in _CASTS
    reduction = torch.Tag.reduction in tags or {"dim", "keepdim"} <= set(names) or bare in _REDUCTIONS
    random = torch.Tag.nondeterministic_seeded in tags or bare.startswith(("empty", "new_empty"))
    tagged = _tagged_pointwise(target) and not reduction and not random and bare not in _NOT_POINTWISE
    view = None if cast else _arrangement(target, bare)
    return Traits(
        name,
        pointwise=tagged or bare in _POINTWISE,
        view=view,
        cast=cast,
        reduction=reduction,
        creation={"layout", "pin_memory"} <= set(names) and not cast,
        read=[str(result.type) for result in schema.returns] == ["number"],
        random=random,
        check=not schema.returns and not schema.is_mutable,
        sized=view is View.RESHAPED and names[1:] in (["size"], ["shape"]),
        logic=_LOGIC.get(bare, ""),
    )


def _arrangement(target: torch._ops.OpOverload, name: str) -> View | None:
    """What a view makes of its input; None for what is none."""
    if target._overloadname == "dtype":  # ``view.dtype``; a cast has been told from it
        return View.REINTERPRETED if name in ("view", "view_copy") else None
    return _VIEWS.get(name.removesuffix("_copy"))


def _tagged_pointwise(target: torch._ops.OpOverload) -> bool:
    """Whether the op is tagged so in one of its overloads: torch leaves out some that take a number or a 0-d tensor."""
    packet = target.overloadpacket
    return any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads())


def filling(node: Any) -> int | float | bool | None:
    """The number that a creation op fills its result with, None where it does not or where that is not known."""
    kind = traits_of(node)
    name = kind.name.removeprefix("new_").removesuffix("_like")
    if not kind.creation or name not in ("zeros", "ones", "full"):
        return None
    value = node.meta.get("val")
    is_bool = isinstance(value, torch.Tensor) and value.dtype is torch.bool
    if name != "full":
        return name == "ones" if is_bool else int(name == "ones")
    given = node.args[-1] if len(node.args) > 1 else node.kwargs.get("fill_value")
    if not isinstance(given, bool | int | float):
        return None
    return bool(given) if is_bool else given + 0
