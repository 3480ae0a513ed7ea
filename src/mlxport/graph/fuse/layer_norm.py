"""LayerNorm written out: ``(x - mean) / sqrt(var + eps) * weight + bias`` -> ``mx.fast.layer_norm``."""

from __future__ import annotations

from collections.abc import Iterable

from mlxport.graph.capture import Captured
from mlxport.graph.fuse import rms_norm
from mlxport.graph.fuse.record import Fusion
from mlxport.graph.fuse.values import Values

__all__ = ["apply"]


def apply(captured: Captured, values: Values) -> Iterable[Fusion]:
    """Fuse every LayerNorm that is written out, over the last axes or over another one (channels first)."""
    return rms_norm.rewrite(captured, values, centred=True)
