"""Functions of torch replaced for a while, under whatever name a user's file has imported them."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["OWN", "replaced"]

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
