"""Numbers that a module keeps as buffers without axes (a stride, a kernel size): known, where a capture sees none.

What is computed of them and of sizes is known too, as an expression of the sizes: it may be asked for by ``int``, in an
``if``, as a size or a padding.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["KnownNumbers"]

_Tensor: Any = torch.Tensor
_ASKED = {
    _Tensor.item: lambda value: value,
    _Tensor.tolist: lambda value: value,
    _Tensor.__bool__: bool,
    _Tensor.__int__: lambda value: torch.sym_int(value),
    _Tensor.__index__: lambda value: value,
    _Tensor.__float__: lambda value: torch.sym_float(value),
}
_REFLECTED = {"rsub": operator.sub, "rtruediv": operator.truediv, "rfloordiv": operator.floordiv}
_PLAIN: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("add", "radd", "sum"), operator.add),
    **dict.fromkeys(("sub", "subtract"), operator.sub),
    **dict.fromkeys(("mul", "rmul", "multiply"), operator.mul),
    **dict.fromkeys(("div", "divide", "true_divide", "truediv"), operator.truediv),
    **dict.fromkeys(("floordiv", "floor_divide"), operator.floordiv),
    **dict.fromkeys(("mod", "remainder"), operator.mod),
    **dict.fromkeys(("neg", "negative"), operator.neg),
    **{name: getattr(operator, name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    "ceil": lambda value: value if _whole(value) else math.ceil(value),
    "floor": lambda value: value if _whole(value) else math.floor(value),
    **dict.fromkeys(("maximum",), torch.sym_max),
    **dict.fromkeys(("minimum",), torch.sym_min),
    **dict.fromkeys(("clone", "detach", "contiguous", "cpu"), lambda value: value),
    **dict.fromkeys(("long", "int"), lambda value: torch.sym_int(value)),
    "float": lambda value: torch.sym_float(value),
}
_WITH_TENSORS = frozenset(["stack", "cat", "concat", "tensor", "as_tensor", "hstack", "vstack"])  # lists are of tensors


class KnownNumbers(TorchFunctionMode):  # type: ignore[misc]
    """While it is entered, answers questions of numbers that are known."""

    def __init__(self, module: torch.nn.Module, written: Collection[str]) -> None:
        """The buffers of ``module``; ``written``: those that its forward changes, which are never known."""
        super().__init__()
        self._module = module
        self._numbers = {
            name: buffer.item()
            for name, buffer in module.named_buffers(remove_duplicate=False)
            if _could_be(buffer) and not buffer.is_meta and name not in written
        }
        self._known = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer a question, or make the call and note its value."""
        kwargs = dict(kwargs or {})
        if not self._numbers or not args:
            return func(*args, **kwargs)
        if func in _ASKED and (value := self._value(args[0])) is not None and not isinstance(value, _Unknown):
            return _ASKED[func](value)
        name = getattr(func, "__name__", "")
        if name not in _WITH_TENSORS:
            args = tuple(self._plain(item) if isinstance(item, list | tuple | slice) else item for item in args)
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor) and result.ndim == 0:
            value = self._computed(name.strip("_"), args, kwargs, result.dtype)
            if not isinstance(value, _Unknown):
                self._known[result] = value
        return result

    def _value(self, item: Any) -> Any:
        """The number that an argument is."""
        if not isinstance(item, torch.Tensor):
            return item if isinstance(item, bool | int | float | torch.SymInt | torch.SymFloat) else _UNKNOWN
        if item.ndim:
            return _UNKNOWN
        if item not in self._known and _could_be(item):
            for name, buffer in self._module.named_buffers(remove_duplicate=False):  # those of the capture
                if buffer is item and name in self._numbers:
                    self._known[item] = self._numbers[name]
        return self._known.get(item, _UNKNOWN)

    def _plain(self, item: Any) -> Any:
        """A list, tuple or slice with numbers for the tensors that are known."""
        if isinstance(item, slice):
            return slice(*map(self._plain, (item.start, item.stop, item.step)))
        if type(item) in (list, tuple):
            return type(item)(map(self._plain, item))
        value = self._value(item) if isinstance(item, torch.Tensor) and not item.dtype.is_floating_point else _UNKNOWN
        return item if isinstance(value, _Unknown | bool) else value

    def _computed(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], dtype: torch.dtype) -> Any:
        if kwargs and not (name == "to" or set(kwargs) <= {"rounding_mode"} and name in ("div", "divide")):
            return _UNKNOWN
        if name == "to":
            args = args[:1]
        values = [self._value(item) for item in args]
        if any(isinstance(value, _Unknown) for value in values):
            return _UNKNOWN
        if name == "to":
            return torch.sym_float(values[0]) if dtype.is_floating_point else torch.sym_int(values[0])
        if rounding := kwargs.get("rounding_mode"):
            return operator.floordiv(*values) if rounding == "floor" else _UNKNOWN
        if name in _REFLECTED and len(values) == 2:
            return _REFLECTED[name](*reversed(values))
        try:
            return _PLAIN[name](*values) if name in _PLAIN else _UNKNOWN
        except (TypeError, ZeroDivisionError):  # another form of the call
            return _UNKNOWN


class _Unknown:
    """Stands for a number that is not known."""


_UNKNOWN = _Unknown()


def _could_be(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 0 and tensor.dtype in (torch.int64, torch.int32, torch.bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int | torch.SymInt)
