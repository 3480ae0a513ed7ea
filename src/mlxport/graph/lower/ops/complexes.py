"""Complex numbers: parts, angles, conjugates."""

from __future__ import annotations

from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import complexes
from mlxport.graph.lower.ops.common import is_complex
from mlxport.graph.lower.registry import call, op


@op("aten.complex.default")
def complex_(real: Expr, imag: Expr) -> Expr:
    """``real + i * imag``."""
    return call(complexes.complex_from_parts, real, imag)


@op("aten.polar.default")
def polar(abs: Expr, angle: Expr) -> Expr:  # noqa: A002
    """``abs * exp(i * angle)``."""
    return call(complexes.polar, abs, angle)


@op("aten.angle.default")
def angle(self: Expr) -> Expr:
    """The angle in the complex plane; of real numbers 0 or pi, NaN of NaN."""
    return call(complexes.angle, self)


@op("aten.real.default")
def real(self: Expr) -> Expr:
    """The real part."""
    return mx.real(self) if is_complex(self) else self


@op("aten.imag.default")
def imag(self: Expr) -> Expr:
    """The imaginary part."""
    return mx.imag(self)


@op("aten._conj.default", "aten._conj_physical.default", "aten.conj_physical.default")
def conj(self: Expr) -> Expr:
    """The conjugate."""
    return mx.conj(self) if is_complex(self) else self


@op("aten._neg_view.default")
def neg_view(self: Expr) -> Expr:
    """``-self``."""
    return -self
