"""Codecs of transformers for a capture: what torch.export cannot follow at any length, spelled so that it can.

All of it computes what it computed. Convolutions (EnCodec, Mimi) keep strides as tensors, and decide by the length how
they pad, and whether a sound is too short to be reflected: that is one operator, as is the search in a codebook.
Codebooks are called by methods, of which a capture sees no module: they are called as modules. And each takes -1 for
codes that are not there.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from mlxport.graph.lower.codec_ops import nearest_row, pad_to_strides

__all__ = ["ready_for_capture"]


def ready_for_capture(model: torch.nn.Module) -> None:
    """Change the modules of a codec as said above."""
    for module in model.modules():
        for name, function in _METHODS.get(type(module).__name__, {}).items():
            setattr(module, name, types.MethodType(function, module))


def _convolved(self: Any, hidden_states: torch.Tensor, padding_cache: Any = None) -> torch.Tensor:
    """``forward`` of a convolution."""
    conv = self.conv
    (kernel,), (stride,), (dilation,) = conv.kernel_size, conv.stride, conv.dilation
    spanned = (kernel - 1) * dilation + 1
    made = conv(pad_to_strides(hidden_states, spanned, stride, self.causal, self.pad_mode))
    return self.norm(made) if getattr(self, "norm_type", "") == "time_group_norm" else made


def _quantized(self: Any, given: torch.Tensor) -> Any:
    """A codebook of EnCodec or Mimi: codes of vectors, with what these lack then; or vectors of codes."""
    if given.is_floating_point():
        codes = self.encode(given)
        return codes, given - self.decode(codes)
    return _where_there(self.decode(given.clamp(min=0)), given)


def _where_there(vectors: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return vectors * (codes >= 0)[:, None]


def _residual(axis: int) -> Callable[..., torch.Tensor]:
    """All codebooks of an EnCodec or a Mimi; ``axis``: of the codebooks among the axes of codes to be decoded."""

    def residual(self: Any, given: torch.Tensor) -> torch.Tensor:
        before, after = getattr(self, "input_proj", None), getattr(self, "output_proj", None)
        if not given.is_floating_point():
            vectors = _vectors(self.layers, given, axis)
            return vectors if after is None else after(vectors)
        rest, found = given if before is None else before(given), []
        for layer in self.layers:
            codes, rest = layer(rest)
            found.append(codes)
        return torch.stack(found)

    return residual


def _vectors(layers: Any, codes: torch.Tensor, axis: int) -> torch.Tensor:
    """What all codebooks have for codes, which are as many along ``axis``, in one sum."""
    if codes.shape[axis] != len(layers):
        raise ValueError(f"codes of {codes.shape[axis]} codebooks, and there are {len(layers)}")
    return functools.reduce(operator.add, [layer(codes.select(axis, index)) for index, layer in enumerate(layers)])


def _as_module(self: Any, given: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """``encode`` and ``decode`` of all codebooks; how many are used is nothing that a capture decides."""
    found: torch.Tensor = self(given)
    return found


def _dac_quantized(self: Any, given: torch.Tensor) -> Any:
    """A codebook of DAC."""
    if given.is_floating_point():
        return type(self).forward(self, given)
    return _where_there(self.out_proj(self.codebook(given.clamp(min=0)).transpose(1, 2)), given)


def _dac_residual(self: Any, given: torch.Tensor, n_quantizers: int | None = None) -> Any:
    if given.is_floating_point():
        return type(self).forward(self, given, n_quantizers)
    return _vectors(self.quantizers, given, 1)


def _dac_from_codes(self: Any, audio_codes: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor]:
    return self(audio_codes), None, audio_codes


def _encodec_nearest(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    return nearest_row(hidden_states, self.embed)


def _centroids(self: Any) -> torch.Tensor:
    """Of a Mimi's codebook, which keeps them after its first call."""
    centroids: torch.Tensor = self.embed_sum / self.cluster_usage.clamp(min=self.epsilon)[:, None]
    return centroids


def _mimi_nearest(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    return nearest_row(hidden_states, _centroids(self))


def _mimi_looked_up(self: Any, embed_ind: torch.Tensor) -> torch.Tensor:
    return functional.embedding(embed_ind, _centroids(self))


_METHODS: dict[str, dict[str, Callable[..., Any]]] = {
    "EncodecConv1d": {"forward": _convolved},
    "EncodecVectorQuantization": {"forward": _quantized},
    "EncodecEuclideanCodebook": {"encode": _encodec_nearest},
    "EncodecResidualVectorQuantizer": {"forward": _residual(0), "encode": _as_module, "decode": _as_module},
    "DacVectorQuantize": {"forward": _dac_quantized},
    "DacResidualVectorQuantizer": {"forward": _dac_residual, "from_codes": _dac_from_codes},
    "MimiConv1d": {"forward": _convolved},
    "MimiVectorQuantization": {"forward": _quantized},
    "MimiEuclideanCodebook": {"encode": _mimi_nearest, "decode": _mimi_looked_up},
    "MimiResidualVectorQuantizer": {"forward": _residual(1), "encode": _as_module, "decode": _as_module},
}
