"""The table of ops: ATen name -> lowering, filled by the modules in ``ops`` and by users.

A lowering takes the op's arguments under the names of its ATen schema, tensors and sizes as ``Expr``, everything else
as the Python value, and returns the ``Expr`` (a tuple of them where the op has several results).
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mlxport.errors import UsageError
from mlxport.graph.lower.expr import Expr, MLXCallable
from mlxport.graph.lower.unsupported import UnsupportedOp

__all__ = [
    "CHANNELS_LAST",
    "HELPERS",
    "LOWERINGS",
    "REGISTERED",
    "UNBACKED",
    "UnsupportedOp",
    "bind",
    "call",
    "call_host",
    "channels_last",
    "fused",
    "op",
    "overload",
    "refuse",
    "register_op",
    "registered",
]

Lowering = Callable[..., Any]

UNBACKED = 3  # the size that an axis has in shadows if it depends on data

LOWERINGS: dict[str, Lowering] = {}
HELPERS: dict[str, Callable[..., Any]] = {}
REGISTERED: dict[str, Callable[..., Any]] = {}  # the users' functions among them, by op

# Arguments that say where a tensor lies and not what it holds: they mean nothing in MLX.
_PLACEMENT = frozenset({"layout", "device", "pin_memory", "memory_format", "non_blocking", "generator"})


# Ops that a later torch than the lowest that is allowed has no more.
DROPPED: frozenset[str] = frozenset({"aten.cholesky.default"})  # since 2.14


def overload(key: str) -> torch._ops.OpOverload:
    """The torch operator of a key such as ``aten.add.Tensor``.

    Raises:
        ValueError: if torch has no such operator.
    """
    namespace, _, rest = key.partition(".")
    packet, _, name = rest.rpartition(".")
    try:
        found = getattr(getattr(getattr(torch.ops, namespace), packet), name)
    except AttributeError as error:
        raise ValueError(f"torch {torch.__version__} has no operator {key!r}") from error
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"{key!r} is not namespace.op.overload")
    return found


def _exists(key: str) -> bool:
    try:
        overload(key)
    except ValueError:
        return False
    return True


def op(*keys: str) -> Callable[[Lowering], Lowering]:
    """Register the decorated lowering for ``keys``; registering a key twice raises.

    A key of ``DROPPED`` is passed over where the installed torch has it no more.

    Raises:
        ValueError: for an unknown or repeated key, or a lowering that would drop an argument of the op.
    """

    def register(function: Lowering) -> Lowering:
        for key in keys:
            if key in LOWERINGS:
                raise ValueError(f"{key} is registered twice")
            if key in DROPPED and not _exists(key):
                continue
            _check_arguments(key, function)
            LOWERINGS[key] = function
        return function

    return register


def fused(target: Callable[..., Any]) -> Callable[[Lowering], Lowering]:
    """Register the decorated lowering for an op of ``fused_ops``, under its name.

    Raises:
        ValueError: for a name that is registered.
    """

    def register(function: Lowering) -> Lowering:
        if target.__name__ in LOWERINGS:
            raise ValueError(f"{target.__name__} is registered twice")
        LOWERINGS[target.__name__] = function
        return function

    return register


@dataclass(frozen=True)
class ChannelsLast:
    """An op that MLX computes with the channels in the last axis.

    Attributes:
        function: Lowering that takes ``inputs`` channels-last and gives its results so.
        inputs: Names of the arguments that carry channels.
        spatial: Number of axes after the channels, or None for all but the first two.
        either: Whether torch's layout is as good, so that no transpose is worth it.
    """

    function: Lowering
    inputs: tuple[str, ...]
    spatial: int | None
    either: bool = False

    def channel_axis(self, ndim: int) -> int:
        """Where torch has the channels of an input with ``ndim`` axes."""
        return 1 if self.spatial is None else ndim - self.spatial - 1


CHANNELS_LAST: dict[str, ChannelsLast] = {}


def channels_last(
    *keys: str, inputs: tuple[str, ...] = ("input",), spatial: int | None = None, plain: Lowering | None = None
) -> Callable[[Lowering], Lowering]:
    """Register a lowering that works channels-last; the op's plain lowering transposes before and after it.

    The layout pass calls the function directly, so that a chain of such ops needs no transposes in between. Arguments
    other than ``inputs`` (weights, sizes, axes of grids) come as torch gives them.

    Args:
        keys: ATen names.
        inputs: Names of the arguments whose channels are moved to the end.
        spatial: Axes after the channels where unbatched inputs are allowed, or None: (N, C, ...) always.
        plain: Lowering for torch's layout, where it can do without transposes.
    """

    def register(function: Lowering) -> Lowering:
        entry = ChannelsLast(function, inputs, spatial, plain is not None)

        @functools.wraps(function)
        def transposing(**bound: Any) -> Any:
            for name in inputs:
                if bound.get(name) is not None:
                    bound[name] = _moved(bound[name], entry.channel_axis(bound[name].ndim), -1)
            result = function(**bound)
            if isinstance(result, tuple):
                return tuple(_moved(item, -1, entry.channel_axis(item.ndim)) for item in result)
            return _moved(result, -1, entry.channel_axis(result.ndim))

        op(*keys)(plain or transposing)
        CHANNELS_LAST.update(dict.fromkeys(keys, entry))
        return function

    return register


def _moved(array: Expr, source: int, destination: int) -> Expr:
    ndim = array.ndim
    if ndim == 0 or source % ndim == destination % ndim:
        return array
    axes = list(range(ndim))
    axes.insert(destination % ndim, axes.pop(source))
    return array.transpose(*axes)


def _check_arguments(key: str, function: Lowering) -> None:
    wanted = {argument.name for argument in overload(key)._schema.arguments} - _PLACEMENT
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    has = {parameter.name for parameter in parameters}
    if missing := wanted - has:
        raise ValueError(f"the lowering of {key} does not take {sorted(missing)}")
    required = {parameter.name for parameter in parameters if parameter.default is parameter.empty}
    if extra := required - wanted - _PLACEMENT:
        raise ValueError(f"the lowering of {key} wants {sorted(extra)}, which the op does not have")


def bind(target: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name, defaults filled in, without those that only say where a tensor lies."""
    bound: dict[str, Any] = {}
    for index, argument in enumerate(target._schema.arguments):
        if index < len(args) and not argument.kwarg_only:
            bound[argument.name] = args[index]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    layout = bound.get("layout")
    if layout not in (None, torch.strided):
        raise UnsupportedOp(f"layout {layout}: MLX has dense arrays only")
    return {name: value for name, value in bound.items() if name not in _PLACEMENT}


