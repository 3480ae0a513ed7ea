"""LayerNorm written out: ``(x - mean) / sqrt(var + eps) * weight + bias`` -> ``mx.fast.layer_norm``."""

from __future__ import annotations

from collections.abc import Iterable

from mlxport.graph.capture.captured import Captured
from mlxport.graph.rewrite.fuse import rms_norm
from mlxport.graph.rewrite.fuse.fusion import Fusion
from mlxport.graph.rewrite.fuse.values import Values

__all__ = ["apply"]


def apply(captured: Captured, values: Values) -> Iterable[Fusion]:
    """Fuse every LayerNorm that is written out, over the last axes or over another one (channels first)."""
    return rms_norm.rewrite(captured, values, centred=True)
