"""Fourier transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlxport.graph.lower.axes import known
from mlxport.graph.lower.expr import Expr, mx
from mlxport.graph.lower.helpers import fourier as helper
from mlxport.graph.lower.ops.common import is_complex, to_float
from mlxport.graph.lower.registry import call, op, refuse

_SWAPPED = {None: "forward", "backward": "forward", "forward": "backward", "ortho": "ortho"}
# Normalisations of the internal ops (0 nothing, 1 by the root of n, 2 by n) as MLX names them.
_FORWARD = {0: "backward", 1: "ortho", 2: "forward"}
_INVERSE = {0: "forward", 1: "ortho", 2: "backward"}


def transformed(name: str, x: Expr, n: Any, dim: int, norm: str | None) -> Expr:
    """``mx.fft.<name>(x, n=, axis=, norm=)`` without defaults."""
    options: dict[str, Any] = {} if n is None else {"n": n}
    if dim % x.ndim != x.ndim - 1:
        options["axis"] = dim
    if norm not in (None, "backward"):
        options["norm"] = norm
    return getattr(mx.fft, name)(to_float(x), **options)  # type: ignore[no-any-return]


def transformed_nd(name: str, x: Expr, s: Sequence[Any] | None, dim: Sequence[int] | None, norm: str | None) -> Expr:
    """``mx.fft.<name>n(x, s=, axes=, norm=)`` without defaults; sizes of -1 keep an axis."""
    if dim is None:
        dim = range(-len(s), 0) if s is not None else range(x.ndim)
    axes = [axis % x.ndim for axis in dim]
    refuse(not axes, "a Fourier transform of no axes")
    if s is not None and len(axes) == 1:
        return transformed(name, x, None if known(s[0]) and s[0] == -1 else s[0], axes[0], norm)
    options: dict[str, Any] = {}
    if s is not None:
        sizes = [x.shape[axis] if known(size) and size == -1 else size for axis, size in zip(axes, s, strict=True)]
        if name == "irfft" and known(s[-1]) and s[-1] == -1:
            sizes[-1] = 2 * (x.shape[axes[-1]] - 1)
        options["s"] = tuple(sizes)
    if s is not None or axes != list(range(x.ndim)):
        options["axes"] = tuple(axes)
    if norm not in (None, "backward"):
        options["norm"] = norm
    return getattr(mx.fft, name + "n")(to_float(x), **options)  # type: ignore[no-any-return]


def _one(name: str) -> Callable[..., Any]:
    def lower(self: Expr, n: Any = None, dim: int = -1, norm: str | None = None) -> Expr:
        return transformed(name, self, n, dim, norm)

    lower.__doc__ = f"``mx.fft.{name}``."
    return lower


def _several(name: str) -> Callable[..., Any]:
    def lower(self: Expr, s: Sequence[Any] | None = None, dim: Any = None, norm: str | None = None) -> Expr:
        return transformed_nd(name, self, s, dim, norm)

    lower.__doc__ = f"``mx.fft.{name}n``."
    return lower


for _name in ("fft", "ifft", "rfft", "irfft"):
    op(f"aten.fft_{_name}.default")(_one(_name))
    op(f"aten.fft_{_name}2.default", f"aten.fft_{_name}n.default")(_several(_name))


@op("aten.fft_hfft.default")
def hfft(self: Expr, n: Any = None, dim: int = -1, norm: str | None = None) -> Expr:
    """The transform of half a Hermitian signal: ``irfft`` of the conjugate, normalised the other way."""
    return transformed("irfft", mx.conj(self) if is_complex(self) else self, n, dim, _SWAPPED[norm])


@op("aten.fft_ihfft.default")
def ihfft(self: Expr, n: Any = None, dim: int = -1, norm: str | None = None) -> Expr:
    """The inverse of ``hfft``: the conjugate of ``rfft``, normalised the other way."""
    return mx.conj(transformed("rfft", self, n, dim, _SWAPPED[norm]))  # type: ignore[no-any-return]


@op("aten.fft_hfft2.default", "aten.fft_hfftn.default")
def hfftn(self: Expr, s: Sequence[Any] | None = None, dim: Any = None, norm: str | None = None) -> Expr:
    """``hfft`` over several axes."""
    return transformed_nd("irfft", mx.conj(self) if is_complex(self) else self, s, dim, _SWAPPED[norm])


@op("aten.fft_ihfft2.default", "aten.fft_ihfftn.default")
def ihfftn(self: Expr, s: Sequence[Any] | None = None, dim: Any = None, norm: str | None = None) -> Expr:
    """``ihfft`` over several axes."""
    return mx.conj(transformed_nd("rfft", self, s, dim, _SWAPPED[norm]))  # type: ignore[no-any-return]


@op("aten._fft_r2c.default")
def fft_r2c(self: Expr, dim: Sequence[int], normalization: int, onesided: bool) -> Expr:
    """``mx.fft.rfft``, or ``mx.fft.fft`` for both sides."""
    name, norm = "rfft" if onesided else "fft", _FORWARD[normalization]
    return transformed(name, self, None, dim[0], norm) if len(dim) == 1 else transformed_nd(name, self, None, dim, norm)


@op("aten._fft_c2r.default")
def fft_c2r(self: Expr, dim: Sequence[int], normalization: int, last_dim_size: Any) -> Expr:
    """``mx.fft.irfft``."""
    sizes = [*(self.shape[axis] for axis in dim[:-1]), last_dim_size]
    return transformed_nd("irfft", self, sizes, dim, _INVERSE[normalization])


@op("aten._fft_c2c.default")
def fft_c2c(self: Expr, dim: Sequence[int], normalization: int, forward: bool) -> Expr:
    """``mx.fft.fft`` or ``mx.fft.ifft``."""
    if not dim:
        return self
    name, norm = ("fft", _FORWARD[normalization]) if forward else ("ifft", _INVERSE[normalization])
    return transformed(name, self, None, dim[0], norm) if len(dim) == 1 else transformed_nd(name, self, None, dim, norm)


@op("aten.stft.default")
def stft(
    self: Expr,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Expr | None = None,
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Expr:
    """Spectra of windows of a signal; what is padded for ``center`` has been padded before."""
    refuse(bool(align_to_window), "stft with align_to_window")
    both = is_complex(self) or (window is not None and is_complex(window)) if onesided is None else not onesided
    options = _window(n_fft, hop_length, win_length, window, normalized)
    if both:
        options["onesided"] = False
    result = call(helper.stft, to_float(self), n_fft, **options)
    return (
        result
        if return_complex or (return_complex is None and is_complex(self))
        else result[..., None].view(mx.float32)
    )


@op("aten.istft.default")
def istft(
    self: Expr,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Expr | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Expr:
    """The signal with the given spectra; that the windows add up to something everywhere is not checked."""
    refuse(return_complex, "istft with a complex signal")
    options = _window(n_fft, hop_length, win_length, window, normalized)
    if not center:
        options["center"] = False
    if not (self.shape[-2] != n_fft if onesided is None else onesided):
        options["onesided"] = False
    if length is not None:
        options["length"] = length
    return call(helper.istft, self, n_fft, **options)


def _window(n_fft: int, hop: int | None, length: int | None, window: Expr | None, normalized: bool) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if hop is not None and hop != n_fft // 4:
        options["hop_length"] = hop
    if length is not None and length != n_fft:
        options["win_length"] = length
    if window is not None:
        options["window"] = window
    if normalized:
        options["normalized"] = True
    return options


@op("aten.fft_fftfreq.default")
def fftfreq(n: Any, d: float = 1.0, dtype: Any = None) -> Expr:
    """Frequencies of a transform of ``n`` numbers, the negative ones last."""
    rest = n // 2
    positive, negative = mx.arange(n - rest, dtype=mx.float32), mx.arange(-rest, 0, dtype=mx.float32)
    return mx.concatenate([positive, negative]) / (n * d)


@op("aten.fft_rfftfreq.default")
def rfftfreq(n: Any, d: float = 1.0, dtype: Any = None) -> Expr:
    """Frequencies of a transform of ``n`` real numbers."""
    return mx.arange(n // 2 + 1, dtype=mx.float32) / (n * d)
