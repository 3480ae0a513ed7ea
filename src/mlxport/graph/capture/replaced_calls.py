"""Functions replaced for a while: torch's, under whatever name a user's file has imported them, and a forward."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["OWN", "forward_replaced", "replaced"]

_Function = Callable[..., Any]

OWN: dict[str, _Function] = {}  # what stands in for a function, by the function's name


def _stand_in(*args: Any, **kwargs: Any) -> Any:
    import sys

    from mlxport.graph.capture.replaced_calls import OWN

    return OWN[sys._getframe().f_code.co_name](*args, **kwargs)


@contextmanager
def replaced(function: types.FunctionType, own: _Function) -> Iterator[None]:
    """Within, a call of ``function`` is one of ``own``, which is given the original first.

    Its code is what is replaced: ``from torch… import function`` has put the function itself under other names.
    """
    code, before = function.__code__, OWN.get(function.__name__)
    original = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__)
    original.__kwdefaults__ = function.__kwdefaults__

    def call(*args: Any, **kwargs: Any) -> Any:
        return own(before or original, *args, **kwargs)

    function.__code__ = _stand_in.__code__.replace(co_name=function.__name__)
    OWN[function.__name__] = call
    try:
        yield
    finally:
        function.__code__ = code
        del OWN[function.__name__]
        if before is not None:
            OWN[function.__name__] = before


@contextmanager
def forward_replaced(
    module: torch.nn.Module, own: _Function, signature: inspect.Signature | None = None
) -> Iterator[None]:
    """Within, a call of ``module`` is one of ``own``, which is given the forward first; ``signature``: None for its."""
    forward, before = module.forward, vars(module).get("forward")

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        return own(forward, *args, **kwargs)

    call.__signature__ = signature or inspect.signature(forward)  # type: ignore[attr-defined]
    module.__dict__["forward"] = call
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before
