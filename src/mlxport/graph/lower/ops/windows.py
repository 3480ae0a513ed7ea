"""Windows of signal processing; ``hann_window`` comes apart into a cosine by itself."""

from __future__ import annotations

from typing import Any

from mlxport.graph.lower.expr import Expr
from mlxport.graph.lower.helpers import windows as helper
from mlxport.graph.lower.ops.casts import cast
from mlxport.graph.lower.registry import call, op

_KEYS = {
    name: [f"aten.{name}_window.{overload}" for overload in ("default", "periodic", *more)]
    for name, more in {
        "hamming": ("periodic_alpha", "periodic_alpha_beta"),
        "bartlett": (),
        "blackman": (),
        "kaiser": ("beta",),
    }.items()
}


def _periodic(periodic: bool) -> dict[str, bool]:
    return {} if periodic else {"periodic": False}


@op(*_KEYS["hamming"])
def hamming_window(
    window_length: int, periodic: bool = True, alpha: float = 0.54, beta: float = 0.46, dtype: Any = None
) -> Expr:
    """``alpha - beta * cos(angle)``."""
    return cast(call(helper.cosine_window, window_length, (alpha, beta), **_periodic(periodic)), dtype)


@op(*_KEYS["blackman"])
def blackman_window(window_length: int, periodic: bool = True, dtype: Any = None) -> Expr:
    """``0.42 - 0.5 * cos(angle) + 0.08 * cos(2 * angle)``."""
    return cast(call(helper.cosine_window, window_length, (0.42, 0.5, 0.08), **_periodic(periodic)), dtype)


@op(*_KEYS["bartlett"])
def bartlett_window(window_length: int, periodic: bool = True, dtype: Any = None) -> Expr:
    """A triangle from 0 to 1 and back."""
    return cast(call(helper.bartlett_window, window_length, **_periodic(periodic)), dtype)


@op(*_KEYS["kaiser"])
def kaiser_window(window_length: int, periodic: bool = True, beta: float = 12.0, dtype: Any = None) -> Expr:
    """Bessel functions of a half circle."""
    options = {} if beta == 12 else {"beta": beta}
    return cast(call(helper.kaiser_window, window_length, **options, **_periodic(periodic)), dtype)