def refuse(condition: bool, reason: str) -> None:
    """Raise ``UnsupportedOp`` with ``reason`` if ``condition`` holds."""
    if condition:
        raise UnsupportedOp(reason)


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Expr:
    """A call of a helper function, whose source goes into the port."""
    return helper(function)(*args, **kwargs)


def call_host(function: Callable[..., Any], result: Any, *args: Any, **kwargs: Any) -> Expr:
    """A call of a helper that reads values (a shape that depends on data); ``result`` is its shadow."""
    made = helper(function).called(result, *args, **kwargs)
    made.counted = True
    return made


def helper(function: Callable[..., Any]) -> MLXCallable:
    """A helper function as an expression can call it; its source goes into the port."""
    name = function.__name__
    if HELPERS.setdefault(name, function) is not function:
        raise ValueError(f"two helper functions are called {name}: {HELPERS[name].__module__}, {function.__module__}")
    return MLXCallable(ast.Name(name), function)


def register_op(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Say how MLX computes an operator: a custom one of ``torch.library``, or one of torch's that is to be overridden.

    Args:
        name: ``"mylib::myop"``, ``"mylib::myop.overload"`` or ``"aten.add.Tensor"``.

    The decorated function takes the op's arguments in order, tensors as ``mx.array``, and returns what the op returns.
    Its source is written into the emitted ``model.py``, so it must stand on ``mlx.core`` (``mx``), ``mlx.nn`` (``nn``)
    and ``math`` alone.

    Raises:
        ValueError: if torch does not know the operator, if the function cannot take its arguments, or is a lambda.
    """
    key = name.replace("::", ".")
    if key.count(".") == 1:
        key += ".default"
    arguments = [a.name for a in overload(key)._schema.arguments if a.name not in _PLACEMENT]

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if not function.__name__.isidentifier():
            raise ValueError(
                f"the function for {key} needs a name and a def of its own: its source is written into the port"
            )
        try:
            inspect.getsource(function)
        except (OSError, TypeError) as error:
            raise ValueError(
                f"{function.__name__} for {key} has no source, which is written into the port: {error}"
            ) from error
        try:
            inspect.signature(function).bind(*arguments)
        except TypeError as error:
            raise ValueError(
                f"{function.__name__} cannot take the arguments of {key} ({arguments}): {error}"
            ) from error

        def lower(**bound: Any) -> Any:
            try:
                return helper(function)(*(bound[argument] for argument in arguments))
            except (Exception, SystemExit) as error:  # the user's function: whatever it raises is about it
                given = ", ".join(f"{name}: {_described(item)}" for name, item in bound.items())
                raise UsageError(
                    f"{registered(key)} raises {type(error).__name__}: {error}", hint=f"it is called with {given}"
                ) from error

        HELPERS[function.__name__] = function
        LOWERINGS[key] = lower
        REGISTERED[key] = function
        return function

    return register


def registered(key: str) -> str:
    """What to call the user's function for an op in an error about it."""
    function = REGISTERED[key]
    code = getattr(inspect.unwrap(function), "__code__", None)
    place = f"{function.__name__}, {code.co_filename}:{code.co_firstlineno}" if code else function.__name__
    return f"the function registered for {key} ({place})"


def _described(item: Any) -> str:
    """An argument as the user's function sees it."""
    if isinstance(item, Expr) and hasattr(item.value, "shape"):
        return f"an mx.array of shape {item.value.shape} and {item.value.dtype}"
    return repr(item.value if isinstance(item, Expr) else item)
